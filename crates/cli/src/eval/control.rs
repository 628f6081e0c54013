//! How closely a ControlNet is followed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use image::imageops::replace;
use image::{GrayImage, RgbImage};
use pixart::{Control, Detector, Request};
use pixart_train::{Drawn, agreement};
use pixart_weights::Part;

use super::save;
use crate::args::AgreementArgs;
use crate::output::print;
use crate::progress::Progress;
use crate::{interrupt, open};

pub(super) fn run(args: &AgreementArgs) -> Result<()> {
    if args.scenes == 0 {
        bail!("--scenes is 0; ask for 1 or more");
    }
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let mut builder = open::configured(&args.model, true, None, &progress)?;
    if let Some(control) = &args.control {
        builder = builder.part(Part::ControlNet, control);
    }
    let mut pipeline = builder.open()?;
    let request = Request {
        steps: args.steps,
        guidance_scale: args.guidance_scale,
        // Only its scale is looked at: every scene has a map of its own.
        control: Some(Control { scale: args.control_scale, ..Control::new(GrayImage::new(8, 8)) }),
        ..Request::default()
    };
    if let Some(folder) = &args.output {
        std::fs::create_dir_all(folder)?;
    }
    let interrupted = interrupt::flag()?;
    let mut written = Ok(());
    let found = agreement(&mut pipeline, &request, &Detector::Canny, args.scenes, |done, pictures| {
        progress.pictures("drawing", done as usize, args.scenes as usize);
        if let Some(folder) = &args.output {
            written = save(folder, done as usize - 1, &row(&pictures));
        }
        match interrupted.load(Ordering::SeqCst) || written.is_err() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    progress.clear();
    written?;
    let found = found?;
    print("                      edges, F1 at 2 pixels   colours that are there   solver's time")?;
    print(&line("along the edges", &found.controlled))?;
    print(&line("without them", &found.free))
}

fn line(name: &str, drawn: &Drawn) -> String {
    let (f1, colours) = (drawn.f1, drawn.colours.percent());
    format!("{name:20}  {f1:21.3}   {colours:20.1} %   {:10.1} ms", 1e3 * drawn.denoise.as_secs_f64())
}

fn row(pictures: &[&RgbImage]) -> RgbImage {
    let (width, height) = pictures.first().map_or((0, 0), |picture| picture.dimensions());
    let mut row = RgbImage::new(width * pictures.len() as u32, height);
    for (column, picture) in pictures.iter().enumerate() {
        replace(&mut row, *picture, i64::from(width) * column as i64, 0);
    }
    row
}
