//! Times one training step of a small transformer in f32: forward, mean squared error against noise, backward, AdamW. 6
//! blocks of width 192 with 3 heads, batch 64, 64 image and 16 text tokens.
//!
//! `cargo bench -p pixart-nn --bench training [-- [--tsv] [--runs N]]`. A line with `--tsv` is name, dtype and median
//! milliseconds.

#[path = "../../cli/src/allocator.rs"]
#[expect(dead_code, reason = "training keeps its memory")]
mod allocator;

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};

fn main() -> Result<()> {
    allocator::keep_large_pages();
    let arguments: Vec<String> = std::env::args().collect();
    let runs =
        arguments.iter().position(|argument| argument == "--runs").and_then(|i| arguments.get(i + 1)?.parse().ok());
    let (device, batch, width) = (Device::Cpu, 64, 192);
    let config = TransformerConfig {
        num_layers: 6,
        num_attention_heads: 3,
        attention_head_dim: 64,
        sample_size: 16,
        caption_channels: Some(width),
        cross_attention_dim: Some(width),
        ..TransformerConfig::default()
    };
    let variables = VarMap::new();
    let transformer = PixArtTransformer::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &device).into())?;
    // The default start of a variable is a constant, of which no gradient comes.
    for variable in variables.all_vars() {
        variable.set(&Tensor::randn(0f32, 0.02, variable.shape(), &device)?)?;
    }
    let mut optimizer = AdamW::new(variables.all_vars(), ParamsAdamW { lr: 1e-4, ..ParamsAdamW::default() })?;

    let latents = Tensor::randn(0f32, 1.0, (batch, 4, 16, 16), &device)?;
    let noise = Tensor::randn(0f32, 1.0, (batch, 4, 16, 16), &device)?;
    let embeds = Tensor::randn(0f32, 1.0, (batch, 16, width), &device)?;
    let timestep = Tensor::rand(0f32, 999.0, batch, &device)?;
    let mut seconds = Vec::new();
    for run in 0..runs.unwrap_or(9) + 1 {
        let start = Instant::now();
        let text = transformer.project_text(&embeds, None)?;
        let prediction = transformer.forward(&latents, &timestep, &text, None)?.narrow(1, 0, 4)?;
        let loss = (prediction - &noise)?.sqr()?.mean_all()?;
        let forward = start.elapsed();
        let gradients = loss.backward()?;
        let backward = start.elapsed() - forward;
        optimizer.step(&gradients)?;
        if run > 0 {
            seconds.push([start.elapsed(), forward, backward].map(|time| time.as_secs_f64() * 1e3));
        }
    }
    seconds.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [total, forward, backward] = seconds[seconds.len() / 2];
    match arguments.iter().any(|argument| argument == "--tsv") {
        true => println!("training step\tf32\t{total:.3}"),
        false => {
            println!("training step {total:.1} ms: forward {forward:.1}, backward {backward:.1}, the rest is AdamW")
        }
    }
    Ok(())
}
