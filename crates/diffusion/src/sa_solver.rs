//! SA-Solver (Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion
//! Models", 2023): an Adams–Bashforth predictor and an Adams–Moulton corrector for the reverse
//! stochastic equation, with as much noise `τ(t)` as wanted.

use std::collections::VecDeque;

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::noise::NoiseSource;
use crate::prediction::{PredictionType, has_learned_variance, without_variance};
use crate::sa_coefficients::{data_coefficients, noise_coefficients};
use crate::schedule::{NoiseSchedule, noisy};
use crate::sigma_schedule::SigmaSchedule;
use crate::sigmas::alpha_sigma;
use crate::solver::{Solver, Step, check_index};

pub(crate) struct SaSolver {
    noise_schedule: NoiseSchedule,
    schedule: SigmaSchedule,
    predictor_order: usize,
    corrector_order: usize,
    /// Whether it works on predicted pictures; otherwise, on predicted noise.
    predict_x0: bool,
    lower_order_final: bool,
    learned_variance: bool,
    prediction: PredictionType,
    clipping: Clipping,
    /// Predictions of this step and those before, the newest first.
    predictions: VecDeque<Tensor>,
    last: Option<Last>,
}

/// The step before: what the corrector goes back to.
struct Last {
    index: usize,
    sample: Tensor,
    noise: Tensor,
    corrector_order: usize,
}

impl SaSolver {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.require_defaults(&["use_flow_sigmas", "flow_shift", "tau_func"])?;
        let algorithms = [("data_prediction", true), ("noise_prediction", false)];
        Ok(Self {
            noise_schedule: NoiseSchedule::from_config(config)?,
            schedule: SigmaSchedule::multistep(config, steps)?,
            predictor_order: config.count("predictor_order", 1, 4)?,
            corrector_order: config.count("corrector_order", 1, 4)?,
            predict_x0: config.choice("algorithm_type", &algorithms)?,
            lower_order_final: config.flag("lower_order_final"),
            learned_variance: has_learned_variance(config)?,
            prediction: PredictionType::from_config(config)?,
            clipping: Clipping::from_config(config)?,
            predictions: VecDeque::new(),
            last: None,
        })
    }

    /// How many predictions are of use later.
    fn capacity(&self) -> usize {
        self.predictor_order.max(self.corrector_order - 1)
    }

    /// `τ` of the step at `index`: noise in the middle of the way only, the class's default.
    fn tau(&self, index: usize) -> f64 {
        if (200.0..=800.0).contains(&self.schedule.timesteps[index]) { 1.0 } else { 0.0 }
    }

    /// What the method works on, a predicted picture or predicted noise.
    fn convert(&self, model_output: &Tensor, index: usize, sample: &Tensor) -> Result<Tensor> {
        let scales = alpha_sigma(self.schedule.sigmas[index]);
        if !self.predict_x0 && self.clipping == Clipping::None {
            return self.prediction.epsilon(model_output, sample, scales);
        }
        let original = self.prediction.original_sample(model_output, sample, scales)?;
        let original = self.clipping.apply(original)?;
        if self.predict_x0 { Ok(original) } else { PredictionType::Sample.epsilon(&original, sample, scales) }
    }

    /// The step from level `index` to the next, from the predictions at levels `newest`,
    /// `newest − 1` and so on.
    fn update(
        &self,
        index: usize,
        sample: &Tensor,
        noise: &Tensor,
        newest: usize,
        predictions: &[&Tensor],
    ) -> Result<Tensor> {
        let (sigma_s, sigma_t) = self.schedule.sigma_pair(index)?;
        let ((alpha_s, sigma_s), (alpha_t, sigma_t)) = (alpha_sigma(sigma_s), alpha_sigma(sigma_t));
        let lambdas: Vec<f64> = (0..predictions.len()).map(|back| self.schedule.lambda(newest - back)).collect();
        let interval = (self.schedule.lambda(index), self.schedule.lambda(index + 1));
        let h = interval.1 - interval.0;
        let tau_squared = self.tau(index).powi(2);
        let rate = 1.0 + tau_squared;

        let (kept, scale, noise_weight, coefficients) = if self.predict_x0 {
            let mut coefficients = data_coefficients(&lambdas, interval, rate);
            if predictions.len() == 2 {
                let shift = second_order_shift(interval, rate, newest > index);
                // The predictor's slope is that between its two levels.
                let gap = if newest > index { 1.0 } else { lambdas[0] - lambdas[1] };
                coefficients[0] += shift / gap;
                coefficients[1] -= shift / gap;
            }
            (
                (-tau_squared * h).exp() * sigma_t / sigma_s,
                rate * sigma_t * (-tau_squared * interval.1).exp(),
                sigma_t * (-(-2.0 * tau_squared * h).exp_m1()).sqrt(),
                coefficients,
            )
        } else {
            (
                alpha_t / alpha_s,
                -rate * alpha_t,
                tau_squared.sqrt() * sigma_t * (2.0 * h).exp_m1().sqrt(),
                noise_coefficients(&lambdas, interval),
            )
        };
        let mut terms = vec![(kept, sample), (noise_weight, noise)];
        for (coefficient, prediction) in coefficients.iter().zip(predictions) {
            terms.push((scale * coefficient, *prediction));
        }
        combine(&terms)
    }
}

/// What diffusers adds to the two coefficients of the second-order methods, a term of the third
/// order in the step that helps where steps are few.
fn second_order_shift((start, end): (f64, f64), rate: f64, corrector: bool) -> f64 {
    let h = end - start;
    let integral = (h * rate + (-rate * h).exp_m1()) / (rate * rate);
    let difference = if corrector { h / 2.0 - integral / h } else { h * h / 2.0 - integral };
    (rate * end).exp() * difference
}

impl Solver for SaSolver {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step> {
        check_index(index, self.schedule.len())?;
        let model_output =
            if self.learned_variance { without_variance(model_output, sample)? } else { model_output.clone() };
        let prediction = self.convert(&model_output, index, sample)?;
        let sample = match self.last.take().filter(|last| last.index + 1 == index) {
            Some(last) => {
                let older = self.predictions.iter().take(last.corrector_order - 1);
                let predictions: Vec<&Tensor> = std::iter::once(&prediction).chain(older).collect();
                self.update(last.index, &last.sample, &last.noise, index, &predictions)?
            }
            None => {
                self.predictions.clear();
                sample.clone()
            }
        };
        self.predictions.push_front(prediction.clone());
        self.predictions.truncate(self.capacity());

        let noise = source.randn_tensor(sample.shape(), sample.device())?;
        let left = self.schedule.len() - index;
        let at_end = |order: usize, left: usize| if self.lower_order_final { order.min(left) } else { order };
        let known = self.predictions.len();
        let predictor_order = at_end(self.predictor_order, left).min(known);
        let corrector_order = at_end(self.corrector_order, left + 1).min(known + 1);
        let predictions: Vec<&Tensor> = self.predictions.iter().take(predictor_order).collect();
        let prev_sample = self.update(index, &sample, &noise, index, &predictions)?;
        self.last = Some(Last { index, sample, noise, corrector_order });
        let pred_original_sample = self.predict_x0.then_some(prediction);
        Ok(Step { prev_sample, pred_original_sample })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        check_index(index, self.schedule.len())?;
        let alphas = self.noise_schedule.alphas_at(&self.schedule.timesteps[index..=index])?;
        noisy(original_samples, noise, alphas[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaussian;
    use crate::kind::SchedulerKind;

    #[test]
    fn without_noise_it_solves_the_ordinary_equation() -> Result<()> {
        // τ is 0 below timestep 200, and this schedule has no others.
        let config =
            SchedulerConfig::new(SchedulerKind::SaSolver).with("num_train_timesteps", 200)?.with("beta_end", 0.05)?;
        let error = |predictor: i64, steps| -> Result<f64> {
            let config = config.clone().with("predictor_order", predictor)?.with("corrector_order", predictor)?;
            let mut solver = SaSolver::new(&config, steps)?;
            let sigmas = solver.schedule.sigmas.clone();
            gaussian::error(&mut solver, &sigmas, true)
        };
        let (first, third) = (error(1, 40)?, error(3, 40)?);
        assert!(third < first / 5.0 && first < 0.1, "{first} {third}");
        Ok(())
    }
}
