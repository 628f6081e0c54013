mod comparison;
mod control;
mod precision;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use image::RgbImage;
use pixart::{Pipeline, Request};
use pixart_scenes::{Prompt, test_prompts};
use pixart_train::{Faithfulness, Share, Trial, faithfulness, grid, reconstruction};
use pixart_weights::write_bytes;

use crate::args::{EvalCommand, FaithfulnessArgs, ReconstructionArgs};
use crate::interrupt::go_on_if;
use crate::output::{make_folder, print};
use crate::progress::Progress;
use crate::{interrupt, open};

pub fn run(what: EvalCommand) -> Result<()> {
    match what {
        EvalCommand::Faithfulness(args) => run_faithfulness(&args),
        EvalCommand::Reconstruction(args) => run_reconstruction(&args),
        EvalCommand::Control(args) => control::run(&args),
        EvalCommand::Precision(args) => precision::run(&args),
    }
}

fn run_faithfulness(args: &FaithfulnessArgs) -> Result<()> {
    if args.prompts == 0 {
        bail!("--prompts is 0; ask for 1 or more");
    }
    let drawing = Drawing {
        prompts: prompts(args.skip_prompts, args.prompts),
        progress: Arc::new(Progress::new(args.model.compute.quiet)),
        interrupted: interrupt::flag()?,
    };
    if let Some(folder) = &args.output {
        make_folder(folder)?;
        let texts: Vec<&str> = drawing.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        write_bytes(&folder.join("prompts.txt"), (texts.join("\n") + "\n").as_bytes())?;
    }
    if args.names_nothing() {
        return comparison::run(args, &drawing);
    }
    let mut pipeline = open::pipeline(&args.model, true, &drawing.progress)?;
    if let Some(name) = &args.scheduler {
        pipeline.use_scheduler(name)?;
    }
    let request =
        Request { steps: args.sampling.steps, guidance_scale: args.sampling.guidance_scale, ..Request::default() };
    let found = drawing.measure("drawing", &mut pipeline, &request, |first, pictures| match &args.output {
        Some(folder) => pictures.iter().enumerate().try_for_each(|(i, picture)| save(folder, first + i, picture)),
        None => Ok(()),
    })?;
    print(&table(&found))
}

/// `count` of the list of prompts, after the first `skipped`.
fn prompts(skipped: usize, count: usize) -> Vec<Prompt> {
    test_prompts(skipped.saturating_add(count)).split_off(skipped)
}

/// What is drawn, and who is told.
struct Drawing {
    prompts: Vec<Prompt>,
    progress: Arc<Progress>,
    interrupted: Arc<AtomicBool>,
}

impl Drawing {
    /// Draws the prompts as `request` says, and reads the pictures. `keep` takes them, with the number of the first.
    fn measure(
        &self,
        name: &str,
        pipeline: &mut Pipeline,
        request: &Request,
        mut keep: impl FnMut(usize, &[RgbImage]) -> Result<()>,
    ) -> Result<Faithfulness> {
        let mut kept = Ok(());
        let found = faithfulness(pipeline, request, &self.prompts, |done, pictures| {
            self.progress.pictures(name, done, self.prompts.len());
            kept = keep(done - pictures.len(), pictures);
            go_on_if(!self.interrupted.load(Ordering::SeqCst) && kept.is_ok())
        });
        self.progress.clear();
        kept?;
        Ok(found?)
    }
}

/// Writes picture `index` of an evaluation.
fn save(folder: &Path, index: usize, picture: &RgbImage) -> Result<()> {
    Ok(pixart::save_pixels(picture, folder.join(format!("{index:04}.png")))?)
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
        line("colours that are there", found.colours),
        line("relations that hold", found.relations),
        line("pictures with the right number of objects", found.right_count),
        format!("{:44} {:5.3} s", "time for a picture, without loading", found.time.as_secs_f64()),
    ]
    .join("\n")
}

fn run_reconstruction(args: &ReconstructionArgs) -> Result<()> {
    open::set_threads(&args.compute)?;
    let device = args.compute.device.open()?;
    let vae = open::model(args.vae.as_deref())?;
    let trial = Trial { scenes: args.scenes, size: args.size, latent_noise: args.latent_noise };
    if let Some(folder) = &args.output {
        make_folder(folder)?;
    }
    let progress = Progress::new(args.compute.quiet);
    let interrupted = interrupt::flag()?;
    let mut written = Ok(());
    let found = reconstruction(&vae, &trial, &device, |scene, [drawn, decoded]| {
        progress.pictures("decoding", scene as usize + 1, args.scenes as usize);
        if let Some(folder) = &args.output {
            written = save(folder, scene as usize, &grid(&[vec![drawn], vec![decoded]]));
        }
        go_on_if(!interrupted.load(Ordering::SeqCst) && written.is_ok())
    });
    progress.clear();
    written?;
    let found = found?;
    print(&format!(
        "{:.2} dB peak signal-to-noise ratio of {} scenes, {:.1} % of them still read as their captions say",
        found.psnr,
        args.scenes,
        found.all_right.percent()
    ))
}
