//! What all solvers have in common, and how one is made from a config.

use candle_core::Tensor;

use crate::config::SchedulerConfig;
use crate::ddim::Ddim;
use crate::ddpm::Ddpm;
use crate::dpm_solver_multistep::DpmSolverMultistep;
use crate::error::{Error, Result};
use crate::euler::Euler;
use crate::euler_ancestral::EulerAncestral;
use crate::heun::Heun;
use crate::kind::SchedulerKind;
use crate::lcm::Lcm;
use crate::noise::NoiseSource;
use crate::sa_solver::SaSolver;
use crate::sigma_schedule::SigmaSchedule;
use crate::unipc::UniPc;

/// What a step gives back; both tensors have the sample's shape.
#[derive(Debug, Clone)]
pub struct Step {
    /// The sample at the next, less noisy step; after the last step, the picture.
    pub prev_sample: Tensor,
    /// The picture as this step sees it, for previews; `None` from solvers that work on noise.
    /// Of LCM, the denoised sample after the boundary condition.
    pub pred_original_sample: Option<Tensor>,
}

/// Options of a solver's steps, which are no part of a scheduler config.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// DDIM's η, from 0 (no noise) to 1 (as much as DDPM); others ignore it.
    pub eta: f64,
    /// Euler's S_churn, the noise added and removed over all steps, 0 or more; others ignore it.
    /// This and the next three are those of Karras et al. (2022), Algorithm 2.
    pub s_churn: f64,
    /// Euler's S_tmin: noise is added at σ from here.
    pub s_tmin: f64,
    /// Euler's S_tmax: noise is added at σ up to here.
    pub s_tmax: f64,
    /// Euler's S_noise, the standard deviation of the added noise.
    pub s_noise: f64,
    /// The share of LCM's grid, from its clean end, that the steps are chosen from: above 0 and up to 1. It begins from a
    /// picture with noise. Others ignore it: they begin at a later step.
    pub strength: f64,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self { eta: 0.0, s_churn: 0.0, s_tmin: 0.0, s_tmax: f64::INFINITY, s_noise: 1.0, strength: 1.0 }
    }
}

/// A way from noise to a picture, for one number of steps.
///
/// Begin with standard normal noise times [`init_noise_sigma`](Self::init_noise_sigma). For each
/// index of [`timesteps`](Self::timesteps) in order, give the network
/// [`scale_model_input`](Self::scale_model_input) of the sample and the timestep, and the network's
/// output to [`step`](Self::step). One may begin at a later index, a multiple of
/// [`order`](Self::order), from a picture with the noise of [`add_noise`](Self::add_noise). A
/// solver that has come to the end can begin again.
///
/// Samples are float32 tensors `[batch, channels, height, width]`, on any device.
pub trait Solver: Send {
    /// The timestep that the network is told at each step, from noisy to clean. Heun's has the two
    /// network calls of a step side by side.
    fn timesteps(&self) -> &[f64];

    /// Network calls in one step of the method: 2 for Heun, 1 for all others.
    fn order(&self) -> usize {
        1
    }

    /// The standard deviation of the noise to begin with.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The sample as the network is to see it at step `index`.
    ///
    /// # Errors
    /// If there is no such step, or a tensor operation fails.
    fn scale_model_input(&self, sample: &Tensor, index: usize) -> Result<Tensor> {
        check_index(index, self.timesteps().len())?;
        Ok(sample.clone())
    }

    /// Whether [`step`](Self::step) needs the network's variance too: a model output of twice as
    /// many channels as the sample. Otherwise it takes the predicted noise alone.
    fn uses_learned_variance(&self) -> bool {
        false
    }

    /// One step: from the sample at step `index` and the network's output for it to the sample of
    /// the step after.
    ///
    /// `model_output` has the sample's shape (but see
    /// [`uses_learned_variance`](Self::uses_learned_variance)), after guidance. Noise is drawn from
    /// `source` in the sample's shape, at the steps at which diffusers draws it.
    ///
    /// # Errors
    /// If there is no such step, the shapes do not fit, or a tensor operation fails.
    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step>;

    /// A clean picture with the noise that a sample has before step `index`. `noise` is standard
    /// normal and has the shape of `original_samples`.
    ///
    /// # Errors
    /// If there is no such step, or the tensors do not agree.
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor>;
}

impl SchedulerConfig {
    /// A solver of this config for `num_inference_steps` steps.
    ///
    /// # Errors
    /// If the number of steps is 0 or above [`max_steps`](Self::max_steps), if the config has a
    /// value that is not supported, or if an option is out of its range.
    pub fn solver(&self, num_inference_steps: usize, options: &StepOptions) -> Result<Box<dyn Solver>> {
        let (scheduler, steps) = (self.kind(), num_inference_steps);
        if steps == 0 {
            return Err(Error::ZeroSteps { scheduler });
        }
        let max = self.max_steps()?;
        if steps > max {
            return Err(Error::TooManySteps { scheduler, steps, max });
        }
        let solver: Box<dyn Solver> = match scheduler {
            SchedulerKind::Lcm => Box::new(Lcm::new(self, steps, options.strength)?),
            SchedulerKind::DpmSolverMultistep => Box::new(DpmSolverMultistep::new(self, steps)?),
            SchedulerKind::Ddim => Box::new(Ddim::new(self, steps, options)?),
            SchedulerKind::Ddpm => Box::new(Ddpm::new(self, steps)?),
            SchedulerKind::EulerDiscrete => Box::new(Euler::new(self, steps, options)?),
            SchedulerKind::EulerAncestralDiscrete => Box::new(EulerAncestral::new(self, steps)?),
            SchedulerKind::HeunDiscrete => Box::new(Heun::new(self, steps)?),
            SchedulerKind::UniPcMultistep => Box::new(UniPc::new(self, steps)?),
            SchedulerKind::SaSolver => Box::new(SaSolver::new(self, steps)?),
        };
        Ok(solver)
    }

    /// The largest number of inference steps: as many as there are timesteps for them, and for LCM
    /// as many as its distillation grid has (`original_inference_steps`).
    ///
    /// # Errors
    /// If the config's values leave no schedule.
    pub fn max_steps(&self) -> Result<usize> {
        match self.kind() {
            SchedulerKind::Lcm => Lcm::original_inference_steps(self),
            SchedulerKind::DpmSolverMultistep | SchedulerKind::UniPcMultistep | SchedulerKind::SaSolver => {
                SigmaSchedule::multistep_max_steps(self)
            }
            _ => self.num_train_timesteps(),
        }
    }
}

/// Refuses a step that there is not.
pub(crate) fn check_index(index: usize, len: usize) -> Result<()> {
    if index < len { Ok(()) } else { Err(Error::StepOutOfRange { index, len }) }
}
