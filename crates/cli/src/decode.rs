use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::args::DecodeArgs;
use crate::open;
use crate::output::{Names, peak_memory, print};
use crate::progress::Progress;

pub fn run(args: DecodeArgs) -> Result<()> {
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let builder = open::configured(&args.model, false, &progress)?;
    let mut pipeline = open::limited(builder, &args.limit).open()?;
    let latents = open::latents(&args.latents, pipeline.device())?;
    let count = latents.dims().first().copied().unwrap_or(0);
    let mut names = Names::new(Some(&args.output), count)?;
    let start = Instant::now();
    let pictures = pipeline.decode(&latents);
    progress.clear();
    let pictures = pictures?;
    names.make_folder()?;
    for pixels in pictures {
        let path = names.next();
        pixart::save_pixels(&pixels, &path)?;
        if !args.model.compute.quiet {
            let (width, height) = pixels.dimensions();
            let seconds = start.elapsed().as_secs_f64();
            print(&format!("{}  {width}x{height}  decode {seconds:.1} s, {}", path.display(), peak_memory()))?;
        }
    }
    Ok(())
}
