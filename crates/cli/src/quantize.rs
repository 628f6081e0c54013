use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::DecimalBytes;
use pixart::Pipeline;
use pixart_weights::{
    Calibration, Part, PipelineFolder, QuantiseProgress, Scheme, check_unrounded, quantise_part, quantise_pipeline,
};

use crate::args::QuantizeArgs;
use crate::output::{peak_memory, print};
use crate::progress::Progress;
use crate::{interrupt, open};

pub fn run(args: QuantizeArgs) -> Result<()> {
    let start = Instant::now();
    let source = open::model(args.model.as_deref())?;
    let progress = Progress::new(args.quiet);
    let interrupted = interrupt::flag()?;
    let shown = |done: QuantiseProgress| {
        progress.quantise(done);
        interrupt::go_on_if(!interrupted.load(Ordering::SeqCst))
    };
    let is_part = source.join("config.json").exists() && !source.join("model_index.json").exists();
    // Of what is neither a part nor a pipeline, this says what is not there.
    let folder = if is_part { None } else { Some(PipelineFolder::open(&source)?) };
    let parts = match is_part {
        true => vec![Part::of_folder(&source)?],
        false => of_pipeline(&args, &source)?,
    };
    let written = match &folder {
        Some(folder) => {
            let calibration = calibration(&args, folder, &parts, &progress)?;
            quantise_pipeline(folder, &parts, args.scheme, calibration.as_ref(), &args.output, &shown)
        }
        None if args.calibrate.is_some() => {
            bail!("--calibrate draws pictures, which takes a model folder; {} is one part", source.display())
        }
        None if !args.parts.is_empty() => bail!("--parts goes with a model folder; {} is one part", source.display()),
        None => quantise_part(&source, parts[0], args.scheme, &args.output, &shown),
    };
    progress.clear();
    match written {
        Err(pixart_weights::Error::Cancelled) => return Err(pixart::Error::Cancelled.into()),
        other => other?,
    }
    let sizes = parts.iter().map(|part| {
        let [before, after] = match is_part {
            true => [&source, &args.output].map(|folder| size(folder)),
            false => [&source, &args.output].map(|folder| size(&folder.join(part.name()))),
        };
        let [before, after] = [DecimalBytes(before?), DecimalBytes(after?)];
        Ok(format!("{} {before} to {after}", part.name().replace('_', " ")))
    });
    let sizes = sizes.collect::<Result<Vec<_>>>()?.join(", ");
    let seconds = start.elapsed().as_secs_f64();
    print(&format!("{}  {}: {sizes}, {seconds:.1} s, {}", args.output.display(), args.scheme, peak_memory()))
}

/// What the inputs of layers look like when the prompts that are given are drawn, if any are.
fn calibration(
    args: &QuantizeArgs,
    folder: &PipelineFolder,
    parts: &[Part],
    progress: &Progress,
) -> Result<Option<Calibration>> {
    let Some(path) = &args.calibrate else { return Ok(None) };
    if args.scheme != Scheme::Int8 {
        bail!("--calibrate goes with the scheme int8, which rounds the inputs of layers");
    }
    if args.output.exists() {
        bail!("{} exists already; name a new folder", args.output.display());
    }
    check_unrounded(folder, parts)?;
    let prompts = open::prompts(path)?;
    open::start_threads(0)?;
    let drawn = |done| progress.pictures("drawing prompts", done, prompts.len());
    drawn(0);
    let calibration = pixart::calibrate(Pipeline::builder(folder.path()), parts, &prompts, drawn);
    progress.clear();
    Ok(Some(calibration?))
}

/// The parts of a pipeline to round.
fn of_pipeline(args: &QuantizeArgs, folder: &Path) -> Result<Vec<Part>> {
    if !args.parts.is_empty() {
        let mut parts = args.parts.clone();
        parts.sort_by_key(|part| part.name());
        parts.dedup();
        return Ok(parts);
    }
    let usual = [Part::TextEncoder, Part::Transformer, Part::ControlNet];
    let found: Vec<_> = usual.into_iter().filter(|part| folder.join(part.name()).exists()).collect();
    if found.is_empty() {
        bail!("{} has neither a text encoder nor a transformer; name what to round with --parts", folder.display());
    }
    Ok(found)
}

/// Bytes of the files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
