use std::sync::Arc;

use anyhow::Result;

use crate::args::EncodeArgs;
use crate::open;
use crate::output::{check_writable, peak_memory, print};
use crate::progress::Progress;

pub fn run(args: EncodeArgs) -> Result<()> {
    let prompts = match (&args.prompt, &args.prompts_file) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => open::prompts(path)?,
        (None, None) => vec![],
    };
    let progress = Arc::new(Progress::new(args.model.compute.quiet));
    let builder = open::configured(&args.model, false, &progress)?;
    let mut pipeline = open::limited(builder, &args.limit).open()?;
    check_writable(&args.output)?;
    let embeds = pipeline.encode(&prompts, Some(&args.text.negative_prompt), args.text.clean_caption)?;
    progress.clear();
    embeds.write(&args.output)?;
    if !args.model.compute.quiet {
        let shape = embeds.prompt_embeds.dims();
        print(&format!("{}  prompt_embeds {shape:?}, {}", args.output.display(), peak_memory()))?;
    }
    Ok(())
}
