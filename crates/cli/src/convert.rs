use anyhow::Result;
use pixart_weights::{PipelineFolder, convert_transformer};

use crate::args::ConvertArgs;
use crate::output::print;

pub fn run(args: ConvertArgs) -> Result<()> {
    let base = args.model.as_ref().map(PipelineFolder::open).transpose()?;
    let config = convert_transformer(&args.file, base.as_ref(), &args.output)?;
    let what = if base.is_some() { "pipeline" } else { "transformer" };
    print(&format!(
        "{}  {what}: {} layers, {} heads of {}, native size {} latent pixels",
        args.output.display(),
        config.num_layers,
        config.num_attention_heads,
        config.attention_head_dim,
        config.sample_size
    ))?;
    Ok(())
}
