//! Checkpoints in 8 bits: what is written, what networks make of it, and what is refused.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::relative_error;
use pixart_diffusion::Generator;
use pixart_nn::NamedWeights;
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{
    Calibration, Error, Inputs, Lora, LoraConfig, Part, PipelineFolder, QuantiseProgress, Scheme, StoredDtype, Weights,
    convert_pipeline, is_rounded, quantise_part, quantise_pipeline, read_tensors, write_json, write_peft,
    write_tensors,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const ALL: [Part; 3] = Part::ALL;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn original(name: &str) -> Result<PipelineFolder> {
    Ok(PipelineFolder::open(fixtures().join("checkpoints").join(name))?)
}

fn go_on(_: QuantiseProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The pipeline `name` with all parts in 8 bits, in a folder that lives as long as the first result.
fn quantised(
    name: &str,
    scheme: Scheme,
    calibration: Option<&Calibration>,
) -> Result<(tempfile::TempDir, PipelineFolder)> {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("quantised");
    quantise_pipeline(&original(name)?, &ALL, scheme, calibration, &output, &go_on)?;
    Ok((folder, PipelineFolder::open(output)?))
}

fn transformer(folder: &PipelineFolder, weights: NamedWeights) -> Result<PixArtTransformer> {
    let config: TransformerConfig = folder.config(Part::Transformer)?;
    Ok(PixArtTransformer::new(&config, weights)?)
}

/// A pass of a transformer, with what the golden values were made of.
fn pass(transformer: &PixArtTransformer, name: &str) -> Result<Tensor> {
    let golden = read_tensors(&fixtures().join(format!("networks/transformer-{name}.safetensors")), &Device::Cpu)?;
    let case = golden.keys().find_map(|key| key.strip_suffix(".hidden_states")).ok_or("no case")?;
    let get = |tensor: &str| &golden[&format!("{case}.{tensor}")];
    let text = transformer.project_text(get("encoder_hidden_states"), Some(get("encoder_attention_mask")))?;
    let size = transformer
        .config()
        .has_size_conditions()
        .then(|| SizeConditions { resolution: get("resolution").clone(), aspect_ratio: get("aspect_ratio").clone() });
    Ok(transformer.forward(get("hidden_states"), get("timestep"), &text, size.as_ref())?)
}

fn in_f32(folder: &PipelineFolder, part: Part) -> Result<NamedWeights<'static>> {
    Ok(folder.weights(part, DType::F32)?.named(DType::F32, &Device::Cpu))
}

#[test]
fn a_checkpoint_in_8_bits_stands_for_the_one_it_was_made_of() -> Result {
    let (_kept, folder) = quantised("alpha-1024", Scheme::Int8, None)?;
    let original = original("alpha-1024")?;
    for part in ALL {
        let (before, after) = (original.weights(part, DType::F32)?, folder.weights(part, DType::F32)?);
        assert_eq!(after.scheme(), Some(Scheme::Int8));
        let mut rounded = 0;
        for (name, stored) in before.tensors() {
            let Some(now) = after.tensors().get(name) else {
                assert!(part.is_spare(name), "{name} is gone");
                continue;
            };
            assert_eq!(now.shape, stored.shape, "{name}");
            let tensor = |weights: &Weights| weights.tensor(name, DType::F32, &Device::Cpu);
            let (before, after) = (tensor(&before)?, tensor(&after)?);
            if !is_rounded(part, name, &stored.shape) {
                let kept = if now.dtype == stored.dtype {
                    before
                } else {
                    before.to_dtype(DType::BF16)?.to_dtype(DType::F32)?
                };
                assert_eq!(kept.flatten_all()?.to_vec1::<f32>()?, after.flatten_all()?.to_vec1::<f32>()?, "{name}");
                continue;
            }
            rounded += 1;
            assert_eq!(now.dtype, StoredDtype::I8, "{name}");
            let rows = |tensor: Tensor| tensor.flatten_from(1)?.to_vec2::<f32>();
            for (before, after) in rows(before)?.iter().zip(rows(after)?) {
                let largest = before.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                for (x, y) in before.iter().zip(after) {
                    assert!((x - y).abs() <= 0.5001 * largest / 127.0, "{name}: {y} for {x}");
                }
            }
        }
        assert!(rounded > 4, "{part:?}: {rounded} weights in 8 bits");
    }
    for file in ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/spiece.model"] {
        assert_eq!(std::fs::read(original.path().join(file))?, std::fs::read(folder.path().join(file))?, "{file}");
    }
    Ok(())
}

/// What is kept, by name: embeddings, modulation, norms and the first and last layers.
#[test]
fn what_is_seen_most_keeps_its_digits() -> Result {
    let (_kept, folder) = quantised("alpha-1024", Scheme::Int8, None)?;
    let block = "transformer_blocks.1.";
    let layers = ["attn1.to_q", "attn1.to_out.0", "attn2.to_k", "attn2.to_v", "ff.net.0.proj", "ff.net.2"];
    let rounded_in_block: Vec<String> = layers.map(|layer| format!("{block}{layer}.weight")).to_vec();
    let parts: [(Part, Vec<&str>, &[&str]); 3] = [
        (
            Part::Transformer,
            rounded_in_block.iter().map(String::as_str).collect(),
            &[
                "pos_embed.proj.weight",
                "adaln_single.emb.timestep_embedder.linear_1.weight",
                "adaln_single.emb.resolution_embedder.linear_2.weight",
                "adaln_single.linear.weight",
                "caption_projection.linear_1.weight",
                "scale_shift_table",
                "transformer_blocks.1.scale_shift_table",
                "transformer_blocks.1.attn1.to_q.bias",
                "proj_out.weight",
            ],
        ),
        (
            Part::TextEncoder,
            vec!["encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight"],
            &[
                "shared.weight",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "encoder.block.0.layer.0.layer_norm.weight",
                "encoder.final_layer_norm.weight",
            ],
        ),
        (
            Part::Vae,
            vec!["decoder.mid_block.resnets.0.conv1.weight", "encoder.down_blocks.0.resnets.0.conv2.weight"],
            &[
                "decoder.conv_in.weight",
                "decoder.conv_out.weight",
                "encoder.conv_in.weight",
                "decoder.conv_norm_out.weight",
            ],
        ),
    ];
    for (part, rounded, kept) in parts {
        let weights = folder.weights(part, DType::F32)?;
        let dtype = |name: &str| weights.tensors().get(name).map(|tensor| tensor.dtype).ok_or(format!("no {name}"));
        for name in rounded {
            assert_eq!(dtype(name)?, StoredDtype::I8, "{name}");
        }
        for name in kept {
            assert_ne!(dtype(name)?, StoredDtype::I8, "{name}");
        }
    }
    Ok(())
}

/// Rounding while reading is rounding beforehand; both schemes stay near the golden values, weights alone nearer.
#[test]
fn transformers_in_8_bits_are_near() -> Result {
    for name in ["alpha-256", "alpha-1024", "sigma-512"] {
        let original = original(name)?;
        let exact = pass(&transformer(&original, in_f32(&original, Part::Transformer)?)?, name)?;
        let mut errors = Vec::new();
        for (scheme, tolerance) in [(Scheme::Int8Weights, 2e-2), (Scheme::Int8, 4e-2)] {
            let (_kept, folder) = quantised(name, scheme, None)?;
            let stored = pass(&transformer(&folder, in_f32(&folder, Part::Transformer)?)?, name)?;
            let weights = original.weights(Part::Transformer, DType::F32)?.rounded(Part::Transformer, scheme);
            let rounded = pass(&transformer(&original, weights.named(DType::F32, &Device::Cpu))?, name)?;
            assert_eq!(stored.flatten_all()?.to_vec1::<f32>()?, rounded.flatten_all()?.to_vec1::<f32>()?);
            let error = relative_error(&stored, &exact)?;
            assert!(error > 0.0 && error < tolerance, "{name} {scheme}: {error}");
            errors.push(error);
        }
        assert!(errors[0] < errors[1], "{name}: {errors:?}");
    }
    Ok(())
}

/// The cosine of every token's embedding with that in f32.
#[test]
fn text_encoders_in_8_bits_keep_their_direction() -> Result {
    for name in ["alpha-256", "alpha-1024", "sigma-512"] {
        let golden = read_tensors(&fixtures().join(format!("networks/text_encoder-{name}.safetensors")), &Device::Cpu)?;
        for scheme in [Scheme::Int8Weights, Scheme::Int8] {
            let (_kept, folder) = quantised(name, scheme, None)?;
            let config: T5Config = folder.config(Part::TextEncoder)?;
            for used_once in [false, true] {
                let weights = in_f32(&folder, Part::TextEncoder)?;
                let weights = if used_once { weights.used_once() } else { weights };
                let encoder = T5Encoder::new(&config, weights)?;
                let found = encoder.forward(&golden["input_ids"].to_dtype(DType::U32)?, &golden["attention_mask"])?;
                let exact = &golden["last_hidden_state"];
                let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(2);
                let norms = (dot(&found, &found)? * dot(exact, exact)?)?.sqrt()?;
                let cosine = (dot(&found, exact)? / norms)?.flatten_all()?.min(0)?.to_scalar::<f32>()?;
                assert!(cosine >= 0.999, "{name} {scheme}: {cosine}");
            }
        }
    }
    Ok(())
}

#[test]
fn autoencoders_in_8_bits_are_near() -> Result {
    let golden = read_tensors(&fixtures().join("networks/vae-alpha-256.safetensors"), &Device::Cpu)?;
    let case = golden.keys().find_map(|key| key.strip_suffix(".latents")).ok_or("no case")?;
    let (_kept, folder) = quantised("alpha-256", Scheme::Int8, None)?;
    let config: VaeConfig = folder.config(Part::Vae)?;
    let vae = AutoencoderKl::new(&config, in_f32(&folder, Part::Vae)?)?;
    let decoded = vae.decode(&golden[&format!("{case}.latents")])?;
    let error = relative_error(&decoded, &golden[&format!("{case}.decoded")])?;
    assert!(error > 0.0 && error < 5e-2, "{error}");
    let mean = vae.encode(&golden[&format!("{case}.image")])?.mean;
    let error = relative_error(&mean, &golden[&format!("{case}.mean")])?;
    assert!(error > 0.0 && error < 5e-2, "{error}");
    Ok(())
}

/// A LoRA beside weights in 8 bits does what it does in weights that it was added to.
#[test]
fn a_lora_goes_beside_weights_in_8_bits() -> Result {
    let (kept, folder) = quantised("alpha-256", Scheme::Int8Weights, None)?;
    let weights = folder.weights(Part::Transformer, DType::F32)?;
    let mut generator = Generator::new(3);
    let mut adapter = Vec::new();
    for layer in ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_v", "transformer_blocks.1.ff.net.2"]
    {
        let shape = &weights.tensors()[&format!("{layer}.weight")].shape;
        for (half, shape) in [("A", (4, shape[1])), ("B", (shape[0], 4))] {
            let noise = (generator.randn_tensor(&[shape.0, shape.1], &Device::Cpu)? * 0.1)?;
            adapter.push((format!("base_model.model.{layer}.lora_{half}.weight"), noise));
        }
    }
    let tensors: Vec<_> = adapter.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let path = kept.path().join("lora");
    let targets = ["to_q", "to_v", "ff.net.2"].map(String::from).to_vec();
    write_peft(&path, &LoraConfig { r: 4, lora_alpha: 8.0, target_modules: targets }, &tensors)?;
    let plain = pass(&transformer(&folder, in_f32(&folder, Part::Transformer)?)?, "alpha-256")?;
    let corrected = weights.with_lora(Lora::open(&path)?)?;
    let beside = pass(&transformer(&folder, corrected.named(DType::F32, &Device::Cpu))?, "alpha-256")?;
    // Rounded as they are read, as if they had been stored so.
    let original = original("alpha-256")?;
    let read = original.weights(Part::Transformer, DType::F32)?.with_lora(Lora::open(&path)?)?;
    let read = read.rounded(Part::Transformer, Scheme::Int8Weights);
    let read = pass(&transformer(&original, read.named(DType::F32, &Device::Cpu))?, "alpha-256")?;
    let error = relative_error(&read, &beside)?;
    assert!(error < 1e-6, "{error}");
    // The same weights as numbers, into which the adapter is added.
    let whole: Vec<_> = corrected
        .tensors()
        .keys()
        .filter(|name| !name.ends_with("_scale"))
        .map(|name| Ok((name.as_str(), corrected.tensor(name, DType::F32, &Device::Cpu)?)))
        .collect::<Result<_>>()?;
    let whole: Vec<_> = whole.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_tensors(&kept.path().join("whole.safetensors"), &whole)?;
    let whole = Weights::open(kept.path().join("whole.safetensors"))?;
    let merged = pass(&transformer(&folder, whole.named(DType::F32, &Device::Cpu))?, "alpha-256")?;
    let error = relative_error(&beside, &merged)?;
    assert!(error < 1e-5, "{error}");
    assert!(relative_error(&plain, &merged)? > 1e-2);
    Ok(())
}

/// Factors of inputs change nothing but what rounding costs, and columns that are kept out of the rounding are in the result.
#[test]
fn calibrated_weights_are_the_same_map() -> Result {
    let mut calibration = Calibration::default();
    let original = original("alpha-256")?;
    let weights = original.weights(Part::Transformer, DType::F32)?;
    for (name, stored) in weights.tensors() {
        if is_rounded(Part::Transformer, name, &stored.shape) {
            let factor = |i| if i == 2 { 0.0 } else { 0.5 + (i % 3) as f32 };
            let factors = Some((0..stored.shape[1]).map(factor).collect());
            calibration.insert(Part::Transformer, name, Inputs { factors, outliers: vec![2] });
        }
    }
    let exact = pass(&transformer(&original, in_f32(&original, Part::Transformer)?)?, "alpha-256")?;
    for scheme in [Scheme::Int8, Scheme::Int8Weights] {
        let (_kept, folder) = quantised("alpha-256", scheme, Some(&calibration))?;
        let found = pass(&transformer(&folder, in_f32(&folder, Part::Transformer)?)?, "alpha-256")?;
        let error = relative_error(&found, &exact)?;
        assert!(error < 6e-2, "{scheme}: {error}");
    }
    Ok(())
}

/// Nothing is left of what was stopped, neither under its name nor under another.
#[test]
fn stopping_leaves_no_folder() -> Result {
    let folder = tempfile::tempdir()?;
    let stop =
        |done: QuantiseProgress| if done.read > 10_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let output = folder.path().join("new");
    let stopped = quantise_pipeline(&original("alpha-256")?, &ALL, Scheme::Int8, None, &output, &stop);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}

/// What cannot be rounded, or was, and 8 bits that nothing explains.
#[test]
fn bad_checkpoints_are_refused() -> Result {
    let (kept, folder) = quantised("alpha-256", Scheme::Int8, None)?;
    let path = |name: &str| kept.path().join(name);
    let refused = |result: pixart_weights::Result<()>, parts: &[&str]| {
        let message = result.unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        assert!(!path("new").exists());
    };
    let again = quantise_pipeline(&folder, &[Part::Transformer], Scheme::Int8, None, &path("new"), &go_on);
    refused(again, &["transformer", "in int8 already"]);
    let part = folder.part_path(Part::Vae);
    refused(quantise_part(&part, Part::Vae, Scheme::Int8, &path("new"), &go_on), &["in int8 already"]);
    let whole = original("alpha-256")?;
    refused(quantise_pipeline(&whole, &ALL, Scheme::Int8, None, folder.path(), &go_on), &["exists already"]);
    refused(
        convert_pipeline(&folder, Some(StoredDtype::F32), None, &path("new")),
        &["int8", "convert the model that it was made"],
    );

    // Not a number, in a weight that is rounded and in one that is kept.
    for (name, at) in [("transformer_blocks.1.attn1.to_k.weight", 7), ("scale_shift_table", 3)] {
        let source = whole.weights(Part::Transformer, DType::F32)?;
        let tensors: Vec<_> = source
            .tensors()
            .keys()
            .map(|key| {
                let tensor = source.tensor(key, DType::F32, &Device::Cpu)?;
                let shape = tensor.shape().clone();
                let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
                if key == name {
                    values[at] = if at == 7 { f32::NAN } else { f32::INFINITY };
                }
                Ok((key.as_str(), Tensor::from_vec(values, shape, &Device::Cpu)?))
            })
            .collect::<Result<_>>()?;
        let broken = path("broken");
        std::fs::create_dir_all(&broken)?;
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        write_tensors(&broken.join("diffusion_pytorch_model.safetensors"), &tensors)?;
        std::fs::copy(whole.config_path(Part::Transformer), broken.join("config.json"))?;
        let written = quantise_part(&broken, Part::Transformer, Scheme::Int8, &path("new"), &go_on);
        // The file that was read is named.
        refused(written, &[name, "not finite", &broken.join("diffusion_pytorch_model.safetensors").to_string_lossy()]);
        let rounded = Weights::open(broken.join("diffusion_pytorch_model.safetensors"))?;
        let rounded = rounded.rounded(Part::Transformer, Scheme::Int8);
        let built = transformer(&whole, rounded.named(DType::F32, &Device::Cpu));
        assert!(built.unwrap_err().to_string().contains(name));
    }

    let config = folder.config_path(Part::Transformer);
    let mut json = pixart_weights::read_json(&config)?;
    for (quantization, parts) in [
        (serde_json::Value::Null, ["in 8 bits", "names no \"quantization_config\""]),
        (serde_json::json!({ "quant_method": "pixart", "scheme": "int3" }), ["\"int3\"", "int8-weights"]),
        (serde_json::json!({ "quant_method": "bitsandbytes" }), ["\"bitsandbytes\"", "not read here"]),
    ] {
        match quantization.is_null() {
            true => json.as_object_mut().map(|json| json.remove("quantization_config")).is_some(),
            false => {
                json["quantization_config"] = quantization;
                true
            }
        };
        write_json(&config, &json)?;
        refused(folder.weights(Part::Transformer, DType::F32).map(|_| ()), &parts);
    }
    Ok(())
}
