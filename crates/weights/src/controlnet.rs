//! ControlNets: folders as diffusers' research example saves them, and PixArt's own `.pth` files, which hold the base
//! transformer too.

use std::collections::BTreeSet;
use std::path::Path;

use pixart_nn::controlnet::ControlNetConfig;
use pixart_nn::transformer::TransformerConfig;
use serde_json::{Value, json};

use crate::original::{Place, block_place, mapped};
use crate::{Error, Part, Result, Weights, read_json};

/// What the base's tensors begin with in PixArt's own files, and the ControlNet's.
const BASE: &str = "base_model.";
const COPIES: &str = "controlnet.";

/// Whether `weights` are a ControlNet in the layout of PixArt's own code.
pub(crate) fn is_original(weights: &Weights) -> bool {
    weights.tensors().keys().any(|name| name.starts_with(COPIES))
}

/// The same weights under diffusers' names, without the base.
pub(crate) fn from_original(weights: &Weights) -> Result<Weights> {
    mapped(weights, "ControlNet", |name| {
        let Some(rest) = name.strip_prefix(COPIES) else {
            return if name.starts_with(BASE) { Place::Dropped } else { Place::Unknown };
        };
        let Some((copy, rest)) = rest.split_once('.') else { return Place::Unknown };
        let new = format!("controlnet_blocks.{copy}");
        match (rest.strip_prefix("copied_block."), rest) {
            (Some(of_block), _) => block_place(&format!("{new}.transformer_block"), of_block),
            (None, "before_proj.weight" | "before_proj.bias" | "after_proj.weight" | "after_proj.bias") => {
                Place::At(format!("{new}.{rest}"))
            }
            _ => Place::Unknown,
        }
    })
}

/// The config of the ControlNet at `path` (a folder or a file), which is to steer a transformer of `base`. `weights` are its
/// own, as [`PipelineFolder::weights`](crate::PipelineFolder::weights) gives them.
///
/// # Errors
/// Weights of no ControlNet, or of one for a transformer of another width or depth, or with other size conditions.
pub fn controlnet_config(path: &Path, weights: &Weights, base: &TransformerConfig) -> Result<ControlNetConfig> {
    let unfit = |reason: String| Err(Error::unsupported(path, reason));
    let config = ControlNetConfig { num_layers: copies(path, weights)? };
    let before = "controlnet_blocks.0.before_proj.weight";
    let Some(projection) = weights.tensors().get(before) else {
        return Err(Error::corrupt(path, format!("is no ControlNet for PixArt: there is no tensor {before:?}")));
    };
    let json = if path.is_dir() { Some(read_json(&path.join("config.json"))?) } else { None };
    if let Some(told) = json.as_ref().and_then(|json| json.get("num_layers")?.as_u64())
        && told != config.num_layers as u64
    {
        let found = config.num_layers;
        return Err(Error::corrupt(path, format!("config.json has {told} copied blocks, the weights {found}")));
    }
    let width = base.width();
    if projection.shape != [width, width] {
        return unfit(format!(
            "the ControlNet's projections are {:?}, this transformer's would be {:?}: it was made for another one",
            projection.shape,
            [width, width]
        ));
    }
    if let Err(reason) = config.validate(base) {
        return unfit(reason);
    }
    match has_size_conditions(path, json.as_ref())? {
        Some(has) if has != base.has_size_conditions() => {
            let with = |has: bool| if has { "with size conditions" } else { "without size conditions" };
            unfit(format!(
                "the ControlNet was made for a transformer {}, this one is {}",
                with(has),
                with(base.has_size_conditions())
            ))
        }
        _ => Ok(config),
    }
}

/// How many blocks are copied in weights with diffusers' names.
fn copies(path: &Path, weights: &Weights) -> Result<usize> {
    let names = weights.tensors().keys();
    let copies: BTreeSet<usize> =
        names.filter_map(|name| name.strip_prefix("controlnet_blocks.")?.split_once('.')?.0.parse().ok()).collect();
    match copies.last() {
        Some(last) if last + 1 != copies.len() => {
            Err(Error::corrupt(path, format!("holds copies {copies:?}: some are missing")))
        }
        _ => Ok(copies.len()),
    }
}

/// Whether its base has size conditions, where the files say so: PixArt's hold the base, `config.json` may have the field.
fn has_size_conditions(path: &Path, json: Option<&Value>) -> Result<Option<bool>> {
    Ok(match json {
        Some(json) => json.get("use_additional_conditions").and_then(Value::as_bool),
        None => base_has_size_conditions(&Weights::open(path)?),
    })
}

/// Of PixArt's own file, where it holds the base.
fn base_has_size_conditions(original: &Weights) -> Option<bool> {
    let holds = |prefix: &str| original.tensors().keys().any(|name| name.starts_with(prefix));
    holds(BASE).then(|| holds("base_model.csize_embedder."))
}

/// Config and `config.json` of a ControlNet in PixArt's own layout, whose `weights` [`from_original`] has renamed.
pub(crate) fn original_config(path: &Path, original: &Weights, weights: &Weights) -> Result<(ControlNetConfig, Value)> {
    let config = ControlNetConfig { num_layers: copies(path, weights)? };
    Ok((config.clone(), config_json(&config, base_has_size_conditions(original))))
}

/// The first `copies` blocks of a transformer under the names that a ControlNet's have: what its training begins with, beside
/// projections of zeros. Nothing is copied.
pub fn controlnet_of(base: &Weights, copies: usize) -> Weights {
    let named = base.tensors().iter().filter_map(|(name, tensor)| {
        let (block, rest) = name.strip_prefix("transformer_blocks.")?.split_once('.')?;
        let block = block.parse::<usize>().ok().filter(|block| *block < copies)?;
        Some((format!("controlnet_blocks.{block}.transformer_block.{rest}"), tensor.clone()))
    });
    base.mapped_to(named.collect())
}

/// A ControlNet's `config.json`: what diffusers' research example reads, and what tells which transformers it fits.
pub fn controlnet_config_json(config: &ControlNetConfig, base: &TransformerConfig) -> Value {
    config_json(config, Some(base.has_size_conditions()))
}

fn config_json(config: &ControlNetConfig, has_size_conditions: Option<bool>) -> Value {
    let mut json = json!({
        "_class_name": Part::ControlNet.classes()[0],
        "_diffusers_version": "0.42.1",
        "num_layers": config.num_layers,
    });
    if let Some(has) = has_size_conditions {
        json["use_additional_conditions"] = has.into();
    }
    json
}
