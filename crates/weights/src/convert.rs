//! From PixArt's own files to diffusers folders.

use std::path::Path;

use pixart_nn::transformer::TransformerConfig;
use serde_json::{Value, json};

use crate::{
    Error, Part, PipelineFolder, Result, Weights, is_original_transformer, original_transformer,
    original_transformer_config,
};

/// Turns a transformer in the layout of PixArt's own code into the folder `output` that diffusers loads: with `base`, a
/// whole pipeline whose other parts are copied from there, else the transformer's folder alone.
///
/// # Errors
/// A file that is no such transformer; an `output` that exists. On an error no folder is left.
pub fn convert_transformer(file: &Path, base: Option<&PipelineFolder>, output: &Path) -> Result<TransformerConfig> {
    if output.exists() {
        return Err(Error::unsupported(output, "exists already; name a new folder"));
    }
    let original = Weights::open(file)?;
    if !is_original_transformer(&original) {
        let reason = "is no transformer of PixArt's own layout (it has no tensor x_embedder.proj.weight)";
        return Err(Error::unsupported(file, reason));
    }
    let weights = original_transformer(&original)?;
    let base_config: Option<TransformerConfig> = base.map(|base| base.config(Part::Transformer)).transpose()?;
    let config = original_transformer_config(&original, &weights, base_config.as_ref())?;
    config.validate().map_err(|reason| Error::unsupported(file, reason))?;

    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Dropped on an error, with all that is in it.
    let temporary = tempfile::Builder::new().prefix(".pixart-").tempdir_in(parent).map_err(Error::io(parent))?;
    let transformer = match base {
        Some(base) => {
            copy_folder(base.path(), temporary.path(), Part::Transformer.name())?;
            temporary.path().join(Part::Transformer.name())
        }
        None => temporary.path().to_path_buf(),
    };
    std::fs::create_dir_all(&transformer).map_err(Error::io(&transformer))?;
    let config_path = transformer.join("config.json");
    std::fs::write(&config_path, format!("{:#}\n", transformer_config_json(&config)?))
        .map_err(Error::io(&config_path))?;
    weights.save(&transformer.join("diffusion_pytorch_model.safetensors"))?;
    make_readable(temporary.path())?;
    std::fs::rename(temporary.path(), output).map_err(Error::io(output))?;
    Ok(config)
}

/// A transformer's `config.json`, with what diffusers wants to see beside the fields that are read here.
pub fn transformer_config_json(config: &TransformerConfig) -> Result<Value> {
    let mut value = serde_json::to_value(config).map_err(|error| Error::Tensor(error.to_string()))?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("_class_name".into(), json!(Part::Transformer.classes()[0]));
        fields.insert("_diffusers_version".into(), json!("0.42.1"));
        fields.insert("num_embeds_ada_norm".into(), json!(1000));
        fields.insert("norm_num_groups".into(), json!(32));
        fields.insert("dropout".into(), json!(0.0));
        fields.insert("upcast_attention".into(), json!(false));
    }
    Ok(value)
}

/// Copies a folder but for one entry of it.
fn copy_folder(from: &Path, to: &Path, without: &str) -> Result<()> {
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let entry = entry.map_err(Error::io(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == without || entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if source.is_dir() {
            std::fs::create_dir(&target).map_err(Error::io(&target))?;
            copy_folder(&source, &target, "")?;
        } else {
            std::fs::copy(&source, &target).map_err(Error::io(&target))?;
        }
    }
    Ok(())
}

/// Temporary folders are private; a finished one is as any other.
#[cfg(unix)]
fn make_readable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).map_err(Error::io(folder))
}

#[cfg(not(unix))]
fn make_readable(_: &Path) -> Result<()> {
    Ok(())
}
