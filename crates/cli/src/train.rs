use std::sync::atomic::Ordering;

use anyhow::Result;
use pixart_train::{Estimate, Outcome, Recipe, StepReport, estimate, train};

use crate::args::TrainArgs;
use crate::output::{peak_memory, print};
use crate::progress::Progress;
use crate::{interrupt, open};

pub fn run(args: TrainArgs) -> Result<()> {
    open::set_threads(&args.compute)?;
    let recipe = Recipe::read(&args.recipe)?;
    let device = args.compute.device.open()?;
    let output = match (&args.output, args.dry_run) {
        (Some(output), false) => output,
        _ => return print(&needs(&estimate(&recipe, &device)?)),
    };
    let interrupted = interrupt::flag()?;
    let progress = Progress::new(args.compute.quiet);
    let mut printed = Ok(());
    let outcome = train(&recipe, output, &device, |report| {
        let how = how(report, recipe.batch_size);
        progress.train(report.step, recipe.steps, &how);
        if let Some(path) = &report.checkpoint
            && !args.compute.quiet
        {
            progress.clear();
            printed = print(&format!("step {}: {how}; saved {}", report.step, path.display()));
        }
        printed.is_ok() && !interrupted.load(Ordering::SeqCst)
    });
    progress.clear();
    match (outcome?, printed) {
        (_, Err(error)) => Err(error),
        (Outcome::Done(path), _) if !args.compute.quiet => print(&format!("{}, {}", path.display(), peak_memory())),
        (Outcome::Done(_), _) => Ok(()),
        (Outcome::Stopped(path), _) => {
            if !args.compute.quiet {
                print(&format!("{}: the same command goes on from there", path.display()))?;
            }
            Err(pixart::Error::Cancelled.into())
        }
    }
}

/// What a run will need.
fn needs(estimate: &Estimate) -> String {
    let Estimate { footprint, bytes, parameter_bytes, optimizer_bytes, activation_bytes, flops } = estimate;
    let (millions, gigabytes) = (|count: u64| count as f64 / 1e6, |bytes: u64| bytes as f64 / 1e9);
    format!(
        "parameters  {:.2} M trained, {:.2} M in all networks\n\
         memory      about {:.2} GB: parameters and gradients {:.2}, optimiser and average {:.2}, what stays {:.2}, \
         what is kept for the backward pass {:.2}\n\
         step        about {:.2} TFLOP",
        millions(footprint.trained),
        millions(footprint.parameters),
        gigabytes(*bytes),
        gigabytes(*parameter_bytes),
        gigabytes(*optimizer_bytes),
        gigabytes(footprint.frozen_bytes),
        gigabytes(*activation_bytes),
        flops / 1e12
    )
}

/// The loss and what it is made of, the speed and the memory.
fn how(report: &StepReport, batch_size: usize) -> String {
    let terms: Vec<_> = report.terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) };
    let speed = batch_size as f64 / report.time.as_secs_f64();
    format!("loss {:.4}{terms}, {speed:.1} images/s, {}", report.loss, peak_memory())
}
