//! The gradients of every network against PyTorch's, on the golden checkpoints (`tools/reference/gradients.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_train::Parameters;
use pixart_weights::{Part, PipelineFolder, read_tensors};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// PyTorch's own f32 is within 6e-6 of its f64.
const TOLERANCE: f64 = 3e-5;

/// Of a tensor of more than some thousand elements the golden files have every eleventh, and sums over all.
const STRIDE: usize = 11;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn golden(name: &str) -> Result<BTreeMap<String, Tensor>> {
    Ok(read_tensors(&fixtures().join(format!("{name}.safetensors")), &Device::Cpu)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(values)
}

/// Root of the sum of squared differences, relative to that of the golden values, or to `scale` where they are next to 0.
#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], scale: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let error = difference / norm(&mut expected.iter().copied()).max(scale);
    assert!(error < TOLERANCE, "{what}: a relative error of {error:.1e}");
}

/// Holds a gradient to the golden one of that name, whole or thinned.
fn check(golden: &BTreeMap<String, Tensor>, name: &str, found: &Tensor, scale: f64) -> Result {
    let found = values(found)?;
    if let Some(expected) = golden.get(name) {
        assert_close(name, &found, &values(expected)?, scale);
        return Ok(());
    }
    let get = |part: &str| golden.get(&format!("{name}.{part}")).ok_or(format!("no {name} among the golden values"));
    let thinned: Vec<_> = found.iter().copied().step_by(STRIDE).collect();
    assert_close(name, &thinned, &values(get("every_11")?)?, scale);
    let sum_of_squares = found.iter().map(|x| x * x).sum::<f64>();
    assert_close(name, &[sum_of_squares], &values(get("sums")?)?[1..], scale * scale);
    Ok(())
}

/// Holds the gradients of all parameters to the golden ones, of which none may be left over.
fn check_all(golden: &BTreeMap<String, Tensor>, parameters: &Parameters, gradients: &GradStore) -> Result {
    let all = parameters.all();
    let largest = all.iter().filter_map(|(_, variable)| gradients.get(variable));
    let norms = largest.map(|gradient| Ok(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt()));
    let largest = norms.collect::<Result<Vec<_>>>()?.into_iter().fold(0f32, f32::max);
    for (name, variable) in &all {
        let gradient = gradients.get(variable).ok_or(format!("{name} has no gradient"))?;
        // A bias of keys shifts all scores of a query alike: its gradient is rounding, in PyTorch as here.
        check(golden, &format!("gradient.{name}"), gradient, 1e-3 * f64::from(largest))?;
    }
    let names = golden.keys().filter_map(|name| name.strip_prefix("gradient."));
    for name in names.map(|name| name.trim_end_matches(".every_11").trim_end_matches(".sums")) {
        assert!(all.iter().any(|(found, _)| found == name), "{name} is no parameter here");
    }
    Ok(())
}

fn check_inputs(golden: &BTreeMap<String, Tensor>, gradients: &GradStore, inputs: &[(&str, &Var)]) -> Result {
    for (name, variable) in inputs {
        let gradient = gradients.get(variable).ok_or("an input without a gradient")?;
        check(golden, &format!("input_gradient.{name}"), gradient, 0.0)?;
    }
    Ok(())
}

fn check_loss(golden: &BTreeMap<String, Tensor>, loss: &Tensor) -> Result {
    assert_close("loss", &values(loss)?, &values(&golden["loss"])?, 0.0);
    Ok(())
}

#[test]
fn transformers() -> Result {
    for (name, has_sizes) in [("alpha-256", false), ("alpha-1024", true)] {
        let folder = PipelineFolder::open(fixtures().join("checkpoints").join(name))?;
        let config: TransformerConfig = folder.config(Part::Transformer)?;
        let golden = golden(&format!("training/gradients-transformer-{name}"))?;
        let inputs = crate::golden(&format!("networks/transformer-{name}"))?;
        let input = |tensor: &str| &inputs[&format!("wide.{tensor}")];
        let parameters = Parameters::new();
        let weights = folder.weights(Part::Transformer, DType::F32)?;
        let transformer = PixArtTransformer::new(&config, parameters.from_weights(weights, &Device::Cpu))?;

        let latents = Var::from_tensor(input("hidden_states"))?;
        let embeds = Var::from_tensor(input("encoder_hidden_states"))?;
        let text = transformer.project_text(&embeds, Some(input("encoder_attention_mask")))?;
        let size = match has_sizes {
            true => Some(SizeConditions {
                resolution: input("resolution").clone(),
                aspect_ratio: input("aspect_ratio").clone(),
            }),
            false => None,
        };
        let output = transformer.forward(&latents, input("timestep"), &text, size.as_ref())?;
        let loss = (output * &golden["weights.output"])?.sum_all()?;
        check_loss(&golden, &loss)?;
        let gradients = loss.backward()?;
        check_all(&golden, &parameters, &gradients)?;
        check_inputs(&golden, &gradients, &[("hidden_states", &latents), ("encoder_hidden_states", &embeds)])?;
    }
    Ok(())
}

#[test]
fn text_encoder() -> Result {
    let folder = PipelineFolder::open(fixtures().join("checkpoints/alpha-256"))?;
    let config: T5Config = folder.config(Part::TextEncoder)?;
    let golden = golden("training/gradients-text_encoder-alpha-256")?;
    let inputs = crate::golden("networks/text_encoder-alpha-256")?;
    let parameters = Parameters::new();
    let weights = folder.weights(Part::TextEncoder, DType::F32)?;
    let encoder = T5Encoder::new(&config, parameters.from_weights(weights, &Device::Cpu))?;
    let output = encoder.forward(&inputs["input_ids"].to_dtype(DType::U32)?, &inputs["attention_mask"])?;
    let loss = (output * &golden["weights.last_hidden_state"])?.sum_all()?;
    check_loss(&golden, &loss)?;
    check_all(&golden, &parameters, &loss.backward()?)
}

#[test]
fn autoencoder() -> Result {
    let folder = PipelineFolder::open(fixtures().join("checkpoints/alpha-256"))?;
    let config: VaeConfig = folder.config(Part::Vae)?;
    let golden = golden("training/gradients-vae-alpha-256")?;
    let inputs = crate::golden("networks/vae-alpha-256")?;
    let parameters = Parameters::new();
    let weights = folder.weights(Part::Vae, DType::F32)?;
    let vae = AutoencoderKl::new(&config, parameters.from_weights(weights, &Device::Cpu))?;
    let (image, latents) = (Var::from_tensor(&inputs["even.image"])?, Var::from_tensor(&inputs["even.latents"])?);
    let posterior = vae.encode(&image)?;
    let decoded = vae.decode(&latents)?;
    let weighted = |output: Tensor, name: &str| (output * &golden[&format!("weights.{name}")])?.sum_all();
    let loss =
        ((weighted(posterior.mean, "mean")? + weighted(posterior.logvar, "logvar")?)? + weighted(decoded, "decoded")?)?;
    check_loss(&golden, &loss)?;
    let gradients = loss.backward()?;
    check_all(&golden, &parameters, &gradients)?;
    check_inputs(&golden, &gradients, &[("image", &image), ("latents", &latents)])
}
