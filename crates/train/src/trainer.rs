//! The loop.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device};
use pixart_nn::recompute::forget_origins;
use pixart_weights::write_bytes;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::events::EventFile;
use crate::loss_scale::LossScale;
use crate::objective;
use crate::{Ema, Error, Estimate, Loss, Objective, Optimizer, Precision, Recipe, Result, checkpoint};

/// What a step did.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// The loss, on the average over the batch.
    pub loss: f64,
    /// What it is made of.
    pub terms: Vec<(&'static str, f64)>,
    /// The norm of the gradient before it was shortened.
    pub gradient_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// How long it took.
    pub time: Duration,
    /// The checkpoint that was saved after it.
    pub checkpoint: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; the network is here, as diffusers reads it.
    Done(PathBuf),
    /// It was stopped, and goes on from here.
    Stopped(PathBuf),
}

/// Trains as `recipe` says, in the folder `run`, from its newest checkpoint if it has one. `on_step` is told of each step, and
/// stops the run by returning `false`: it is saved then.
///
/// # Errors
/// A checkpoint of another recipe; a loss that is not finite, after which the last checkpoint is as it was; a disk that is
/// full.
pub fn train(
    recipe: &Recipe,
    run: &Path,
    device: &Device,
    mut on_step: impl FnMut(&StepReport) -> bool,
) -> Result<Outcome> {
    pixart_nn::ops::allow_tf32(recipe.precision == Precision::Tf32);
    let mut objective = objective::of(recipe, device)?;
    let mut optimizer = Optimizer::new(recipe.optimizer.clone(), objective.parameters())?;
    let mut ema = recipe.ema_decay.map(|_| Ema::new(objective.parameters())).transpose()?;
    let mut scale = LossScale::of(recipe.precision);
    let resumed = checkpoint::resume(run, recipe, objective.as_mut(), &mut optimizer, ema.as_mut(), &mut scale)?;
    let (done, mut kept) = resumed.map_or((0, None), |(step, path)| (step, Some(path)));
    let mut events = EventFile::create(run)?;
    let workers = Workers::new(recipe, device)?;
    for step in done + 1..=recipe.steps {
        let start = Instant::now();
        let factor = recipe.schedule.factor(step, recipe.steps, recipe.warm_up);
        let BatchGradients { gradients, loss, terms } =
            gradients(objective.as_ref(), step, recipe.accumulate, &workers, scale.factor())?;
        let gradient_norm =
            if loss.is_finite() { optimizer.step(&gradients, factor, scale.factor())? } else { f64::NAN };
        if !scale.update(gradient_norm.is_finite()) {
            return Err(Error::NotFinite { step, kept });
        }
        // A step whose gradients were beyond f16 has changed nothing.
        if gradient_norm.is_finite() {
            objective.step_done()?;
            if let (Some(ema), Some(decay)) = (&mut ema, recipe.ema_decay) {
                // An average of few steps must not remember the start.
                ema.update(decay.min((1 + step) as f64 / (10 + step) as f64))?;
            }
        }
        let mut report = StepReport {
            step,
            loss,
            terms,
            gradient_norm,
            lr: recipe.optimizer.lr * factor,
            time: start.elapsed(),
            checkpoint: None,
        };
        events.scalars(step, &[("loss", report.loss), ("gradient_norm", gradient_norm), ("lr", report.lr)])?;
        events.scalars(step, &report.terms)?;
        if recipe.validate_every > 0 && step.is_multiple_of(recipe.validate_every) {
            let pixels = with_average(ema.as_ref(), || objective.validate())?;
            let folder = run.join("validation");
            std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            let path = folder.join(format!("step-{step:08}.png"));
            let png = pixart::pixels_to_png(&pixels).map_err(Error::io(&path))?;
            write_bytes(&path, &png)?;
            events.image(step, "validation", pixels.dimensions(), png)?;
        }
        let save = |kept: &mut Option<PathBuf>| -> Result<PathBuf> {
            let path = checkpoint::save(run, step, recipe, objective.as_ref(), &optimizer, ema.as_ref(), scale)?;
            *kept = Some(path.clone());
            Ok(path)
        };
        if step.is_multiple_of(recipe.checkpoint_every) || step == recipe.steps {
            report.checkpoint = Some(save(&mut kept)?);
        }
        if !on_step(&report) && step < recipe.steps {
            return Ok(Outcome::Stopped(match report.checkpoint {
                Some(path) => path,
                None => save(&mut kept)?,
            }));
        }
    }
    let result = run.join("network");
    with_average(ema.as_ref(), || objective.save(&result))?;
    Ok(Outcome::Done(result))
}

/// What training as `recipe` says will need. Opens all that it names, and trains nothing.
///
/// # Errors
/// As [`train`], before the first step.
pub fn estimate(recipe: &Recipe, device: &Device) -> Result<Estimate> {
    Ok(Estimate::new(recipe, objective::of(recipe, device)?.footprint()?))
}

/// Means over the parts of a batch.
struct BatchGradients {
    gradients: GradStore,
    loss: f64,
    /// What the loss is made of.
    terms: Vec<(&'static str, f64)>,
}

impl BatchGradients {
    fn plus(mut self, other: Self) -> Result<Self> {
        self.gradients.extend(other.gradients)?;
        self.loss += other.loss;
        for ((_, sum), (_, term)) in self.terms.iter_mut().zip(other.terms) {
            *sum += term;
        }
        Ok(self)
    }
}

/// What computes parts of a batch at the same time.
struct Workers {
    count: usize,
    /// Each with one thread, in which all that a part does is done. Where there is none, parts come one after another.
    pools: Vec<ThreadPool>,
}

impl Workers {
    fn new(recipe: &Recipe, device: &Device) -> Result<Self> {
        let count = recipe.workers;
        let pools = match device.is_cpu() && count > 1 {
            true => count.min(rayon::current_num_threads()),
            false => 0,
        };
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build().map_err(candle_core::Error::wrap);
        Ok(Self { count, pools: (0..pools).map(pool).collect::<candle_core::Result<_>>()? })
    }

    /// `compute` for the parts from `first` on, one for each worker, in their order.
    fn run<R: Send>(&self, first: usize, compute: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let parts: Vec<usize> = (first..first + self.count).collect();
        if self.pools.is_empty() {
            return parts.into_iter().map(compute).collect();
        }
        let mut computed = Vec::with_capacity(self.count);
        for parts in parts.chunks(self.pools.len()) {
            std::thread::scope(|scope| {
                // The pool's thread is the one that computes; the one that is started here waits for it.
                let start = |(part, pool)| {
                    let (part, pool, compute): (&usize, &ThreadPool, _) = (part, pool, &compute);
                    scope.spawn(move || pool.install(|| compute(*part)))
                };
                let running: Vec<_> = parts.iter().zip(&self.pools).map(start).collect();
                computed.extend(running.into_iter().map(|part| match part.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                }));
            });
        }
        computed
    }
}

/// The gradients of a step, `scale` times as long as they are.
fn gradients(
    objective: &dyn Objective,
    step: u64,
    accumulate: usize,
    workers: &Workers,
    scale: f64,
) -> Result<BatchGradients> {
    let parts = accumulate * workers.count;
    let part = |part| -> Result<BatchGradients> {
        let Loss { total, terms, recomputation } = objective.loss(step, part, parts)?;
        let total = (total / parts as f64)?;
        let loss = f64::from(total.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        let terms = terms.iter().map(|(name, term)| Ok((*name, f64::from(term.to_scalar::<f32>()?) / parts as f64)));
        let mut gradients = (total * scale)?.backward()?;
        forget_origins(&mut gradients);
        if let Some(recomputation) = recomputation {
            recomputation.add_to(&mut gradients)?;
        }
        Ok(BatchGradients { gradients, loss, terms: terms.collect::<Result<_>>()? })
    };
    let mut sum: Option<BatchGradients> = None;
    for first in (0..parts).step_by(workers.count) {
        for part in workers.run(first, part) {
            let part = part?;
            sum = Some(match sum {
                Some(sum) => sum.plus(part)?,
                None => part,
            });
        }
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a batch without parts".into()).into())
}

/// Runs with the average of the weights, where there is one.
fn with_average<R>(ema: Option<&Ema>, run: impl FnOnce() -> Result<R>) -> Result<R> {
    match ema {
        Some(ema) => ema.in_place(run),
        None => run(),
    }
}
