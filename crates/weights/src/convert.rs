//! New diffusers folders: from PixArt's own files, and from folders with some of their parts replaced.

use std::path::Path;

use candle_core::DType;
use pixart_nn::controlnet::ControlNetConfig;
use pixart_nn::transformer::TransformerConfig;
use serde_json::{Value, json};

use crate::{
    Error, Part, PipelineFolder, Result, StoredDtype, Weights, controlnet, is_original_transformer,
    original_transformer, original_transformer_config, read_json, write_json,
};

/// Turns a transformer in the layout of PixArt's own code into the folder `output` that diffusers loads: with `base`, a
/// whole pipeline whose other parts are copied from there, else the transformer's folder alone.
///
/// # Errors
/// A file that is no such transformer; an `output` that exists. On an error no folder is left.
pub fn convert_transformer(file: &Path, base: Option<&PipelineFolder>, output: &Path) -> Result<TransformerConfig> {
    let original = Weights::open(file)?;
    if !is_original_transformer(&original) {
        let reason = "is no transformer of PixArt's own layout (it has no tensor x_embedder.proj.weight)";
        return Err(Error::unsupported(file, reason));
    }
    let weights = original_transformer(&original)?;
    let base_config: Option<TransformerConfig> = base.map(|base| base.config(Part::Transformer)).transpose()?;
    let config = original_transformer_config(&original, &weights, base_config.as_ref())?;
    config.validate().map_err(|reason| Error::unsupported(file, reason))?;

    new_folder(output, |temporary| {
        let transformer = match base {
            Some(base) => {
                copy_folder(base.path(), temporary, &|name| name == Path::new(Part::Transformer.name()))?;
                temporary.join(Part::Transformer.name())
            }
            None => temporary.to_path_buf(),
        };
        std::fs::create_dir_all(&transformer).map_err(Error::io(&transformer))?;
        write_json(&transformer.join("config.json"), &transformer_config_json(&config)?)?;
        weights.save_as(&transformer.join("diffusion_pytorch_model.safetensors"), None)?;
        Ok(config)
    })
}

/// Writes the pipeline `folder`, with the parts and LoRAs it was told to take, to the new folder `output`: weights in `dtype`
/// (f32, f16 or bf16), or as they are stored, in one safetensors file a part. `scheduler`, a whole
/// `scheduler_config.json`, takes the place of the folder's.
///
/// # Errors
/// A part that is missing or broken; an `output` that exists. On an error no folder is left.
pub fn convert_pipeline(
    folder: &PipelineFolder,
    dtype: Option<StoredDtype>,
    scheduler: Option<&Value>,
    output: &Path,
) -> Result<()> {
    // Parts of the wrong kind are found before anything is written.
    folder.parts().try_for_each(|part| folder.config::<Value>(part).map(|_| ()))?;
    new_folder(output, |temporary| {
        let index = "model_index.json";
        std::fs::copy(folder.path().join(index), temporary.join(index))
            .map_err(Error::io(&folder.path().join(index)))?;
        for from in [folder.tokenizer_path(), folder.path().join("scheduler")] {
            let to = temporary.join(from.file_name().unwrap_or_default());
            std::fs::create_dir(&to).map_err(Error::io(&to))?;
            copy_folder(&from, &to, &|_| false)?;
        }
        for part in folder.parts() {
            let to = temporary.join(part.name());
            std::fs::create_dir(&to).map_err(Error::io(&to))?;
            let from = folder.config_path(part);
            std::fs::copy(&from, to.join("config.json")).map_err(Error::io(&from))?;
            let weights = folder.weights(part, DType::F32)?;
            weights.save_as(&to.join(format!("{}.safetensors", part.stems()[0])), dtype)?;
        }
        if let Some(scheduler) = scheduler {
            write_json(&temporary.join("scheduler").join("scheduler_config.json"), scheduler)?;
            let path = temporary.join(index);
            let mut index = read_json(&path)?;
            index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
            write_json(&path, &index)?;
        }
        Ok(())
    })
}

/// Turns the ControlNet of PixArt's own `.pth` file into the folder `output`, in the layout of diffusers' research example.
///
/// # Errors
/// A file that is no such ControlNet; an `output` that exists. On an error no folder is left.
pub fn convert_controlnet(file: &Path, output: &Path) -> Result<ControlNetConfig> {
    let original = Weights::open(file)?;
    let weights = controlnet::from_original(&original)?;
    let (config, json) = controlnet::original_config(file, &original, &weights)?;
    new_folder(output, |temporary| {
        write_json(&temporary.join("config.json"), &json)?;
        weights.save_as(&temporary.join("diffusion_pytorch_model.safetensors"), None)?;
        Ok(config)
    })
}

/// Whether `file` holds a ControlNet in the layout of PixArt's own code.
///
/// # Errors
/// A file that cannot be read.
pub fn is_original_controlnet(file: &Path) -> Result<bool> {
    Ok(controlnet::is_original(&Weights::open(file)?))
}

/// Writes the folder of a single network (a part of a pipeline, a LoRA), with its `.safetensors` files in `dtype` and all else
/// as it is, to the new folder `output`.
///
/// # Errors
/// No such files there, or broken ones; an `output` that exists. On an error no folder is left.
pub fn convert_network(folder: &Path, dtype: StoredDtype, output: &Path) -> Result<()> {
    new_folder(output, |temporary| {
        let is_converted = |name: &Path| name.extension().is_some_and(|end| end == "safetensors");
        copy_folder(folder, temporary, &is_converted)?;
        let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let paths = entries.map(|entry| Ok(entry.map_err(Error::io(folder))?.path())).collect::<Result<Vec<_>>>()?;
        let mut files = paths.iter().filter(|path| is_converted(path)).peekable();
        if files.peek().is_none() {
            return Err(Error::missing(folder, "there is neither a model_index.json nor a .safetensors file"));
        }
        files.try_for_each(|file| {
            let target = temporary.join(file.file_name().unwrap_or_default());
            Weights::open(file)?.save_as(&target, Some(dtype))
        })
    })
}

/// Makes the folder `output` by way of a temporary one beside it, which `write` fills.
pub(crate) fn new_folder<R>(output: &Path, write: impl FnOnce(&Path) -> Result<R>) -> Result<R> {
    if output.exists() {
        return Err(Error::unsupported(output, "exists already; name a new folder"));
    }
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(Error::missing(parent, "there is no such folder to write into"));
    }
    // Dropped on an error, with all that is in it.
    let temporary = tempfile::Builder::new().prefix(".pixart-").tempdir_in(parent).map_err(Error::io(parent))?;
    let result = write(temporary.path()).map_err(|error| error.moved(temporary.path(), output))?;
    make_readable(temporary.path())?;
    std::fs::rename(temporary.path(), output).map_err(Error::io(output))?;
    Ok(result)
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

/// Copies a folder but for those of its entries whose names are to be left out.
pub(crate) fn copy_folder(from: &Path, to: &Path, leave_out: &dyn Fn(&Path) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let entry = entry.map_err(Error::io(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if leave_out(Path::new(&entry.file_name())) || entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if source.is_dir() {
            std::fs::create_dir(&target).map_err(Error::io(&target))?;
            copy_folder(&source, &target, &|_| false)?;
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
