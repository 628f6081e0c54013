use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use candle_core::Tensor;
use pixart::{Image, Pipeline, PromptEmbeds, Request, Seeds, Timings};
use pixart_weights::write_tensors;

use crate::args::GenerateArgs;
use crate::control::{self, Followed};
use crate::output::{Names, check_png, check_writable, is_same_file, peak_memory, print};
use crate::progress::Progress;
use crate::{interrupt, open};

pub fn run(args: Box<GenerateArgs>) -> Result<()> {
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let scheduler = args.scheduler_config.as_deref().map(pixart::read_scheduler).transpose()?;
    let builder = open::limited(open::configured(&args.model, args.keep_loaded, &progress)?, &args.limit);
    let mut pipeline = open::with_control(builder, args.control.control.as_deref()).open()?;
    if let Some(scheduler) = scheduler {
        pipeline.set_scheduler(scheduler);
    }
    if let Some(name) = &args.scheduler {
        pipeline.use_scheduler(name)?;
    }
    let followed = Followed::named(&args.control, pipeline.device())?;
    let mut all = request_for_all(&args, &pipeline, followed.as_ref())?;
    let prompts = all.prompt_embeds.as_ref().map_or(all.prompts.len(), PromptEmbeds::batch);
    let latents = args.latents.as_deref().map(|path| open::latents(path, pipeline.device())).transpose()?;
    if prompts > 1 && latents.is_some() {
        bail!("--latents goes with one prompt, there are {prompts}");
    }
    pipeline.check(&Request { latents: latents.clone(), ..all.clone() })?;
    let images = prompts.saturating_mul(args.num_images);
    let mut names = Names::new(args.output.as_deref(), images)?;
    check_others(&args, &names, images)?;
    if let Some(followed) = followed {
        let edges = followed.edges(&pipeline, &all)?;
        if let Some(path) = &args.control.save_control {
            control::save(&edges, path)?;
        }
        if let Some(control) = &mut all.control {
            control.map = edges;
        }
    }
    let interrupted = interrupt::flag()?;

    // All prompts are encoded at once, so that the text encoder is loaded once. Then each is drawn by itself: it gives
    // the same picture as alone, and is on disk before the next begins.
    let encoded = pipeline.encode_request(&all);
    progress.clear();
    let (embeds, mut spent) = encoded?;
    let seed = args.seed.unwrap_or_else(random_seed);
    let mut final_latents = Vec::new();
    for index in 0..prompts {
        let request = Request {
            prompts: all.prompts.get(index).cloned().into_iter().collect(),
            prompt_embeds: Some(embeds.row(index)?),
            seeds: Seeds::PerImage((0..args.num_images as u64).map(|image| seed.wrapping_add(image)).collect()),
            latents: latents.clone(),
            ..all.clone()
        };
        stop_if(&interrupted)?;
        let generated = pipeline.generate_with(&request, |step| {
            progress.step(step.index + 1, step.total);
            interrupt::go_on_if(!interrupted.load(Ordering::SeqCst))
        });
        progress.clear();
        let generated = generated?;
        spent = sum(spent, generated.timings);
        names.make_folder()?;
        for image in &generated.images {
            let path = names.next();
            image.save(&path)?;
            if !args.model.compute.quiet {
                print(&result_line(&path, image, &spent))?;
            }
        }
        spent = Timings::default();
        final_latents.push(generated.latents);
    }
    if let Some(path) = &args.output_latents {
        write_tensors(path, &[("latents", &Tensor::cat(&final_latents, 0)?)])?;
    }
    Ok(())
}

/// Makes sure that what is written beside the pictures can be written, and takes the place of nothing else of this command.
fn check_others(args: &GenerateArgs, names: &Names, images: usize) -> Result<()> {
    let (latents, edges) = (args.output_latents.as_deref(), args.control.save_control.as_deref());
    latents.map_or(Ok(()), check_writable)?;
    edges.map_or(Ok(()), check_png)?;
    for (path, what) in [(latents, "the latents"), (edges, "the edges")] {
        if let Some(path) = path.filter(|path| names.include(path, images)) {
            bail!("{} cannot hold both a picture and {what}", path.display());
        }
    }
    if let (Some(latents), Some(edges)) = (latents, edges)
        && is_same_file(latents, edges)
    {
        bail!("{} cannot hold both the latents and the edges", latents.display());
    }
    let followed = args.control.control_image.as_deref();
    match edges.zip(followed).filter(|(edges, followed)| is_same_file(edges, followed)) {
        Some((edges, _)) => bail!("{} is the picture that is followed, and would be lost", edges.display()),
        None => Ok(()),
    }
}

/// The request with all prompts in it.
fn request_for_all(args: &GenerateArgs, pipeline: &Pipeline, followed: Option<&Followed>) -> Result<Request> {
    let prompts = match (&args.prompt, &args.prompts_file) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => open::prompts(path)?,
        (None, None) => vec![],
    };
    let embeds = args.prompt_embeds.as_ref().map(|path| PromptEmbeds::read(path, pipeline.device())).transpose()?;
    Ok(Request {
        prompts,
        // What a file of embeddings steers away from is in the file.
        negative_prompt: match &embeds {
            Some(embeds) if embeds.negative.is_some() => String::new(),
            _ => args.text.negative_prompt.clone(),
        },
        prompt_embeds: embeds,
        steps: args.steps,
        guidance_scale: args.guidance_scale,
        eta: args.eta,
        width: args.width,
        height: args.height,
        resolution_binning: !args.no_resolution_binning,
        num_images_per_prompt: args.num_images,
        seeds: Seeds::Shared(0),
        latents: None,
        control: followed.map(|followed| followed.control(&args.control)),
        init: control::init_image(&args.init)?,
        clean_caption: args.text.clean_caption,
        max_sequence_length: None,
    })
}

fn stop_if(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Ordering::SeqCst) {
        return Err(pixart::Error::Cancelled.into());
    }
    Ok(())
}

/// A seed from the system's randomness, short enough to be typed again.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}

fn sum(a: Timings, b: Timings) -> Timings {
    Timings {
        load: a.load + b.load,
        encode: a.encode + b.encode,
        denoise: a.denoise + b.denoise,
        decode: a.decode + b.decode,
    }
}

fn result_line(path: &Path, image: &Image, timings: &Timings) -> String {
    let Timings { load, encode, denoise, decode } = timings;
    let parameters = &image.parameters;
    format!(
        "{}  seed {}  {}x{}  load {:.2} s, encode {:.2} s, {} steps {:.2} s, decode {:.2} s, {}",
        path.display(),
        parameters.seed,
        parameters.width,
        parameters.height,
        load.as_secs_f64(),
        encode.as_secs_f64(),
        parameters.steps,
        denoise.as_secs_f64(),
        decode.as_secs_f64(),
        peak_memory()
    )
}
