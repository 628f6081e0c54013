//! Gaussian data, for tests: the best network is known, and so is where the probability-flow
//! equation leads.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::generator::Generator;
use crate::sigmas::alpha_sigma;
use crate::solver::Solver;

/// Standard deviation of the data.
const STD_DEV: f64 = 0.5;

/// How far the solver ends from the exact solution, which keeps in proportion to the standard
/// deviation of the samples. `sigmas` are the levels at its steps and at the end; `preserving`
/// says whether its samples are `α·x_0 + σ′·ε` or `x_0 + σ·ε`.
pub(crate) fn error(solver: &mut dyn Solver, sigmas: &[f64], preserving: bool) -> Result<f64> {
    let exact = |sigma: f64| {
        let exploding = (STD_DEV * STD_DEV + sigma * sigma).sqrt();
        if preserving { exploding * alpha_sigma(sigma).0 } else { exploding }
    };
    let calls = solver.timesteps().len();
    let mut sample = Tensor::new(&[[exact(sigmas[0]) as f32]], &Device::Cpu)?;
    for (index, sigma) in sigmas[..calls].iter().enumerate() {
        let (alpha, sigma) = alpha_sigma(*sigma);
        let input = solver.scale_model_input(&sample, index)?;
        let noise_share = sigma / ((alpha * STD_DEV).powi(2) + sigma * sigma);
        let epsilon = input.affine(noise_share, 0.0)?;
        sample = solver.step(&epsilon, index, &sample, &mut Generator::new(0).into())?.prev_sample;
    }
    let end = f64::from(sample.to_vec2::<f32>()?[0][0]);
    Ok((end - exact(sigmas[calls])).abs())
}
