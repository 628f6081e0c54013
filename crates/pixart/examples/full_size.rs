//! Compares a full-size checkpoint with what diffusers computed from it: `tools/reference/full_size.py` writes both.
//!
//! `cargo run --release --example full_size -- FOLDER` prints the largest difference, relative to the largest value, of
//! the text encoder (where there is one), of a transformer pass, of the final latents of four LCM steps and of a decoded
//! image.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pixart::{DeviceChoice, Pipeline, Precision, PromptEmbeds, Request, Seeds, peak_rss_bytes};
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{Part, PipelineFolder, read_tensors};

/// The seed that the reference script draws its latents with.
const SEED: u64 = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("name the folder that full_size.py wrote")?;
    let golden = read_tensors(&Path::new(&folder).join("golden.safetensors"), &Device::Cpu)?;
    let get = |name: &str| golden.get(name).ok_or_else(|| format!("golden.safetensors holds no {name}"));
    let parts = PipelineFolder::open(&folder)?;

    if let Some(input_ids) = golden.get("t5.input_ids") {
        let config: T5Config = parts.config(Part::TextEncoder)?;
        let vb = parts.weights(Part::TextEncoder, DType::F32)?.var_builder(DType::F32, &Device::Cpu);
        let encoder = T5Encoder::new(&config, vb)?;
        let output = encoder.forward(&input_ids.to_dtype(DType::U32)?, get("t5.attention_mask")?)?;
        report("text encoder", &output, get("t5.last_hidden_state")?)?;
    }
    {
        let config: TransformerConfig = parts.config(Part::Transformer)?;
        let vb = parts.weights(Part::Transformer, DType::F32)?.var_builder(DType::F32, &Device::Cpu);
        let transformer = PixArtTransformer::new(&config, vb)?;
        let text = transformer.project_text(get("prompt_embeds")?, Some(get("prompt_attention_mask")?))?;
        let size = match golden.get("transformer.resolution") {
            Some(resolution) => {
                let aspect_ratio = get("transformer.aspect_ratio")?.clone();
                Some(SizeConditions { resolution: resolution.clone(), aspect_ratio })
            }
            None => None,
        };
        let (latents, timestep) = (get("transformer.hidden_states")?, get("transformer.timestep")?);
        let output = transformer.forward(latents, timestep, &text, size.as_ref())?;
        report("transformer pass", &output, get("transformer.output")?)?;
    }

    let mut pipeline = Pipeline::builder(&folder).device(DeviceChoice::Cpu).precision(Precision::F32).open()?;
    let embeds = PromptEmbeds {
        prompt_embeds: get("prompt_embeds")?.clone(),
        prompt_attention_mask: get("prompt_attention_mask")?.clone(),
        negative: None,
    };
    let request = Request { seeds: Seeds::Shared(SEED), ..Request::from_embeds(embeds) };
    let generated = pipeline.generate(&request)?;
    report("latents after 4 LCM steps", &generated.latents, get("lcm.final_latents")?)?;
    let timings = generated.timings;
    println!("4 steps {:.1} s, decode {:.1} s", timings.denoise.as_secs_f64(), timings.decode.as_secs_f64());
    drop(pipeline);

    let config: VaeConfig = parts.config(Part::Vae)?;
    let vb = parts.weights(Part::Vae, DType::F32)?.var_builder(DType::F32, &Device::Cpu);
    let decoded = AutoencoderKl::new(&config, vb)?.decode(get("vae.latents")?)?;
    report("decoded image", &decoded, get("vae.decoded")?)?;
    if let Some(bytes) = peak_rss_bytes() {
        println!("peak memory {:.2} GB", bytes as f64 / 1e9);
    }
    Ok(())
}

fn report(what: &str, found: &Tensor, golden: &Tensor) -> candle_core::Result<()> {
    let largest = |xs: &Tensor| xs.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let error = largest(&(found - golden)?)? / largest(golden)?;
    println!("{what}: {:?}, relative error {error:.1e}", found.dims());
    Ok(())
}
