use rayon::prelude::*;

use crate::isa::{Body, Isa};
use crate::norm::ELEMENTS_PER_TASK;
use crate::simd::{LANES, Simd};
use crate::sweep::for_each_vector;

/// The settings of one step of [`adamw`], named as in `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment, 0 to 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 to 1.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Part of a parameter that a step of learning rate 1 takes away.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u32,
}

/// One step of AdamW (Loshchilov & Hutter 2019, algorithm 2) as `torch.optim.AdamW` takes it, in one sweep: the decay
/// of the parameters is apart from the gradient and scaled by the learning rate, and the moments are corrected for
/// their start at zero. All slices are of one length; the parameters and both moments are updated.
///
/// # Panics
/// If the lengths differ, or the step is 0.
pub fn adamw(
    isa: Isa,
    parameters: &mut [f32],
    gradient: &[f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
    settings: &AdamW,
) {
    let len = parameters.len();
    assert!(
        gradient.len() == len && first_moment.len() == len && second_moment.len() == len,
        "AdamW: parameters, gradient and moments differ in length"
    );
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *settings;
    assert!(step > 0, "AdamW's steps are counted from 1");
    let correction = |beta: f64| 1.0 - beta.powf(f64::from(step));
    let factors = Factors {
        kept: (1.0 - lr * weight_decay) as f32,
        first_new: (1.0 - beta1) as f32,
        second_kept: beta2 as f32,
        second_new: (1.0 - beta2) as f32,
        step_size: (lr / correction(beta1)) as f32,
        root_factor: (1.0 / correction(beta2).sqrt()) as f32,
        eps: eps as f32,
    };
    (
        parameters.par_chunks_mut(ELEMENTS_PER_TASK),
        gradient.par_chunks(ELEMENTS_PER_TASK),
        first_moment.par_chunks_mut(ELEMENTS_PER_TASK),
        second_moment.par_chunks_mut(ELEMENTS_PER_TASK),
    )
        .into_par_iter()
        .for_each(|(parameters, gradient, first_moment, second_moment)| {
            isa.run(Step { parameters, gradient, first_moment, second_moment, factors });
        });
}

/// What the settings come down to, computed once in f64.
#[derive(Clone, Copy)]
struct Factors {
    kept: f32,
    first_new: f32,
    second_kept: f32,
    second_new: f32,
    step_size: f32,
    root_factor: f32,
    eps: f32,
}

struct Step<'a> {
    parameters: &'a mut [f32],
    gradient: &'a [f32],
    first_moment: &'a mut [f32],
    second_moment: &'a mut [f32],
    factors: Factors,
}

impl Body for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Factors { kept, first_new, second_kept, second_new, step_size, root_factor, eps } = self.factors;
        for_each_vector!(self.parameters.len(), |start, vector| {
            let gradient = vector::load(s, self.gradient, start);
            let first = vector::load(s, self.first_moment, start);
            let first = s.mul_add(s.sub(gradient, first), s.splat(first_new), first);
            vector::store(s, first, self.first_moment, start);
            let second = s.mul(vector::load(s, self.second_moment, start), s.splat(second_kept));
            let second = s.mul_add(s.mul(gradient, gradient), s.splat(second_new), second);
            vector::store(s, second, self.second_moment, start);
            let divisor = s.mul_add(square_root(s, second), s.splat(root_factor), s.splat(eps));
            let parameters = s.mul(vector::load(s, self.parameters, start), s.splat(kept));
            let parameters = s.mul_add(s.div(first, divisor), s.splat(-step_size), parameters);
            vector::store(s, parameters, self.parameters, start);
        });
    }
}

/// The root of each lane. The sweep waits for memory, so the way through it costs nothing.
#[inline(always)]
fn square_root<S: Simd>(s: S, v: S::F32) -> S::F32 {
    let mut lanes = [0f32; LANES];
    s.store(v, &mut lanes);
    for lane in &mut lanes {
        *lane = lane.sqrt();
    }
    s.load(&lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{WIDTHS, assert_close, assert_same_in_any_threads, random, wide};

    const SETTINGS: AdamW = AdamW { lr: 3e-2, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.1, step: 1 };

    /// Three steps, by the formula in torch's documentation of `AdamW`.
    #[test]
    fn agrees_with_the_formula() {
        for len in WIDTHS {
            for isa in Isa::available() {
                let mut parameters = random::<f32>(len, 1);
                let (mut first, mut second) = (vec![0f32; len], vec![0f32; len]);
                let (mut expected, mut m, mut v) = (wide(&parameters), vec![0f64; len], vec![0f64; len]);
                for step in 1..=3 {
                    let gradient = random::<f32>(len, u64::from(step) + 1);
                    adamw(isa, &mut parameters, &gradient, &mut first, &mut second, &AdamW { step, ..SETTINGS });
                    for (i, g) in wide(&gradient).into_iter().enumerate() {
                        m[i] = 0.9 * m[i] + 0.1 * g;
                        v[i] = 0.99 * v[i] + 0.01 * g * g;
                        let corrected =
                            (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.99f64.powi(step as i32)));
                        expected[i] -= 3e-2 * 0.1 * expected[i];
                        expected[i] -= 3e-2 * corrected.0 / (corrected.1.sqrt() + 1e-3);
                    }
                    let what = format!("{isa:?}, {len} parameters, step {step}");
                    assert_close(&parameters, &expected, 1e-6, &what);
                    assert_close(&first, &m, 1e-6, &what);
                    assert_close(&second, &v, 1e-6, &what);
                }
            }
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let len = 5 * ELEMENTS_PER_TASK + 3;
        let (start, gradient) = (random::<f32>(len, 1), random::<f32>(len, 2));
        let work = || {
            let isa = *Isa::available().last().expect("there is always one");
            let (mut parameters, mut first, mut second) = (start.clone(), vec![0f32; len], vec![0f32; len]);
            adamw(isa, &mut parameters, &gradient, &mut first, &mut second, &SETTINGS);
            (parameters, first, second)
        };
        assert_same_in_any_threads(work, "AdamW");
    }
}
