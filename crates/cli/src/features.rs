use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use pixart::{ControlType, Detector, Pipeline};
use pixart_train::{Dataset, Extractor, ScenesDataset, open_dataset};

use crate::args::FeaturesArgs;
use crate::output::{complain, print};
use crate::progress::Progress;
use crate::{interrupt, open};

pub fn run(args: FeaturesArgs) -> Result<()> {
    open::set_threads(&args.compute)?;
    let device = args.compute.device.open()?;
    let (text, vae, native) = match &args.model {
        Some(model) => {
            let pipeline = Pipeline::builder(model).device(args.compute.device).keep_loaded(true).open()?;
            let native = pipeline.native_size();
            (Some(pipeline), args.vae.as_ref().unwrap_or(model), Some(native))
        }
        None => (None, args.vae.as_ref().context("neither --model nor --vae is given")?, None),
    };
    let size = args.size.or(native).context("--size is not given")?;
    let dataset: Box<dyn Dataset> = match args.scenes {
        Some(count) => Box::new(ScenesDataset { count, size }),
        None => open_dataset(&args.pictures)?,
    };
    let mut extractor = Extractor::new(vae, text, size, &device)?;
    if let Some(kind) = args.control_type {
        if kind == ControlType::None {
            bail!("--control-type none finds no edges; it is hed, canny or lineart here");
        }
        extractor = extractor.with_control(Detector::open(kind, args.hed.as_deref(), &device)?, kind.name());
    }
    let interrupted = interrupt::flag()?;
    let progress = Progress::new(args.compute.quiet);
    let extracted = extractor.extract(dataset.as_ref(), &args.output, |now| {
        progress.pictures("features", now.done, now.items);
        !interrupted.load(Ordering::SeqCst)
    });
    progress.clear();
    let extracted = extracted?;
    for item in &extracted.skipped {
        complain(&format!("skipped {}: {}", item.name, item.reason));
    }
    if !args.compute.quiet {
        let (items, skipped) = (extracted.items, extracted.skipped.len());
        print(&format!("{}: {items} pictures, {skipped} skipped", args.output.display()))?;
    }
    if extracted.stopped { Err(pixart::Error::Cancelled.into()) } else { Ok(()) }
}
