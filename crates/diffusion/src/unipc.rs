//! UniPC (Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
//! Diffusion Models", 2023): a multistep predictor, and a corrector that reuses the network call at
//! the predicted point.

use std::collections::VecDeque;

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::linear_system::solve;
use crate::noise::NoiseSource;
use crate::prediction::PredictionType;
use crate::sigma_schedule::SigmaSchedule;
use crate::sigmas::alpha_sigma;
use crate::solver::{Solver, Step, check_index};

/// An order beyond all use; the systems that it asks to solve are hopelessly conditioned.
const MAX_ORDER: i64 = 9;

pub(crate) struct UniPc {
    schedule: SigmaSchedule,
    order: usize,
    /// Whether it works on predicted pictures; otherwise, on predicted noise.
    predict_x0: bool,
    /// `B(h) = e^h − 1` (B2 of the paper's section 3.1); otherwise `B(h) = h`.
    bh2: bool,
    lower_order_final: bool,
    /// Steps after which nothing is corrected.
    disable_corrector: Vec<i64>,
    prediction: PredictionType,
    clipping: Clipping,
    /// Predictions of this step and those before, at most `order`, the newest first.
    predictions: VecDeque<Tensor>,
    last: Option<Last>,
}

/// The step before: what the corrector goes back to.
struct Last {
    index: usize,
    sample: Tensor,
    order: usize,
}

impl UniPc {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.require_defaults(&[
            "use_flow_sigmas",
            "flow_shift",
            "use_dynamic_shifting",
            "time_shift_type",
            "shift_terminal",
            "solver_p",
        ])?;
        let predict_x0 = config.flag("predict_x0");
        let order = config.count("solver_order", 1, MAX_ORDER)?;
        let lower_order_final = config.flag("lower_order_final");
        if config.word("final_sigmas_type") == "zero" {
            if !predict_x0 {
                let supported = "sigma_min with predict_x0 false";
                return Err(config.unsupported("final_sigmas_type", supported));
            }
            if !lower_order_final && order > 1 {
                let supported = "sigma_min with lower_order_final false";
                return Err(config.unsupported("final_sigmas_type", supported));
            }
        }
        let disabled = config.numbers("disable_corrector").unwrap_or_default();
        Ok(Self {
            schedule: SigmaSchedule::multistep(config, steps)?,
            order,
            predict_x0,
            bh2: config.choice("solver_type", &[("bh2", true), ("bh1", false)])?,
            lower_order_final,
            disable_corrector: disabled.into_iter().map(|index| index as i64).collect(),
            prediction: PredictionType::from_config(config)?,
            clipping: Clipping::from_config(config)?,
            predictions: VecDeque::new(),
            last: None,
        })
    }

    /// What the method works on, a predicted picture or predicted noise. Only pictures are clipped.
    fn convert(&self, model_output: &Tensor, index: usize, sample: &Tensor) -> Result<Tensor> {
        let scales = alpha_sigma(self.schedule.sigmas[index]);
        if self.predict_x0 {
            let original = self.prediction.original_sample(model_output, sample, scales)?;
            self.clipping.apply(original)
        } else {
            self.prediction.epsilon(model_output, sample, scales)
        }
    }

    /// The step from level `index` to the next, of this order. `newer`, a prediction at the level
    /// that the step leads to, makes it the corrector (UniC); without one it is the predictor
    /// (UniP). `self.predictions` are those at `index` and before.
    fn update(&self, index: usize, sample: &Tensor, order: usize, newer: Option<&Tensor>) -> Result<Tensor> {
        let (sigma_s, sigma_t) = self.schedule.sigma_pair(index)?;
        let ((alpha_s, sigma_s), (alpha_t, sigma_t)) = (alpha_sigma(sigma_s), alpha_sigma(sigma_t));
        let lambda = self.schedule.lambda(index);
        let h = self.schedule.lambda(index + 1) - lambda;
        if h == 0.0 {
            // Spaced sigmas that end at sigma_min have a last step that leads nowhere.
            return Ok(sample.clone());
        }
        let (signed_h, kept, scale) =
            if self.predict_x0 { (-h, sigma_t / sigma_s, alpha_t) } else { (h, alpha_t / alpha_s, sigma_t) };
        let growth = signed_h.exp_m1();
        let b_h = if self.bh2 { growth } else { signed_h };

        // Where the predictions lie, as shares of the step: older ones before its start, a newer
        // one at its end.
        let ratio = |back: usize| (self.schedule.lambda(index - back) - lambda) / h;
        let mut ratios: Vec<f64> = (1..order).map(ratio).collect();
        if newer.is_some() {
            ratios.push(1.0);
        }
        let rhos = rhos(&ratios, signed_h, growth / signed_h, b_h);

        let mut newest_weight = -scale * growth;
        let mut terms = vec![(kept, sample)];
        let others = self.predictions.iter().skip(1).take(order - 1).chain(newer);
        for ((rho, ratio), prediction) in rhos.iter().zip(&ratios).zip(others) {
            let weight = -scale * b_h * rho / ratio;
            newest_weight -= weight;
            terms.push((weight, prediction));
        }
        terms.push((newest_weight, &self.predictions[0]));
        combine(&terms)
    }
}

/// The weights ρ of the differences at these `ratios`, from the paper's equation 11 with
/// `a_m·B(h) = m!·φ_{m+1}(h)` on the right; with one difference, the paper's simple 1/2.
/// `phi_1` is `(e^h − 1)/h`.
fn rhos(ratios: &[f64], h: f64, phi_1: f64, b_h: f64) -> Vec<f64> {
    if ratios.len() < 2 {
        return vec![0.5; ratios.len()];
    }
    let mut factorial = 1.0;
    let mut phi = phi_1 - 1.0;
    let mut right = Vec::with_capacity(ratios.len());
    for m in 1..=ratios.len() {
        right.push(phi * factorial / b_h);
        factorial *= (m + 1) as f64;
        phi = phi / h - 1.0 / factorial;
    }
    let powers = |m: i32| -> Vec<f64> { ratios.iter().map(|ratio| ratio.powi(m)).collect() };
    solve((0..ratios.len() as i32).map(powers).collect(), right)
}

impl Solver for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, _: &mut NoiseSource) -> Result<Step> {
        check_index(index, self.schedule.len())?;
        let prediction = self.convert(model_output, index, sample)?;
        let last = self.last.take().filter(|last| last.index + 1 == index);
        let sample = match last {
            Some(last) if !self.disable_corrector.contains(&(last.index as i64)) => {
                self.update(last.index, &last.sample, last.order, Some(&prediction))?
            }
            Some(_) => sample.clone(),
            None => {
                self.predictions.clear();
                sample.clone()
            }
        };
        self.predictions.push_front(prediction.clone());
        self.predictions.truncate(self.order);

        let left = self.schedule.len() - index;
        let highest = if self.lower_order_final { self.order.min(left) } else { self.order };
        let order = highest.min(self.predictions.len());
        let prev_sample = self.update(index, &sample, order, None)?;
        self.last = Some(Last { index, sample, order });
        let pred_original_sample = self.predict_x0.then_some(prediction);
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
    use crate::kind::SchedulerKind;

    #[test]
    fn rhos_satisfy_the_order_conditions() {
        // Σ ρ_k·r_k^(m−1) = m!·φ_{m+1}(h)/B(h), here with φ from its series.
        let (h, ratios) = (-0.3f64, [-0.8, -1.7, 1.0]);
        let phi = |order: i32| {
            let term = |k: i32| h.powi(k) / (1..=k + order).map(f64::from).product::<f64>();
            (0..20).map(term).sum::<f64>()
        };
        let b_h = h.exp_m1();
        let rhos = rhos(&ratios, h, b_h / h, b_h);
        for (m, factorial) in [(1, 1.0), (2, 2.0), (3, 6.0)] {
            let sum: f64 = rhos.iter().zip(ratios).map(|(rho, r)| rho * r.powi(m - 1)).sum();
            let right = factorial * phi(m + 1) * h / b_h;
            assert!((sum - right).abs() < 1e-9, "{m}: {sum}, not {right}");
        }
    }

    #[test]
    fn the_corrector_raises_the_order() -> Result<()> {
        let error = |disabled: Vec<i64>| -> Result<f64> {
            let config = SchedulerConfig::new(SchedulerKind::UniPcMultistep)
                .with("use_exponential_sigmas", true)?
                .with("final_sigmas_type", "sigma_min")?
                .with("disable_corrector", disabled)?;
            let mut solver = UniPc::new(&config, 30)?;
            let sigmas = solver.schedule.sigmas.clone();
            gaussian::error(&mut solver, &sigmas, true)
        };
        let (with, without) = (error(vec![])?, error((0..30).collect())?);
        assert!(with < 0.6 * without && without < 0.1, "{with} {without}");
        Ok(())
    }
}
