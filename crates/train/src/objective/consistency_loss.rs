//! Latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", algorithm 1; PixArt-δ, Chen et al. 2024,
//! section 3): a student is to say from `z_t` what it says one step of the teacher, or several, later.

use candle_core::Tensor;
use pixart_diffusion::{NoiseSchedule, SchedulerConfig, SchedulerKind};

use super::ConsistencySettings;
use super::hybrid_loss::{column, signal_to_noise};
use crate::Result;
use crate::random::pick;

/// Standard deviation of the data, and what timesteps are multiplied with, in the consistency function.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

/// The loss of a distillation.
pub struct ConsistencyLoss {
    settings: ConsistencySettings,
    timesteps: Vec<usize>,
    /// For each timestep, how often it or one before it in that list is drawn.
    cumulative: Vec<f64>,
    schedule: NoiseSchedule,
}

/// What a step is given.
pub struct ConsistencyInputs<'a> {
    /// `[batch, channels, height, width]`, as a transformer takes them.
    pub latents: &'a Tensor,
    /// Standard normal, of the same shape.
    pub noise: &'a Tensor,
    /// For each image, which of the timesteps that are learned it has: 0 is the last, next to the picture.
    pub indices: &'a [usize],
}

/// What a step comes to.
pub struct ConsistencyTerms {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// What the student says, of the latents' shape.
    pub prediction: Tensor,
    /// What it is to say.
    pub target: Tensor,
    /// Where the teacher's steps led.
    pub z_s: Tensor,
}

impl ConsistencyLoss {
    /// For PixArt's schedule.
    ///
    /// # Errors
    /// Settings that are out of range.
    pub fn new(settings: ConsistencySettings) -> Result<Self> {
        settings.validate().map_err(candle_core::Error::Msg)?;
        let timesteps = settings.timesteps().map_err(candle_core::Error::Msg)?;
        let schedule = NoiseSchedule::from_config(&SchedulerConfig::new(SchedulerKind::Ddpm))?;
        let by_noise = |t: &usize| signal_to_noise(schedule.alphas_cumprod()[*t]).powf(settings.snr_power);
        let weights: Vec<f64> = match &settings.timestep_shares {
            Some(shares) => shares.iter().rev().copied().collect(),
            None => timesteps.iter().map(by_noise).collect(),
        };
        let all: f64 = weights.iter().sum();
        let cumulative = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight / all;
            Some(*sum)
        });
        Ok(Self { cumulative: cumulative.collect(), timesteps, settings, schedule })
    }

    /// Which of the timesteps a draw from 0..1 picks.
    pub fn index(&self, draw: f32) -> usize {
        self.cumulative.partition_point(|sum| *sum <= f64::from(draw)).min(self.timesteps.len() - 1)
    }

    /// The timesteps that are learned, from the last to the first: 19, 39 … 999.
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// Where the student draws, one after another, before it is asked at timestep `index`: at the first timestep, then at any of those
    /// that are left, which a draw from 0..1 picks, as the solver does in some number of steps.
    pub fn way_to(&self, index: usize, mut draw: impl FnMut() -> f32) -> Vec<usize> {
        let mut way = vec![];
        let mut at = self.timesteps.len() - 1;
        while at > index {
            way.push(at);
            at = index + pick(draw(), at - index);
        }
        way
    }

    /// How many passes such a way takes, on the average over the timesteps as they are drawn.
    pub(crate) fn passes_to_own_pictures(&self) -> f64 {
        // Over n timesteps a way takes 1 + 1/2 + … + 1/n of them.
        let passes = |n: usize| (1..=n).map(|n| 1.0 / n as f64).sum::<f64>();
        let first = self.timesteps.len() - 1;
        let shares = self.cumulative.iter().scan(0.0, |before, sum| Some(sum - std::mem::replace(before, *sum)));
        shares.enumerate().map(|(index, share)| share * passes(first - index)).sum()
    }

    /// What the student draws from noise on `ways`, which are ordered from the longest to the shortest, and the `latents` where a way has
    /// nothing in it. `noise` gives some of the latents' shape for each of a way's timesteps; `student` is given the first few images.
    pub fn own_pictures(
        &self,
        latents: &Tensor,
        ways: &[Vec<usize>],
        mut noise: impl FnMut() -> Result<Tensor>,
        student: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut pictures = latents.clone();
        for round in 0.. {
            let ts: Vec<usize> =
                ways.iter().map_while(|way| way.get(round).map(|index| self.timesteps[*index])).collect();
            if ts.is_empty() {
                break;
            }
            let (drawn, others) = (ts.len(), ways.len() - ts.len());
            let noise = noise()?.narrow(0, 0, drawn)?;
            let z = match round {
                0 => noise,
                _ => self.schedule.add_noise(&pictures.narrow(0, 0, drawn)?, &noise, &ts)?,
            };
            let own = self.consistent(&z, &student(&z, &ts)?, &ts)?.detach();
            pictures = match others {
                0 => own,
                _ => Tensor::cat(&[own, pictures.narrow(0, drawn, others)?], 0)?,
            };
        }
        Ok(pictures)
    }

    /// `latents` with `noise` as at timesteps.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Tensor> {
        Ok(self.schedule.add_noise(latents, noise, ts)?)
    }

    /// The loss of a step, of the noise that networks predict in latents at timesteps: the student's, which gradients go
    /// through, the target's, and the teacher's with and without text.
    pub fn terms(
        &self,
        inputs: &ConsistencyInputs,
        student: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
        target: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
        teacher: impl Fn(&Tensor, &[usize]) -> Result<[Tensor; 2]>,
    ) -> Result<ConsistencyTerms> {
        let s = |index: &usize| index.checked_sub(self.settings.skip).map_or(0, |index| self.timesteps[index]);
        let ss: Vec<usize> = inputs.indices.iter().map(s).collect();
        let (z_t, ts) = self.noisy(inputs)?;
        let mut z_s = z_t.clone();
        let steps = self.settings.teacher_passes();
        for step in 0..steps {
            let on_the_way = |done| ts.iter().zip(&ss).map(|(t, s)| t - (t - s) * done / steps).collect::<Vec<_>>();
            let (from, to) = (on_the_way(step), on_the_way(step + 1));
            let [conditional, unconditional] = teacher(&z_s, &from)?;
            let noise = guided(&conditional, &unconditional, self.settings.guidance_scale)?;
            z_s = self.schedule.add_noise(&self.x0(&z_s, &noise, &from)?, &noise, &to)?.detach();
        }

        let target = self.consistent(&z_s, &target(&z_s, &ss)?, &ss)?.detach();
        let prediction = self.consistent(&z_t, &student(&z_t, &ts)?, &ts)?;
        let c = self.settings.huber_c;
        let huber = (((&prediction - &target)?.sqr()? + c * c)?.sqrt()? - c)?;
        Ok(ConsistencyTerms { loss: huber.mean_all()?, prediction, target, z_s })
    }

    /// What the student says, as [`ConsistencyLoss::terms`] has it, without what it is to say.
    pub fn prediction(
        &self,
        inputs: &ConsistencyInputs,
        student: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (z_t, ts) = self.noisy(inputs)?;
        self.consistent(&z_t, &student(&z_t, &ts)?, &ts)
    }

    /// What the student is asked of, and the timesteps of it.
    fn noisy(&self, inputs: &ConsistencyInputs) -> Result<(Tensor, Vec<usize>)> {
        let ts: Vec<usize> = inputs.indices.iter().map(|index| self.timesteps[*index]).collect();
        Ok((self.schedule.add_noise(inputs.latents, inputs.noise, &ts)?, ts))
    }

    /// The picture in `z` that has this noise.
    pub(crate) fn x0(&self, z: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Tensor> {
        let loudness = column(ts, z.device(), |t| (1.0 - self.schedule.alphas_cumprod()[t]).sqrt())?;
        let signal = column(ts, z.device(), |t| self.schedule.alphas_cumprod()[t].sqrt().recip())?;
        Ok((z - noise.broadcast_mul(&loudness)?)?.broadcast_mul(&signal)?)
    }

    /// The consistency function `c_skip · z + c_out · x0`, which is `z` itself at timestep 0.
    fn consistent(&self, z: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Tensor> {
        let scaled = |t: usize| TIMESTEP_SCALING * t as f64;
        let variance = SIGMA_DATA * SIGMA_DATA;
        let skip = column(ts, z.device(), |t| variance / (scaled(t).powi(2) + variance))?;
        let out = column(ts, z.device(), |t| scaled(t) / (scaled(t).powi(2) + variance).sqrt())?;
        Ok((z.broadcast_mul(&skip)? + self.x0(z, noise, ts)?.broadcast_mul(&out)?)?)
    }
}

/// What a teacher predicts, guided by a text with strength ω.
pub(crate) fn guided(conditional: &Tensor, unconditional: &Tensor, strength: f64) -> Result<Tensor> {
    Ok((conditional + ((conditional - unconditional)? * strength)?)?)
}
