//! Which training timesteps an inference of so many steps visits, with numpy's arithmetic.

use crate::config::SchedulerConfig;
use crate::error::Result;

/// The three ways of Lin et al. (2023), "Common Diffusion Noise Schedules and Sample Steps are
/// Flawed", table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

impl TimestepSpacing {
    pub(crate) fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let choices = [("linspace", Self::Linspace), ("leading", Self::Leading), ("trailing", Self::Trailing)];
        config.choice("timestep_spacing", &choices)
    }

    /// `steps` timesteps from high to low, of schedulers whose last step is taken from the lowest
    /// of them; fractional for `linspace`. `offset` counts for `leading` only.
    pub(crate) fn down_to_first(self, train: usize, steps: usize, offset: i64) -> Vec<f64> {
        match self {
            Self::Linspace => reversed(linspace(0.0, (train - 1) as f64, steps)),
            Self::Leading => leading(train / steps, 0..steps, offset),
            Self::Trailing => trailing(train, train, steps),
        }
    }

    /// `steps` whole timesteps from high to low, of schedulers that would take one more step from
    /// the timestep below. The highest is `last − 1` or, for `leading`, below it.
    pub(crate) fn above_first(self, last: usize, train: usize, steps: usize, offset: i64) -> Vec<f64> {
        match self {
            Self::Linspace => {
                let points = linspace(0.0, (last - 1) as f64, steps + 1);
                let whole = points.into_iter().skip(1).map(f64::round_ties_even);
                reversed(whole.collect())
            }
            Self::Leading => leading(last / (steps + 1), 1..steps + 1, offset),
            Self::Trailing => trailing(last, train, steps),
        }
    }
}

fn leading(stride: usize, indices: std::ops::Range<usize>, offset: i64) -> Vec<f64> {
    let timestep = |index: usize| (index * stride) as f64 + offset as f64;
    indices.rev().map(timestep).collect()
}

/// From `last − 1` down in strides of `train / steps`.
///
/// numpy's range can run one element over its end by rounding, which gives diffusers a timestep of
/// −1 for some numbers of steps (61 of 1000 is the first); that element is left out.
fn trailing(last: usize, train: usize, steps: usize) -> Vec<f64> {
    let (start, ratio) = (last as f64, train as f64 / steps as f64);
    let count = (start / ratio).ceil() as usize;
    let stride = (start - ratio) - start;
    (0..count)
        .map(|index| (start + index as f64 * stride).round_ties_even() - 1.0)
        .filter(|timestep| *timestep >= 0.0)
        .collect()
}

fn reversed(mut values: Vec<f64>) -> Vec<f64> {
    values.reverse();
    values
}

/// `numpy.linspace(start, end, count)`.
pub(crate) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let gaps = count.saturating_sub(1);
    let stride = (end - start) / gaps.max(1) as f64;
    let point = |index: usize| {
        if index > 0 && index == gaps { end } else { index as f64 * stride + start }
    };
    (0..count).map(point).collect()
}

/// `torch.linspace(start, end, count, dtype=float32)` on the CPU: both halves are laid out from
/// their own end, with fused multiply-adds.
pub(crate) fn linspace_f32(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let gaps = count.saturating_sub(1);
    let stride = (end - start) / gaps.max(1) as f32;
    let point = |index: usize| {
        if index < count / 2 || gaps == 0 {
            stride.mul_add(index as f32, start)
        } else {
            (-stride).mul_add((gaps - index) as f32, end)
        }
    };
    (0..count).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings_are_those_of_table_2() {
        use TimestepSpacing::{Leading, Linspace, Trailing};
        assert_eq!(Linspace.down_to_first(1000, 4, 0), [999.0, 666.0, 333.0, 0.0]);
        assert_eq!(Linspace.down_to_first(1000, 1, 0), [0.0]);
        assert_eq!(Leading.down_to_first(1000, 4, 1), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(Trailing.down_to_first(1000, 4, 9), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(Linspace.above_first(1000, 1000, 4, 0), [999.0, 749.0, 500.0, 250.0]);
        assert_eq!(Leading.above_first(1000, 1000, 4, 0), [800.0, 600.0, 400.0, 200.0]);
        assert_eq!(Trailing.above_first(1000, 1000, 4, 0), [999.0, 749.0, 499.0, 249.0]);
    }

    #[test]
    fn timesteps_are_distinct_and_in_range_for_every_number_of_steps() {
        use TimestepSpacing::{Leading, Linspace, Trailing};
        for spacing in [Linspace, Leading, Trailing] {
            for steps in 1..=100 {
                let timesteps = spacing.down_to_first(100, steps, 0);
                assert_eq!(timesteps.len(), steps, "{spacing:?}");
                assert!(timesteps.is_sorted_by(|a, b| a > b), "{spacing:?} {steps}");
                assert!(timesteps[0] <= 99.0 && timesteps[steps - 1] >= 0.0);
                let timesteps = spacing.above_first(100, 100, steps.min(99), 0);
                assert!(timesteps.is_sorted_by(|a, b| a > b), "{spacing:?} {steps}");
            }
        }
    }
}
