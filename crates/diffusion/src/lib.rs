//! Noise schedules and solvers of diffusion models, and random numbers that come out as PyTorch's.
//!
//! A [`SchedulerConfig`] is a diffusers `scheduler_config.json`, or one made from defaults; it can
//! be [converted](SchedulerConfig::convert) from one scheduler to another as diffusers does. From
//! it comes a [`Solver`] for a number of steps, which leads a sample from noise to a picture, and a
//! [`NoiseSchedule`], which training needs. A [`Generator`] gives the noise that
//! `torch.Generator("cpu")` gives for the same seed. With the same config, seed and network, a
//! solver takes the same steps as the diffusers class of the same name.
//!
//! The crate knows no network. Here one stands in that has seen nothing but grey, so that the noise
//! in any sample is known:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use pixart_diffusion::{Generator, NoiseSchedule, NoiseSource, SchedulerConfig, SchedulerKind, StepOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = SchedulerConfig::new(SchedulerKind::DpmSolverMultistep);
//! let schedule = NoiseSchedule::from_config(&config)?;
//! let network = |sample: &Tensor, timestep: f64| -> candle_core::Result<Tensor> {
//!     let alpha_cumprod = schedule.alphas_cumprod()[timestep as usize];
//!     let grey = 0.5 * alpha_cumprod.sqrt();
//!     (sample - grey)? / (1.0 - alpha_cumprod).sqrt()
//! };
//!
//! let mut solver = config.solver(10, &StepOptions::default())?;
//! let mut source = NoiseSource::from(Generator::new(42));
//! let noise = source.randn_tensor((1, 4, 8, 8), &Device::Cpu)?;
//! let mut sample = (noise * solver.init_noise_sigma())?;
//! for (index, timestep) in solver.timesteps().to_vec().into_iter().enumerate() {
//!     let input = solver.scale_model_input(&sample, index)?;
//!     let model_output = network(&input, timestep)?;
//!     sample = solver.step(&model_output, index, &sample, &mut source)?.prev_sample;
//! }
//!
//! for value in sample.flatten_all()?.to_vec1::<f32>()? {
//!     assert!((value - 0.5).abs() < 1e-4);
//! }
//! # Ok(())
//! # }
//! ```

mod bare_words;
mod beta_distribution;
mod clipping;
mod combine;
mod config;
mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod error;
mod euler;
mod euler_ancestral;
mod fields;
#[cfg(test)]
mod gaussian;
mod generator;
mod heun;
mod kind;
mod lcm;
mod linear_system;
mod noise;
mod prediction;
mod sa_coefficients;
mod sa_solver;
mod schedule;
mod sigma_schedule;
mod sigmas;
mod solver;
mod timesteps;
mod unipc;

pub use config::SchedulerConfig;
pub use error::{Error, Result};
pub use generator::Generator;
pub use kind::SchedulerKind;
pub use noise::NoiseSource;
pub use schedule::NoiseSchedule;
pub use solver::{Solver, Step, StepOptions};
