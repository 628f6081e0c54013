//! Multistep DPM-Solver (Lu et al., 2022a) and DPM-Solver++ (Lu et al., 2022b), for the
//! probability-flow equation and for the reverse stochastic one, of order 1 to 3.

use std::collections::VecDeque;

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::noise::NoiseSource;
use crate::prediction::{PredictionType, has_learned_variance, without_variance};
use crate::sigma_schedule::SigmaSchedule;
use crate::sigmas::alpha_sigma;
use crate::solver::{Solver, Step};

/// From this many steps on, the last steps may keep their full order.
const MANY_STEPS: usize = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    DpmSolver,
    DpmSolverPlusPlus,
    SdeDpmSolver,
    SdeDpmSolverPlusPlus,
}

impl Algorithm {
    fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let choices = [
            ("dpmsolver++", Self::DpmSolverPlusPlus),
            ("sde-dpmsolver++", Self::SdeDpmSolverPlusPlus),
            ("dpmsolver", Self::DpmSolver),
            ("sde-dpmsolver", Self::SdeDpmSolver),
        ];
        config.choice("algorithm_type", &choices)
    }

    /// Whether it works on predicted pictures; otherwise, on predicted noise.
    fn predicts_data(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }

    fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }

    /// The weights of a step from level `sigma_s` to `sigma_t`.
    fn weights(self, sigma_s: f64, sigma_t: f64) -> Weights {
        let h = sigma_s.ln() - sigma_t.ln();
        let ((alpha_s, sigma_s), (alpha_t, sigma_t)) = (alpha_sigma(sigma_s), alpha_sigma(sigma_t));
        match self {
            Self::DpmSolverPlusPlus => {
                let decay = (-h).exp_m1();
                Weights {
                    sample: sigma_t / sigma_s,
                    d0: -alpha_t * decay,
                    d1: alpha_t * (decay / h + 1.0),
                    d2: -alpha_t * ((decay + h) / h.powi(2) - 0.5),
                    noise: 0.0,
                }
            }
            Self::DpmSolver => {
                let growth = h.exp_m1();
                Weights {
                    sample: alpha_t / alpha_s,
                    d0: -sigma_t * growth,
                    d1: -sigma_t * (growth / h - 1.0),
                    d2: -sigma_t * ((growth - h) / h.powi(2) - 0.5),
                    noise: 0.0,
                }
            }
            Self::SdeDpmSolverPlusPlus => {
                let loss = -(-2.0 * h).exp_m1();
                Weights {
                    sample: sigma_t / sigma_s * (-h).exp(),
                    d0: alpha_t * loss,
                    d1: alpha_t * (1.0 - loss / (2.0 * h)),
                    d2: alpha_t * ((loss - 2.0 * h) / (2.0 * h).powi(2) - 0.5),
                    noise: sigma_t * loss.sqrt(),
                }
            }
            Self::SdeDpmSolver => {
                let growth = h.exp_m1();
                Weights {
                    sample: alpha_t / alpha_s,
                    d0: -2.0 * sigma_t * growth,
                    d1: -2.0 * sigma_t * (growth / h - 1.0),
                    d2: 0.0,
                    noise: sigma_t * (2.0 * h).exp_m1().sqrt(),
                }
            }
        }
    }
}

/// The weights of a step's terms: the sample, the last prediction, its first and second divided
/// differences, and noise.
#[derive(Debug, Clone, Copy)]
struct Weights {
    sample: f64,
    d0: f64,
    d1: f64,
    d2: f64,
    noise: f64,
}

pub(crate) struct DpmSolverMultistep {
    schedule: SigmaSchedule,
    algorithm: Algorithm,
    order: usize,
    /// The second-order method that takes the slope at the middle of a step.
    midpoint: bool,
    /// Whether the last step is of first order, and the last but one of second at most.
    first_order_last: bool,
    second_order_before_last: bool,
    learned_variance: bool,
    prediction: PredictionType,
    clipping: Clipping,
    /// Predictions of this step and those before, at most `order`, the newest first.
    predictions: VecDeque<Tensor>,
    /// The step to which the predictions lead up.
    next: usize,
}

impl DpmSolverMultistep {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.require_defaults(&["use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"])?;
        let schedule = SigmaSchedule::multistep(config, steps)?;
        let algorithm = Algorithm::from_config(config)?;
        let order = config.count("solver_order", 1, 3)?;
        if algorithm == Algorithm::SdeDpmSolver && order == 3 {
            return Err(config.unsupported("solver_order", "1 and 2 with sde-dpmsolver"));
        }
        let ends_at_zero = config.word("final_sigmas_type") == "zero";
        if ends_at_zero && !algorithm.predicts_data() {
            let supported = "sigma_min with dpmsolver and sde-dpmsolver";
            return Err(config.unsupported("final_sigmas_type", supported));
        }
        let midpoint = config.choice("solver_type", &[("midpoint", true), ("heun", false)])?;
        let few = schedule.len() < MANY_STEPS;
        let lower_order = config.flag("lower_order_final") && few;
        Ok(Self {
            schedule,
            algorithm,
            order,
            midpoint,
            first_order_last: ends_at_zero || lower_order || config.flag("euler_at_final"),
            second_order_before_last: lower_order,
            learned_variance: has_learned_variance(config)?,
            prediction: PredictionType::from_config(config)?,
            clipping: Clipping::from_config(config)?,
            predictions: VecDeque::new(),
            next: 0,
        })
    }

    /// What the algorithm works on, a predicted picture or predicted noise.
    fn convert(&self, model_output: &Tensor, index: usize, sample: &Tensor) -> Result<Tensor> {
        let scales = alpha_sigma(self.schedule.sigmas[index]);
        if self.algorithm.predicts_data() || self.clipping != Clipping::None {
            let original = self.prediction.original_sample(model_output, sample, scales)?;
            let original = self.clipping.apply(original)?;
            if self.algorithm.predicts_data() {
                Ok(original)
            } else {
                PredictionType::Sample.epsilon(&original, sample, scales)
            }
        } else {
            self.prediction.epsilon(model_output, sample, scales)
        }
    }

    /// The order of step `index`: as high as there are predictions, but lower at the end.
    fn order_at(&self, index: usize) -> usize {
        let left = self.schedule.len() - index;
        let allowed = match left {
            1 if self.first_order_last => 1,
            2 if self.second_order_before_last => 2,
            _ => self.order,
        };
        allowed.min(self.order).min(self.predictions.len())
    }

    /// The weights of the predictions, the newest first: those of the divided differences
    /// (Lu et al., 2022b, appendix B), resolved.
    fn prediction_weights(&self, weights: &Weights, index: usize) -> Vec<f64> {
        let order = self.order_at(index);
        let lambda = |back: usize| self.schedule.lambda(index - back);
        let h = self.schedule.lambda(index + 1) - lambda(0);
        // Spaced sigmas that end at sigma_min have a last step that leads nowhere.
        if order == 1 || h == 0.0 {
            return vec![weights.d0];
        }
        let r0 = (lambda(0) - lambda(1)) / h;
        if order == 2 {
            let d1 = if self.midpoint { 0.5 * weights.d0 } else { weights.d1 };
            return vec![weights.d0 + d1 / r0, -d1 / r0];
        }
        let r1 = (lambda(1) - lambda(2)) / h;
        // With the divided differences D10 = (m0 − m1)/r0 and D11 = (m1 − m2)/r1, the first is
        // D1 = D10 + r0·D2 and the second D2 = (D10 − D11)/(r0 + r1).
        let second = (r0 * weights.d1 + weights.d2) / (r0 + r1);
        let (newer, older) = ((weights.d1 + second) / r0, -second / r1);
        vec![weights.d0 + newer, older - newer, -older]
    }
}

impl Solver for DpmSolverMultistep {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step> {
        let (sigma, sigma_next) = self.schedule.sigma_pair(index)?;
        if index != self.next {
            self.predictions.clear();
        }
        self.next = index + 1;
        let model_output =
            if self.learned_variance { without_variance(model_output, sample)? } else { model_output.clone() };
        let prediction = self.convert(&model_output, index, sample)?;
        self.predictions.push_front(prediction.clone());
        self.predictions.truncate(self.order);

        let weights = self.algorithm.weights(sigma, sigma_next);
        let noise;
        let mut terms = vec![(weights.sample, sample)];
        terms.extend(self.prediction_weights(&weights, index).into_iter().zip(&self.predictions));
        if self.algorithm.is_stochastic() {
            noise = source.randn_tensor(sample.shape(), sample.device())?;
            terms.push((weights.noise, &noise));
        }
        let prev_sample = combine(&terms)?;
        let pred_original_sample = self.algorithm.predicts_data().then_some(prediction);
        Ok(Step { prev_sample, pred_original_sample })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        self.schedule.add_noise_preserving(original_samples, noise, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaussian;
    use crate::generator::Generator;
    use crate::kind::SchedulerKind;
    use serde_json::{Value, json};

    fn solver(fields: Vec<(&str, Value)>, steps: usize) -> Result<DpmSolverMultistep> {
        let mut config = SchedulerConfig::new(SchedulerKind::DpmSolverMultistep);
        for (field, value) in fields {
            config = config.with(field, value)?;
        }
        DpmSolverMultistep::new(&config, steps)
    }

    #[test]
    fn the_order_rises_and_falls() -> Result<()> {
        let zero = Tensor::new(&[0f32], &candle_core::Device::Cpu)?;
        let orders = |fields: Vec<(&str, Value)>, steps| -> Result<Vec<usize>> {
            let mut solver = solver(fields, steps)?;
            (0..steps)
                .map(|index| {
                    solver.step(&zero, index, &zero, &mut Generator::new(0).into())?;
                    Ok(solver.order_at(index))
                })
                .collect()
        };
        let third = ("solver_order", json!(3));
        let full = ("lower_order_final", json!(false));
        let min = ("final_sigmas_type", json!("sigma_min"));
        assert_eq!(orders(vec![], 4)?, [1, 2, 2, 1]);
        assert_eq!(orders(vec![third.clone()], 5)?, [1, 2, 3, 2, 1]);
        assert_eq!(orders(vec![third.clone()], 15)?[12..], [3, 3, 1]);
        assert_eq!(orders(vec![third.clone(), full.clone()], 5)?, [1, 2, 3, 3, 1]);
        assert_eq!(orders(vec![third, full, min], 5)?, [1, 2, 3, 3, 3]);
        Ok(())
    }

    #[test]
    fn weights_of_one_prediction_add_up() -> Result<()> {
        // Where all predictions agree, every order takes the same step.
        for order in [1, 2, 3] {
            let mut solver = solver(vec![("solver_order", json!(order))], 20)?;
            let zero = Tensor::new(0f32, &candle_core::Device::Cpu)?;
            solver.predictions.extend(vec![zero; 3]);
            let weights = solver.algorithm.weights(2.0, 1.5);
            let sum: f64 = solver.prediction_weights(&weights, 7).iter().sum();
            assert!((sum - weights.d0).abs() < 1e-12, "{order}");
        }
        Ok(())
    }

    #[test]
    fn halving_the_steps_gains_what_the_order_promises() -> Result<()> {
        let error = |order: i64, solver_type: &str, steps| -> Result<f64> {
            let fields = vec![
                ("solver_order", json!(order)),
                ("solver_type", json!(solver_type)),
                ("use_exponential_sigmas", json!(true)),
                ("final_sigmas_type", json!("sigma_min")),
            ];
            let mut solver = solver(fields, steps)?;
            let sigmas = solver.schedule.sigmas.clone();
            gaussian::error(&mut solver, &sigmas, true)
        };
        let gain =
            |order, solver_type| -> Result<f64> { Ok(error(order, solver_type, 30)? / error(order, solver_type, 60)?) };
        let (first, second) = (gain(1, "midpoint")?, gain(2, "midpoint")?);
        assert!((first - 2.0).abs() < 0.1 && (second - 4.0).abs() < 0.5, "{first} {second}");
        let heun = gain(2, "heun")?;
        assert!((heun - 4.0).abs() < 1.5, "{heun}");
        Ok(())
    }
}
