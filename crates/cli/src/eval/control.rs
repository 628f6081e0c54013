//! How closely a ControlNet is followed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use image::GrayImage;
use pixart::{Control, Detector, Request};
use pixart_train::{Drawn, agreement, grid};
use pixart_weights::write_bytes;

use super::save;
use crate::args::AgreementArgs;
use crate::interrupt::go_on_if;
use crate::output::{make_folder, print};
use crate::progress::Progress;
use crate::{interrupt, open};

pub(super) fn run(args: &AgreementArgs) -> Result<()> {
    if args.scenes == 0 {
        bail!("--scenes is 0; ask for 1 or more");
    }
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let builder = open::configured(&args.model, true, &progress)?;
    let mut pipeline = open::with_control(builder, args.control.as_deref()).open()?;
    let request = Request {
        steps: args.sampling.steps,
        guidance_scale: args.sampling.guidance_scale,
        // Only its scale is looked at: every scene has a map of its own.
        control: Some(Control { scale: args.control_scale, ..Control::new(GrayImage::new(8, 8)) }),
        ..Request::default()
    };
    if let Some(folder) = &args.output {
        make_folder(folder)?;
    }
    let interrupted = interrupt::flag()?;
    let mut written = Ok(());
    let mut prompts = String::new();
    let found = agreement(&mut pipeline, &request, &Detector::Canny, args.scenes, |done, prompt, pictures| {
        progress.pictures("drawing", done as usize, args.scenes as usize);
        if let Some(folder) = &args.output {
            prompts += &format!("{prompt}\n");
            written = save(folder, done as usize - 1, &grid(&[pictures.into()]));
        }
        go_on_if(!interrupted.load(Ordering::SeqCst) && written.is_ok())
    });
    progress.clear();
    written?;
    let found = found?;
    if let Some(folder) = &args.output {
        write_bytes(&folder.join("prompts.txt"), prompts.as_bytes())?;
    }
    print("                      edges, F1 at 2 pixels   colours that are there   solver's time")?;
    print(&line("along the edges", &found.controlled))?;
    print(&line("without them", &found.free))
}

fn line(name: &str, drawn: &Drawn) -> String {
    let (f1, colours) = (drawn.f1, drawn.colours.percent());
    format!("{name:20}  {f1:21.3}   {colours:20.1} %   {:10.1} ms", 1e3 * drawn.denoise.as_secs_f64())
}
