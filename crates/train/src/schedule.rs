use serde::{Deserialize, Serialize};

/// How the learning rate changes over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same throughout.
    Constant,
    /// Down to zero along a straight line.
    Linear,
    /// Down to zero along half a cosine wave (Loshchilov & Hutter 2017).
    Cosine,
    /// The same for four fifths of the run, then down to zero along a straight line (Hägele et al. 2024). Until then the
    /// run's length is open: a run may be given fewer or more steps at any time.
    Trapezoidal,
}

/// Where a trapezoidal schedule begins to fall, as a part of the run.
const STABLE: f64 = 0.8;

impl Schedule {
    /// The factor of the learning rate in step `step` of `steps`, both counted from 1: `warm_up` steps lead up to 1 along
    /// a straight line, the schedule itself is for the rest.
    pub fn factor(self, step: u64, steps: u64, warm_up: u64) -> f64 {
        if step <= warm_up {
            return step as f64 / warm_up as f64;
        }
        let part = (step - 1 - warm_up) as f64 / (steps - warm_up).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - part,
            Self::Trapezoidal => ((1.0 - part) / (1.0 - STABLE)).min(1.0),
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * part).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_rise_to_one_and_fall_to_zero() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::Trapezoidal] {
            assert_eq!(schedule.factor(1, 100, 10), 0.1);
            assert_eq!(schedule.factor(10, 100, 10), 1.0);
            assert_eq!(schedule.factor(11, 100, 10), 1.0);
            assert_eq!(schedule.factor(1, 5, 0), 1.0);
        }
        assert_eq!(Schedule::Constant.factor(100, 100, 10), 1.0);
        let trapezoid = |step| Schedule::Trapezoidal.factor(step, 110, 10);
        assert_eq!((trapezoid(50), trapezoid(91)), (1.0, 1.0));
        assert!((trapezoid(101) - 0.5).abs() < 1e-12 && trapezoid(110) < 0.06);
        for schedule in [Schedule::Linear, Schedule::Cosine] {
            let factors: Vec<_> = (11..=100).map(|step| schedule.factor(step, 100, 10)).collect();
            assert!(factors.windows(2).all(|pair| pair[1] < pair[0]) && factors[89] > 0.0 && factors[89] < 0.02);
            assert!((schedule.factor(56, 100, 10) - 0.5).abs() < 1e-12, "half way");
        }
    }
}
