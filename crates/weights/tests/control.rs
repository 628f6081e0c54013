//! ControlNets and the edge detector, against what PyTorch computes with the same files (`tools/reference/controlnet.py`).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::relative_error;
use pixart_nn::controlnet::ControlNet;
use pixart_nn::hed::Hed;
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_weights::{Part, PipelineFolder, Weights, controlnet_config, convert_controlnet, open_part, read_tensors};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The cases of the fixture: their base, their ControlNet, and how strongly it counts.
const CASES: [(&str, &str, &str, f64); 5] = [
    ("two", "base", "adapter", 1.0),
    ("two", "base", "original.pth", 1.0),
    ("weak", "base", "adapter", 0.6),
    ("all", "base", "adapter-all", 1.0),
    ("sizes", "base-sizes", "adapter-sizes", 1.0),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/control")
}

/// The weights of the ControlNet at `path`, a folder or a file.
fn control_weights(path: &Path) -> pixart_weights::Result<Weights> {
    // Any pipeline will do: its own parts are not read.
    let pipeline = fixtures().join("../checkpoints/alpha-256");
    PipelineFolder::open(pipeline)?.with_part(Part::ControlNet, path)?.weights(Part::ControlNet, DType::F32)
}

fn base(name: &str) -> Result<PixArtTransformer> {
    let (config, weights) = open_part::<TransformerConfig>(&fixtures().join(name), Part::Transformer, DType::F32)?;
    Ok(PixArtTransformer::new(&config, weights.named(DType::F32, &Device::Cpu))?)
}

fn control(path: &Path, base: &TransformerConfig) -> Result<ControlNet> {
    let weights = control_weights(path)?;
    let config = controlnet_config(path, &weights, base)?;
    let network = ControlNet::new(&config, base, weights.named(DType::F32, &Device::Cpu))?;
    assert!(weights.unread().is_empty(), "{:?} were not read", weights.unread());
    Ok(network)
}

struct Inputs(BTreeMap<String, Tensor>);

impl Inputs {
    fn read() -> Result<Self> {
        Ok(Self(read_tensors(&fixtures().join("values.safetensors"), &Device::Cpu)?))
    }

    fn get(&self, case: &str, name: &str) -> &Tensor {
        let name = format!("{case}.{name}");
        self.0.get(&name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The prediction for a case, with the condition at a strength or without any.
    fn predict(&self, case: &str, transformer: &PixArtTransformer, scale: Option<f64>) -> Result<Tensor> {
        let get = |name: &str| self.get(case, name);
        let text = transformer.project_text(get("encoder_hidden_states"), Some(get("encoder_attention_mask")))?;
        let size = transformer.config().has_size_conditions().then(|| SizeConditions {
            resolution: get("resolution").clone(),
            aspect_ratio: get("aspect_ratio").clone(),
        });
        let condition = scale.map(|scale| transformer.condition(get("condition"), scale)).transpose()?;
        let (latents, timestep) = (get("hidden_states"), get("timestep").to_dtype(DType::F32)?);
        Ok(transformer.forward_controlled(latents, &timestep, &text, size.as_ref(), condition.as_ref())?)
    }
}

#[test]
fn controlled_predictions() -> Result {
    let inputs = Inputs::read()?;
    for (case, base_name, network, scale) in CASES {
        let transformer = base(base_name)?;
        let config = transformer.config().clone();
        let transformer = transformer.with_control(control(&fixtures().join(network), &config)?)?;
        let output = inputs.predict(case, &transformer, Some(scale))?;
        let error = relative_error(&output, inputs.get(case, "output"))?;
        assert!(error <= 1e-5, "{case} with {network}: relative error {error:.2e}");
        // Not followed, it changes nothing.
        let (alone, plain) =
            (inputs.predict(case, &transformer, None)?, inputs.predict(case, &base(base_name)?, None)?);
        assert_eq!(relative_error(&alone, &plain)?, 0.0);
        assert!(relative_error(&output, &plain)? > 0.1);
    }
    Ok(())
}

/// The folder that PixArt's own file is converted to holds the same network.
#[test]
fn a_converted_controlnet_predicts_the_same() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("converted");
    convert_controlnet(&fixtures().join("original.pth"), &path)?;
    let inputs = Inputs::read()?;
    let transformer = base("base")?;
    let config = transformer.config().clone();
    let transformer = transformer.with_control(control(&path, &config)?)?;
    let error = relative_error(&inputs.predict("two", &transformer, Some(1.0))?, inputs.get("two", "output"))?;
    assert!(error <= 1e-5, "relative error {error:.2e}");
    Ok(())
}

/// As it is when training begins.
#[test]
fn zero_projections_change_nothing_at_all() -> Result {
    let inputs = Inputs::read()?;
    let transformer = base("base")?;
    let plain = inputs.predict("two", &transformer, None)?;
    let folder = fixtures().join("adapter");
    let weights = control_weights(&folder)?;
    let config = controlnet_config(&folder, &weights, transformer.config())?;
    let tensors = weights.tensors().keys().map(|name| {
        let tensor = weights.tensor(name, DType::F32, &Device::Cpu)?;
        Ok((name.clone(), if name.contains("_proj.") { tensor.zeros_like()? } else { tensor }))
    });
    let tensors = tensors.collect::<Result<std::collections::HashMap<_, _>>>()?;
    let vb = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let network = ControlNet::new(&config, transformer.config(), vb.into())?;
    let controlled = inputs.predict("two", &transformer.with_control(network)?, Some(1.0))?;
    let values = |xs: &Tensor| xs.flatten_all()?.to_vec1::<f32>();
    assert_eq!(values(&controlled)?, values(&plain)?);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result {
    let folder = fixtures();
    let base: TransformerConfig = open_part(&folder.join("base"), Part::Transformer, DType::F32)?.0;
    let refused = |network: &str, base: &TransformerConfig, parts: &[&str]| -> Result {
        let path = folder.join(network);
        let error = controlnet_config(&path, &control_weights(&path)?, base).expect_err(network).to_string();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        Ok(())
    };
    refused("adapter-sizes", &base, &["[24, 24]", "[16, 16]"])?;
    let shallow = TransformerConfig { num_layers: 2, ..base.clone() };
    refused("adapter", &shallow, &["2 copied blocks", "transformer of 2 blocks"])?;
    // The file holds its base, which has none.
    let sized = TransformerConfig { use_additional_conditions: Some(true), ..base.clone() };
    refused("original.pth", &sized, &["without size conditions", "with size conditions"])?;
    let other = folder.join("base");
    let weights = control_weights(&other)?;
    let error = controlnet_config(&other, &weights, &base).expect_err("a transformer").to_string();
    assert!(error.contains("is no ControlNet"), "{error}");
    Ok(())
}

#[test]
fn edges() -> Result {
    let golden = read_tensors(&fixtures().join("hed.safetensors"), &Device::Cpu)?;
    let weights = Weights::open(fixtures().join("hed-network.pth"))?;
    let network = Hed::new([4, 6, 8, 8, 8], weights.named(DType::F32, &Device::Cpu))?;
    assert!(weights.unread().is_empty());
    for case in ["odd", "even"] {
        let image = golden[&format!("{case}.image")].to_dtype(DType::F32)?;
        let error = relative_error(&network.forward(&image)?, &golden[&format!("{case}.edges")])?;
        assert!(error <= 1e-5, "{case}: relative error {error:.2e}");
    }
    Ok(())
}
