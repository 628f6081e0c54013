//! The factor that keeps small gradients representable in f16 (Micikevicius et al. 2018, "Mixed Precision Training",
//! section 3.2).

use serde::{Deserialize, Serialize};

use crate::Precision;

/// The first factor, and how many good steps it takes to double it.
const FIRST: f64 = 65536.0;
const GOOD_STEPS: u32 = 2000;

/// What a loss is multiplied with before gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    factor: f64,
    good_steps: u32,
    /// In f32 and bf16, whose range suffices, it is 1 and stays.
    changes: bool,
}

impl LossScale {
    pub(crate) fn of(precision: Precision) -> Self {
        let changes = precision == Precision::F16;
        Self { factor: if changes { FIRST } else { 1.0 }, good_steps: 0, changes }
    }

    pub(crate) fn factor(&self) -> f64 {
        self.factor
    }

    /// Takes in whether a step's gradients were finite. Returns whether training can go on: a smaller factor may help.
    pub(crate) fn update(&mut self, finite: bool) -> bool {
        if !self.changes {
            return finite;
        }
        if !finite {
            self.factor /= 2.0;
            self.good_steps = 0;
            return self.factor >= 1.0;
        }
        self.good_steps += 1;
        if self.good_steps == GOOD_STEPS {
            self.factor *= 2.0;
            self.good_steps = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_after_overflow_and_doubles_after_many_good_steps() {
        let mut scale = LossScale::of(Precision::F16);
        assert!(scale.update(false) && scale.factor() == FIRST / 2.0);
        assert!((0..GOOD_STEPS).all(|_| scale.update(true)) && scale.factor() == FIRST);
        let halvings = (0..).take_while(|_| scale.update(false)).count();
        assert_eq!((halvings, scale.factor()), (16, 0.5));
        let mut scale = LossScale::of(Precision::Bf16);
        assert!(scale.update(true) && !scale.update(false) && scale.factor() == 1.0);
    }
}
