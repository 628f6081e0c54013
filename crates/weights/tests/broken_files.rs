//! Truncated and bit-flipped files: every loader answers with an error or with something whole, never with a panic.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use pixart_nn::NamedWeights;
use pixart_nn::t5::T5Encoder;
use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};
use pixart_nn::vae::AutoencoderKl;
use pixart_weights::{
    Error, Part, PipelineFolder, Weights, convert_transformer, original_transformer, read_json, read_tokenizer,
};
use proptest::prelude::*;
use serde::de::DeserializeOwned;

fn checkpoints() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (source, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            std::fs::copy(&source, &target).unwrap();
        }
    }
}

/// What is done to a file: cut to a share of its length, or bits flipped near its beginning or its end, where headers,
/// indexes and pickles are, and anywhere.
#[derive(Debug, Clone)]
enum Damage {
    Cut(f64),
    Flip(Vec<(f64, u8)>),
    FlipNearStart(Vec<(usize, u8)>),
    FlipNearEnd(Vec<(usize, u8)>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let near = || prop::collection::vec((0usize..1500, 0u8..8), 1..8);
    prop_oneof![
        (0.0..1.0).prop_map(Damage::Cut),
        prop::collection::vec((0.0..1.0, 0u8..8), 1..20).prop_map(Damage::Flip),
        near().prop_map(Damage::FlipNearStart),
        near().prop_map(Damage::FlipNearEnd),
    ]
}

fn damaged(bytes: &[u8], damage: &Damage) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let len = bytes.len();
    let at = |share: f64| ((len as f64 * share) as usize).min(len - 1);
    match damage {
        Damage::Cut(share) => bytes.truncate(at(*share)),
        Damage::Flip(flips) => flips.iter().for_each(|(share, bit)| bytes[at(*share)] ^= 1 << bit),
        Damage::FlipNearStart(flips) => flips.iter().for_each(|(i, bit)| bytes[i % len] ^= 1 << bit),
        Damage::FlipNearEnd(flips) => flips.iter().for_each(|(i, bit)| bytes[len - 1 - i % len] ^= 1 << bit),
    }
    bytes
}

/// Reads all that a file could give.
fn read_everything(weights: &Weights) {
    for name in weights.tensors().keys() {
        let _either = weights.tensor(name, DType::F32, &Device::Cpu);
    }
}

fn check_weights(source: &str, name: &str, damage: &Damage) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let bytes = std::fs::read(checkpoints().join(source)).unwrap();
    std::fs::write(&path, damaged(&bytes, damage)).unwrap();
    if let Ok(weights) = Weights::open(&path) {
        read_everything(&weights);
        if let Ok(renamed) = original_transformer(&weights) {
            read_everything(&renamed);
        }
    }
}

fn check_tokenizer(source: &str, name: &str, damage: &Damage) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&checkpoints().join(source), folder.path());
    let path = folder.path().join(name);
    std::fs::write(&path, damaged(&std::fs::read(&path).unwrap(), damage)).unwrap();
    if let Ok(tokenizer) = read_tokenizer(folder.path()) {
        for text in ["a small cactus", "ﬁ ½ ｅ́ \u{1F335}\u{200D} \u{0}\u{FEFF}ünï", "<extra_id_0> </s>", ""] {
            let _either = tokenizer.encode(text, false);
        }
    }
}

/// Reads a part's config and, if it is one, builds the network that it and the part's weights make: a flipped digit can ask
/// for a network of any size, and building it must end with an error, not exhaust memory.
fn build_part<C: DeserializeOwned, N>(
    folder: &PipelineFolder,
    part: Part,
    build: impl Fn(&C, NamedWeights) -> candle_core::Result<N>,
) {
    if let (Ok(config), Ok(weights)) = (folder.config::<C>(part), folder.weights(part, DType::F32)) {
        let _either = build(&config, weights.named(DType::F32, &Device::Cpu));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn safetensors_files(damage in damage()) {
        check_weights("alpha-256/transformer/diffusion_pytorch_model.safetensors", "x.safetensors", &damage);
    }

    #[test]
    fn pickled_files(damage in damage()) {
        check_weights("original-256.pth", "x.pth", &damage);
    }

    #[test]
    fn sentencepiece_models(damage in damage()) {
        check_tokenizer("alpha-256/tokenizer", "spiece.model", &damage);
    }

    #[test]
    fn tokenizer_json(damage in damage()) {
        check_tokenizer("sigma-512/tokenizer", "tokenizer.json", &damage);
    }

    #[test]
    fn tokenizer_configs(damage in damage()) {
        check_tokenizer("alpha-256/tokenizer", "tokenizer_config.json", &damage);
    }

    #[test]
    fn shard_indexes_and_configs(damage in damage()) {
        let source = checkpoints().join("alpha-256");
        let files = [
            "model_index.json",
            "transformer/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors.index.json",
        ];
        for file in files {
            let folder = tempfile::tempdir().unwrap();
            copy_folder(&source, folder.path());
            std::fs::write(folder.path().join(file), damaged(&std::fs::read(source.join(file)).unwrap(), &damage)).unwrap();
            let Ok(folder) = PipelineFolder::open(folder.path()) else { continue };
            build_part(&folder, Part::Transformer, PixArtTransformer::new);
            build_part(&folder, Part::Vae, AutoencoderKl::new);
            build_part(&folder, Part::TextEncoder, T5Encoder::new);
        }
    }
}

fn message_of<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// The messages name the file and say what is wrong with it.
#[test]
fn messages_name_the_file_and_the_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("model");
    copy_folder(&checkpoints().join("alpha-256"), &root);
    let open = || PipelineFolder::open(&root).unwrap();
    let contains = |message: String, parts: &[&str]| {
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    };

    contains(message_of(PipelineFolder::open(folder.path().join("nowhere"))), &["nowhere", "no such folder"]);
    contains(message_of(PipelineFolder::open(root.join("vae"))), &["vae", "AutoencoderKL", "pipeline"]);

    let shard = root.join("text_encoder/model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 10]).unwrap();
    contains(message_of(open().weights(Part::TextEncoder, DType::F32)), &["model-00002", "truncated"]);
    std::fs::remove_file(&shard).unwrap();
    contains(message_of(open().weights(Part::TextEncoder, DType::F32)), &["model-00002", "missing", "index.json"]);

    std::fs::remove_file(root.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    contains(message_of(open().weights(Part::Vae, DType::F32)), &["vae", "diffusion_pytorch_model.safetensors"]);

    std::fs::write(root.join("transformer/config.json"), r#"{"_class_name": "UNet2DConditionModel"}"#).unwrap();
    contains(message_of(open().config::<TransformerConfig>(Part::Transformer)), &["UNet2DConditionModel", "PixArt"]);
    std::fs::write(root.join("transformer/config.json"), "{").unwrap();
    contains(message_of(read_json(&root.join("transformer/config.json"))), &["config.json", "not valid JSON"]);

    std::fs::write(root.join("model_index.json"), r#"{"_class_name": "StableDiffusionPipeline"}"#).unwrap();
    contains(message_of(PipelineFolder::open(&root)), &["StableDiffusionPipeline", "PixArtAlphaPipeline"]);

    std::fs::remove_file(root.join("tokenizer/spiece.model")).unwrap();
    contains(message_of(read_tokenizer(&root.join("tokenizer"))), &["tokenizer.json", "spiece.model"]);
}

/// Converting leaves a whole folder or none.
#[test]
fn conversion_writes_what_loads_and_nothing_on_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let base = PipelineFolder::open(checkpoints().join("alpha-256")).unwrap();
    let output = folder.path().join("converted");
    convert_transformer(&checkpoints().join("original-256.pth"), Some(&base), &output).unwrap();
    let converted = PipelineFolder::open(&output).unwrap();
    let config: TransformerConfig = converted.config(Part::Transformer).unwrap();
    let wanted: TransformerConfig = base.config(Part::Transformer).unwrap();
    assert_eq!(config, TransformerConfig { use_additional_conditions: Some(false), ..wanted });
    let expected = original_transformer(&Weights::open(checkpoints().join("original-256.pth")).unwrap()).unwrap();
    let found = converted.weights(Part::Transformer, DType::F32).unwrap();
    assert!(found.tensors().keys().eq(expected.tensors().keys()));
    for name in found.tensors().keys() {
        let values = |weights: &Weights| {
            weights.tensor(name, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&found), values(&expected), "{name}");
    }
    assert!(converted.weights(Part::TextEncoder, DType::F32).is_ok());
    assert!(converted.weights(Part::Vae, DType::F32).is_ok());

    let vae = checkpoints().join("alpha-256/vae/diffusion_pytorch_model.safetensors");
    let message = message_of(convert_transformer(&vae, Some(&base), &folder.path().join("other")));
    assert!(message.contains("x_embedder"), "{message}");
    let message = message_of(convert_transformer(&checkpoints().join("original-256.pth"), None, &output));
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else was left");
}
