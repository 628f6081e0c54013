//! The loss of diffusion with a learned variance (Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic
//! Models"); numbers in brackets are its equations.

use std::f64::consts::{LN_2, PI};

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// Timesteps of a schedule.
pub(crate) const TIMESTEPS: usize = 1000;

/// The first and the last beta; the others lie evenly between them.
const BETAS: [f64; 2] = [1e-4, 0.02];

/// Half of the width of the bins in which the last step's probability is taken, and the least of it.
const HALF_BIN: f64 = 1.0 / 255.0;
const LEAST_PROBABILITY: f64 = 1e-12;

/// The loss of diffusion with a learned variance.
pub struct HybridLoss {
    betas: Vec<f64>,
    /// Products of all 1 - beta up to a timestep.
    products: Vec<f64>,
    /// Logarithms of the variance of x_(t-1) given x_t and x_0 (10).
    log_least_variances: Vec<f64>,
}

/// A loss for each image, `[batch]`.
pub struct Losses {
    /// Of the noise (14).
    pub mse: Tensor,
    /// Of the variance, in bits (4).
    pub vb: Tensor,
}

impl Default for HybridLoss {
    fn default() -> Self {
        Self::new()
    }
}

impl HybridLoss {
    /// For PixArt's schedule.
    pub fn new() -> Self {
        let step = (BETAS[1] - BETAS[0]) / (TIMESTEPS - 1) as f64;
        let betas: Vec<f64> = (0..TIMESTEPS).map(|t| BETAS[0] + step * t as f64).collect();
        let products: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        let variance = |t: usize| (1.0 - products[t - 1]) / (1.0 - products[t]) * betas[t];
        // That of timestep 0 is 0, which has no logarithm.
        let log_least_variances = (0..TIMESTEPS).map(|t| variance(t.max(1)).ln()).collect();
        Self { betas, products, log_least_variances }
    }

    /// How much louder the picture is than the noise at timestep `t`.
    pub fn signal_to_noise(&self, t: usize) -> f64 {
        signal_to_noise(self.products[t])
    }

    /// `x_t` of `x0` and `noise` (9).
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Tensor> {
        let signal = column(ts, x0.device(), |t| self.products[t].sqrt())?;
        let loudness = column(ts, x0.device(), |t| (1.0 - self.products[t]).sqrt())?;
        Ok((x0.broadcast_mul(&signal)? + noise.broadcast_mul(&loudness)?)?)
    }

    /// The losses of a network's `output`, `[batch, 2 · channels, height, width]`: noise, then what the variance is made
    /// from. The gradient of `vb` does not reach the noise.
    pub fn losses(&self, output: &Tensor, x_t: &Tensor, x0: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Losses> {
        let (device, channels) = (x0.device(), x0.dim(1)?);
        let at = |value: &dyn Fn(usize) -> f64| column(ts, device, value);
        let eps = output.narrow(1, 0, channels)?;
        let mse = mean_of_images(&(noise - &eps)?.sqr()?)?;

        let before = |t: usize| if t == 0 { 1.0 } else { self.products[t - 1] };
        let x0_of_eps = (x_t.broadcast_mul(&at(&|t| self.products[t].sqrt().recip())?)?
            - eps.detach().broadcast_mul(&at(&|t| (1.0 / self.products[t] - 1.0).sqrt())?)?)?;
        // The means (11) of truth and prediction have the same part of x_t.
        let of_x0 = at(&|t| self.betas[t] * before(t).sqrt() / (1.0 - self.products[t]))?;
        let least = at(&|t| self.log_least_variances[t])?;
        let range = at(&|t| self.betas[t].ln() - self.log_least_variances[t])?;
        let u = ((output.narrow(1, channels, channels)? + 1.0)? * 0.5)?;
        let ratio = u.broadcast_mul(&range)?;
        let log_variance = ratio.broadcast_add(&least)?;
        let off = (x0 - &x0_of_eps)?.broadcast_mul(&of_x0)?.sqr()?;
        let divergence = (((&ratio - 1.0)? + ratio.neg()?.exp()?)? + (off / log_variance.exp()?)?)?;
        let mut nats = (divergence * 0.5)?;
        if ts.contains(&0) {
            let of_x_t = at(&|t| (1.0 - self.betas[t]).sqrt() * (1.0 - before(t)) / (1.0 - self.products[t]))?;
            let mean = (x0_of_eps.broadcast_mul(&of_x0)? + x_t.broadcast_mul(&of_x_t)?)?;
            let likelihood = log_probability(x0, &mean, &log_variance)?;
            let is_last = at(&|t| f64::from(u8::from(t == 0)))?.broadcast_as(nats.shape())?;
            nats = is_last.ne(0.0)?.where_cond(&likelihood.neg()?, &nats)?;
        }
        Ok(Losses { mse, vb: (mean_of_images(&nats)? / LN_2)? })
    }
}

/// The logarithm of the probability of the bin around `x` in a normal distribution; the outermost bins have no end (5).
fn log_probability(x: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<Tensor> {
    let deviation = (log_variance * 0.5)?.exp()?;
    let centred = (x - mean)?;
    let above = normal_cdf(&((&centred + HALF_BIN)? / &deviation)?)?;
    let below = normal_cdf(&((&centred - HALF_BIN)? / &deviation)?)?;
    let inside = (&above - &below)?;
    let probability = x.gt(0.999)?.where_cond(&(1.0 - below)?, &inside)?;
    let probability = x.lt(-0.999)?.where_cond(&above, &probability)?;
    Ok(probability.maximum(LEAST_PROBABILITY)?.log()?)
}

/// The approximation by tanh that PixArt's own training has.
fn normal_cdf(x: &Tensor) -> Result<Tensor> {
    let cubic = ((x * x)? * x)?;
    Ok(((((x + (cubic * 0.044715)?)? * (2.0 / PI).sqrt())?.tanh()? + 1.0)? * 0.5)?)
}

/// How much louder the picture is than the noise where the signal has this part ᾱ of the variance.
pub(crate) fn signal_to_noise(signal: f64) -> f64 {
    signal / (1.0 - signal)
}

/// A number for each image, `[batch, 1, 1, 1]`, f32.
pub(crate) fn column(ts: &[usize], device: &Device, value: impl Fn(usize) -> f64) -> Result<Tensor> {
    let values: Vec<f32> = ts.iter().map(|t| value(*t) as f32).collect();
    Ok(Tensor::from_vec(values, (ts.len(), 1, 1, 1), device)?)
}

/// `[batch, ...]` to `[batch]`.
pub(crate) fn mean_of_images(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.to_dtype(DType::F32)?.flatten_from(1)?.mean(1)?)
}
