//! The schedulers that there are, and their names.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The schedulers that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// Multistep sampling of latent consistency models (Luo et al., 2023, arXiv 2310.04378).
    Lcm,
    /// DPM-Solver and DPM-Solver++, ODE and SDE (Lu et al., 2022, arXiv 2206.00927 and 2211.01095).
    DpmSolverMultistep,
    /// Denoising diffusion implicit models (Song et al., 2020, arXiv 2010.02502).
    Ddim,
    /// Denoising diffusion probabilistic models (Ho et al., 2020, arXiv 2006.11239).
    Ddpm,
    /// Euler's method in the formulation of Karras et al. (2022, arXiv 2206.00364, Algorithm 2 at first order).
    EulerDiscrete,
    /// Euler's method with ancestral noise, as in k-diffusion.
    EulerAncestralDiscrete,
    /// Heun's method (Karras et al., 2022, arXiv 2206.00364, Algorithm 1).
    HeunDiscrete,
    /// Unified predictor–corrector (Zhao et al., 2023, arXiv 2302.04867).
    UniPcMultistep,
    /// Stochastic Adams solver (Xue et al., 2023, arXiv 2309.05019).
    SaSolver,
}

impl SchedulerKind {
    /// All schedulers, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Lcm,
        Self::DpmSolverMultistep,
        Self::Ddim,
        Self::Ddpm,
        Self::EulerDiscrete,
        Self::EulerAncestralDiscrete,
        Self::HeunDiscrete,
        Self::UniPcMultistep,
        Self::SaSolver,
    ];

    /// The short name, as a command line takes it: `dpm-solver++`.
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The name of the diffusers class, as `_class_name` in a config has it: `DPMSolverMultistepScheduler`.
    pub fn class_name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Lcm => ("lcm", "LCMScheduler"),
            Self::DpmSolverMultistep => ("dpm-solver++", "DPMSolverMultistepScheduler"),
            Self::Ddim => ("ddim", "DDIMScheduler"),
            Self::Ddpm => ("ddpm", "DDPMScheduler"),
            Self::EulerDiscrete => ("euler", "EulerDiscreteScheduler"),
            Self::EulerAncestralDiscrete => ("euler-ancestral", "EulerAncestralDiscreteScheduler"),
            Self::HeunDiscrete => ("heun", "HeunDiscreteScheduler"),
            Self::UniPcMultistep => ("unipc", "UniPCMultistepScheduler"),
            Self::SaSolver => ("sa-solver", "SASolverScheduler"),
        }
    }

    /// All short names and their suffixes, for messages.
    pub fn known_names() -> String {
        let names = Self::ALL.map(Self::name).join(", ");
        format!("{names} (and dpm-solver++-sde; with suffix -karras: dpm-solver++, euler, heun, unipc, sa-solver)")
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Takes a short name or the name of a diffusers class.
impl FromStr for SchedulerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| name == kind.name() || name == kind.class_name())
            .ok_or_else(|| Error::UnknownScheduler { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_their_kind() -> Result<()> {
        for kind in SchedulerKind::ALL {
            assert_eq!(kind.name().parse::<SchedulerKind>()?, kind);
            assert_eq!(kind.class_name().parse::<SchedulerKind>()?, kind);
        }
        let error = "plms".parse::<SchedulerKind>().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("plms") && error.contains("dpm-solver++, ddim"), "{error}");
        Ok(())
    }
}
