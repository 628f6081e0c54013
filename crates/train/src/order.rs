//! Which items a step is given.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::random::{generator, shuffle};

/// Goes through all items again and again, each time in another order, in batches of images of one size. Which items a
/// step has follows from the seed and the step alone.
pub(crate) struct Order {
    /// Items of one size each.
    groups: Vec<Vec<usize>>,
    batch_size: usize,
    seed: u64,
    /// The epoch that was asked for last, and its batches.
    epoch: Mutex<Option<(u64, Vec<Vec<usize>>)>>,
}

impl Order {
    /// For items of these sizes.
    pub(crate) fn new<S: Ord>(sizes: impl IntoIterator<Item = S>, batch_size: usize, seed: u64) -> Self {
        let mut groups: BTreeMap<S, Vec<usize>> = BTreeMap::new();
        for (item, size) in sizes.into_iter().enumerate() {
            groups.entry(size).or_default().push(item);
        }
        Self { groups: groups.into_values().collect(), batch_size, seed, epoch: Mutex::new(None) }
    }

    /// Batches in which every item comes at least once.
    pub(crate) fn batches_per_epoch(&self) -> u64 {
        self.groups.iter().map(|group| group.len().div_ceil(self.batch_size) as u64).sum()
    }

    /// The items of step `step`, from 1.
    pub(crate) fn batch(&self, step: u64) -> Vec<usize> {
        let (epoch, index) = ((step - 1) / self.batches_per_epoch(), (step - 1) % self.batches_per_epoch());
        // An epoch is only ever put there whole.
        let mut known = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(known, _)| *known != epoch) {
            *known = Some((epoch, self.plan(epoch)));
        }
        known.as_ref().map(|(_, batches)| batches[index as usize].clone()).unwrap_or_default()
    }

    fn plan(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut generator = generator(self.seed, "order", &[epoch]);
        let mut batches = Vec::new();
        for group in &self.groups {
            let mut group = group.clone();
            shuffle(&mut group, &mut generator);
            // The last batch of a size is filled up with the first items of that size.
            let full = group.len().div_ceil(self.batch_size) * self.batch_size;
            let filled: Vec<_> = group.iter().copied().cycle().take(full).collect();
            batches.extend(filled.chunks(self.batch_size).map(<[usize]>::to_vec));
        }
        shuffle(&mut batches, &mut generator);
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_item_and_batches_of_one_size() {
        let sizes: Vec<usize> = (0..103).map(|item| item % 3).collect();
        let order = Order::new(sizes.iter().copied(), 8, 5);
        let epoch = |number: u64| -> Vec<Vec<usize>> {
            let count = order.batches_per_epoch();
            (number * count + 1..=(number + 1) * count).map(|step| order.batch(step)).collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        for batches in [&first, &second] {
            let mut seen: Vec<_> = batches.concat();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, (0..103).collect::<Vec<_>>());
            assert!(batches.iter().all(|batch| batch.len() == 8));
            assert!(batches.iter().all(|batch| batch.iter().all(|item| sizes[*item] == sizes[batch[0]])));
        }
        assert_ne!(first, second);
        assert_eq!(first, epoch(0), "the same step has the same items");
        assert_ne!(first, {
            let other = Order::new(sizes.iter().copied(), 8, 6);
            (1..=other.batches_per_epoch()).map(|step| other.batch(step)).collect::<Vec<_>>()
        });
    }
}
