use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use pixart::Request;
use pixart_scenes::test_prompts;
use pixart_train::{Faithfulness, Share, faithfulness, reconstruction};

use crate::args::{EvalCommand, FaithfulnessArgs, ReconstructionArgs};
use crate::output::print;
use crate::progress::Progress;
use crate::{interrupt, open};

pub fn run(what: EvalCommand) -> Result<()> {
    match what {
        EvalCommand::Faithfulness(args) => run_faithfulness(&args),
        EvalCommand::Reconstruction(args) => run_reconstruction(&args),
    }
}

fn run_faithfulness(args: &FaithfulnessArgs) -> Result<()> {
    if args.prompts == 0 {
        bail!("--prompts is 0; ask for 1 or more");
    }
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let mut pipeline = open::pipeline(&args.model, true, None, &progress)?;
    if let Some(name) = &args.scheduler {
        pipeline.use_scheduler(name)?;
    }
    let request = Request { steps: args.steps, guidance_scale: args.guidance_scale, ..Request::default() };
    let prompts = test_prompts(args.prompts);
    let interrupted = interrupt::flag()?;
    if let Some(folder) = &args.output {
        std::fs::create_dir_all(folder)?;
    }
    let mut written = Ok(());
    let found = faithfulness(&mut pipeline, &request, &prompts, |done, pictures| {
        progress.pictures("drawing", done, prompts.len());
        if let Some(folder) = &args.output {
            let first = done - pictures.len();
            written = save(folder, first, pictures);
        }
        match interrupted.load(Ordering::SeqCst) || written.is_err() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    progress.clear();
    written?;
    print(&table(&found?))
}

fn save(folder: &Path, first: usize, pictures: &[image::RgbImage]) -> Result<()> {
    for (i, picture) in pictures.iter().enumerate() {
        pixart::save_pixels(picture, folder.join(format!("{:04}.png", first + i)))?;
    }
    Ok(())
}

fn table(found: &Faithfulness) -> String {
    let line =
        |name: &str, share: Share| format!("{name:44} {:5.1} %  ({} of {})", share.percent(), share.right, share.all);
    [
        line("one object, kind and colour", found.one_object),
        line("two objects in a relation, all right", found.two_objects),
        line("two to four equal objects, all right", found.counts),
        line("three or four objects, all right", found.several),
        line("all pictures, all right", found.all_right),
        line("objects that are there, by kind", found.objects),
        line("pictures with the right number of objects", found.right_count),
        format!("{:44} {:5.2} s", "time for a picture, without loading", found.time.as_secs_f64()),
    ]
    .join("\n")
}

fn run_reconstruction(args: &ReconstructionArgs) -> Result<()> {
    open::set_threads(&args.compute)?;
    let device = args.compute.device.open()?;
    let found = reconstruction(&args.vae, args.scenes, args.size, &device)?;
    print(&format!(
        "{:.2} dB peak signal-to-noise ratio of {} scenes, {:.1} % of them still read as their captions say",
        found.psnr,
        args.scenes,
        found.all_right.percent()
    ))
}
