//! Random decisions that are the same on every platform.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a seed is used for: equal seeds give unrelated decisions for different purposes.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Scene,
    Caption,
    TestPrompts,
}

/// Decisions drawn from ChaCha8, in integers only, so that they do not depend on how a platform rounds.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64, purpose: Purpose) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(purpose as u64);
        Self(generator)
    }

    /// A number from 0 to `end - 1`; 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(end)) >> 32) as u32
    }

    /// A number from `first` to `last`, both included; `first` if there is none.
    pub(crate) fn between(&mut self, first: i32, last: i32) -> i32 {
        first + self.below(u32::try_from(last - first + 1).unwrap_or(0)) as i32
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    /// One of the array, each as likely as another.
    pub(crate) fn pick<T: Copy, const N: usize>(&mut self, from: [T; N]) -> T {
        const { assert!(N > 0) };
        from[self.below(N as u32) as usize]
    }

    /// Puts a slice in a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u32 + 1) as usize);
        }
    }
}
