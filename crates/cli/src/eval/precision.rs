//! How far a precision leads from f32.

use std::sync::Arc;

use anyhow::{Result, bail};
use pixart::{Precision, PrecisionErrors, Request, Seeds};
use pixart_scenes::test_prompts;

use crate::args::PrecisionArgs;
use crate::open;
use crate::output::print;
use crate::progress::Progress;

pub(super) fn run(args: &PrecisionArgs) -> Result<()> {
    let prompts = match &args.prompts_file {
        Some(path) => open::prompts(path)?,
        None if args.prompts == 0 => bail!("--prompts is 0; ask for 1 or more"),
        None => test_prompts(args.prompts).into_iter().map(|prompt| prompt.text).collect(),
    };
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let mut rounded = open::configured(&args.model, false, &progress)?.open()?;
    let folder = open::model(args.exact.as_deref().or(args.model.model.as_deref()))?;
    let exact = open::builder(&folder, &args.model, &progress).precision(Precision::F32);
    let exact = if args.exact.is_some() { exact } else { open::with_parts(exact, &args.model) };
    let mut exact = exact.open()?;
    if exact.is_rounded()? {
        bail!("{} has parts in 8 bits; name the model with all its digits by --exact", folder.display());
    }
    let request = Request {
        seeds: Seeds::PerImage((0..prompts.len() as u64).collect()),
        prompts,
        steps: args.sampling.steps,
        guidance_scale: args.sampling.guidance_scale,
        ..Request::default()
    };
    let errors = PrecisionErrors::between(&mut exact, &mut rounded, &request);
    progress.clear();
    let errors = errors?;
    print(&format!(
        "{} beside {}, {} prompts",
        rounded.precision_name(),
        exact.precision_name(),
        request.prompts.len()
    ))?;
    print(&format!("embeddings: least cosine of a token                 {:9.5}", errors.least_cosine))?;
    print(&format!("latents: relative error by the text encoder         {:9.5}", errors.text_encoder))?;
    print(&format!("latents: relative error by the transformer          {:9.5}", errors.transformer))?;
    print(&format!("latents: relative error by both                     {:9.5}", errors.both))?;
    print(&format!("pictures of the same latents, by the autoencoder    {:6.2} dB", errors.autoencoder_psnr))
}
