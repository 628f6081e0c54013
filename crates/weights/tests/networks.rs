//! Every network, loaded from every layout of checkpoint, against what diffusers and transformers compute from the same
//! files (`tools/reference/networks.py`).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::relative_error;
use pixart_diffusion::Generator;
use pixart_nn::RowsByName;
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{
    Part, PipelineFolder, Scheme, Weights, original_transformer, original_transformer_config, read_tensors,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The seed with which the reference draws from the posterior.
const POSTERIOR_SEED: u64 = 7;

const FOLDERS: [&str; 3] = ["alpha-256", "alpha-1024", "sigma-512"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn folder(name: &str) -> pixart_weights::Result<PipelineFolder> {
    PipelineFolder::open(fixtures().join("checkpoints").join(name))
}

struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    fn read(name: &str) -> Result<Self> {
        Ok(Self(read_tensors(&fixtures().join("networks").join(format!("{name}.safetensors")), &Device::Cpu)?))
    }

    fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no {name} among {:?}", self.0.keys()))
    }

    /// The cases it holds, of which there is one at least: `case.tensor` names with `tensor`.
    fn cases(&self, tensor: &str) -> Vec<&str> {
        let cases: Vec<_> = self.0.keys().filter_map(|name| name.strip_suffix(tensor)?.strip_suffix('.')).collect();
        assert!(!cases.is_empty(), "no case of {tensor}");
        cases
    }
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, golden: &Tensor, tolerance: f32) {
    let error = relative_error(found, golden).unwrap();
    assert!(error <= tolerance, "{what}: relative error {error:.2e} > {tolerance:.0e}");
}

fn check_transformer(name: &str, transformer: &PixArtTransformer, tolerance: f32) -> Result {
    let golden = Golden::read(&format!("transformer-{name}"))?;
    for case in golden.cases("output") {
        let get = |tensor: &str| golden.get(&format!("{case}.{tensor}"));
        let text = transformer.project_text(get("encoder_hidden_states"), Some(get("encoder_attention_mask")))?;
        let size = transformer.config().has_size_conditions().then(|| SizeConditions {
            resolution: get("resolution").clone(),
            aspect_ratio: get("aspect_ratio").clone(),
        });
        let output = transformer.forward(get("hidden_states"), get("timestep"), &text, size.as_ref())?;
        assert_close(&format!("{name} {case}"), &output, get("output"), tolerance);
    }
    Ok(())
}

fn transformer(folder: &PipelineFolder, dtype: DType) -> Result<PixArtTransformer> {
    let config: TransformerConfig = folder.config(Part::Transformer)?;
    let weights = folder.weights(Part::Transformer, dtype)?;
    Ok(PixArtTransformer::new(&config, weights.named(dtype, &Device::Cpu))?)
}

#[test]
fn transformers_of_diffusers_folders() -> Result {
    for name in FOLDERS {
        check_transformer(name, &transformer(&folder(name)?, DType::F32)?, 1e-5)?;
    }
    Ok(())
}

#[test]
fn transformers_of_original_files() -> Result {
    for (name, base) in [("original-256", "alpha-256"), ("original-1024", "alpha-1024")] {
        let file = fixtures().join("checkpoints").join(format!("{name}.pth"));
        let base: TransformerConfig = folder(base)?.config(Part::Transformer)?;
        let original = Weights::open(&file)?;
        let weights = original_transformer(&original)?;
        let config = original_transformer_config(&original, &weights, Some(&base))?;
        assert_eq!(config.sample_size, base.sample_size);
        let transformer = PixArtTransformer::new(&config, weights.named(DType::F32, &Device::Cpu))?;
        check_transformer(name, &transformer, 1e-5)?;
    }
    Ok(())
}

/// Half precisions stay near f32: what they lose is their rounding, not a wrong cast somewhere.
#[test]
fn half_precision_transformers_are_near() -> Result {
    for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 6e-2)] {
        for name in FOLDERS {
            let transformer = transformer(&folder(name)?, dtype)?;
            assert_eq!(transformer.dtype(), dtype);
            check_transformer(name, &transformer, tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn text_encoders() -> Result {
    for name in FOLDERS {
        let folder = folder(name)?;
        let golden = Golden::read(&format!("text_encoder-{name}"))?;
        let config: T5Config = folder.config(Part::TextEncoder)?;
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 1e-2), (DType::BF16, 8e-2)] {
            let weights = folder.weights(Part::TextEncoder, dtype)?;
            let encoder = T5Encoder::new(&config, weights.named(dtype, &Device::Cpu))?;
            let input_ids = golden.get("input_ids").to_dtype(DType::U32)?;
            let output = encoder.forward(&input_ids, golden.get("attention_mask"))?;
            assert_close(&format!("{name} {dtype:?}"), &output, golden.get("last_hidden_state"), tolerance);
        }
    }
    Ok(())
}

/// A text encoder's table of tokens stays on disk: the rows that are read are those of the whole table, which loses digits where the rest is in 8 bits.
#[test]
fn rows_of_embeddings_are_read_where_they_are() -> Result {
    let table = "shared.weight";
    let plain =
        |dtype| Ok::<_, pixart_weights::Error>((dtype, folder("alpha-256")?.weights(Part::TextEncoder, dtype)?));
    let rounded = plain(DType::F32)?.1.rounded(Part::TextEncoder, Scheme::Int8);
    for (dtype, weights) in [plain(DType::F32)?, plain(DType::F16)?, plain(DType::BF16)?, (DType::F32, rounded)] {
        let [rows, width] = weights.tensors()[table].shape[..] else { return Err("is no matrix".into()) };
        assert!(weights.unread().iter().any(|name| name == table));
        let read = weights.rows(table, (rows, width), dtype, &Device::Cpu)?.ok_or("has to be read whole")?;
        assert!(!weights.unread().iter().any(|name| name == table));

        let ids = [3, 0, 3, rows as u32 - 1];
        let of_whole =
            weights.tensor(table, dtype, &Device::Cpu)?.index_select(&Tensor::new(&ids, &Device::Cpu)?, 0)?;
        let found = read(&ids)?;
        assert_eq!((found.dtype(), found.dims()), (dtype, &[4, width][..]));
        let numbers = |rows: Tensor| rows.to_dtype(DType::F32)?.to_vec2::<f32>();
        assert_eq!(numbers(found)?, numbers(of_whole)?);
        let beyond = read(&[0, rows as u32]).unwrap_err().to_string();
        assert!(beyond.contains(&format!("\"shared.weight\" has no row {rows}: it has {rows}")), "{beyond}");
        // What does not fit is refused when it is read whole.
        assert!(weights.rows(table, (rows, width + 1), dtype, &Device::Cpu)?.is_none());
        assert!(weights.rows("share.weight", (rows, width), dtype, &Device::Cpu)?.is_none());
    }
    Ok(())
}

#[test]
fn autoencoders() -> Result {
    for name in FOLDERS {
        let folder = folder(name)?;
        let golden = Golden::read(&format!("vae-{name}"))?;
        let config: VaeConfig = folder.config(Part::Vae)?;
        let weights = folder.weights(Part::Vae, DType::F32)?;
        let vae = AutoencoderKl::new(&config, weights.named(DType::F32, &Device::Cpu))?;
        for case in golden.cases("decoded") {
            let get = |tensor: &str| golden.get(&format!("{case}.{tensor}"));
            let check =
                |what: &str, found: &Tensor| assert_close(&format!("{name} {case} {what}"), found, get(what), 1e-5);
            check("decoded", &vae.decode(get("latents"))?);
            // In bands of 8 rows, the fewest, and of more.
            check("decoded", &vae.decode_in_bands(get("latents"), 1)?);
            check("decoded", &vae.decode_in_bands(get("latents"), 1 << 14)?);
            let posterior = vae.encode(get("image"))?;
            check("mean", &posterior.mean);
            check("logvar", &posterior.logvar);
            check("std", &posterior.std()?);
            let noise = Generator::new(POSTERIOR_SEED).randn_tensor(posterior.mean.shape(), &Device::Cpu)?;
            check("posterior_sample", &posterior.sample(&noise)?);
        }
    }
    Ok(())
}

/// A weight of another shape names the file, the tensor and both shapes.
#[test]
fn a_config_that_does_not_fit_is_refused() -> Result {
    let folder = folder("alpha-256")?;
    let config: TransformerConfig = folder.config(Part::Transformer)?;
    let wider = TransformerConfig { caption_channels: Some(48), ..config };
    let weights = folder.weights(Part::Transformer, DType::F32)?;
    let error = PixArtTransformer::new(&wider, weights.named(DType::F32, &Device::Cpu)).unwrap_err();
    let message = pixart_weights::plain_message(&error);
    for part in ["diffusion_pytorch_model.safetensors", "caption_projection.linear_1.weight", "[32, 32]", "[32, 48]"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains('\n'));
    Ok(())
}
