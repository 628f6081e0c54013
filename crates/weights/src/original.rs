//! Transformers in the layout of PixArt's own code: the same tensors under other names, with queries, keys and values
//! fused. A fused weight's parts are ranges of its rows, so nothing is copied.

use std::collections::BTreeMap;

use pixart_nn::transformer::TransformerConfig;

use crate::{Error, Result, Weights};

/// Heads of every transformer that PixArt's own code defines; its checkpoints do not say.
const HEADS: usize = 16;

/// The tensor by which PixArt's own layout is recognised.
const LANDMARK: &str = "x_embedder.proj.weight";

/// Whether `weights` are a transformer in the layout of PixArt's own code.
pub fn is_original_transformer(weights: &Weights) -> bool {
    weights.tensors().contains_key(LANDMARK)
}

/// The same weights under diffusers' names. Errors: a tensor that this layout does not have.
pub fn original_transformer(weights: &Weights) -> Result<Weights> {
    mapped(weights, "transformer", place)
}

/// `weights` of a `network` in PixArt's own layout under diffusers' names, which `place` tells.
pub(crate) fn mapped(weights: &Weights, network: &str, place: impl Fn(&str) -> Place) -> Result<Weights> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in weights.tensors() {
        match place(name) {
            Place::Dropped => {}
            Place::At(new) => {
                tensors.insert(new, tensor.clone());
            }
            Place::Split(new) => {
                let rows = tensor.shape.first().copied().unwrap_or(0);
                if rows == 0 || rows % new.len() != 0 {
                    let reason =
                        format!("tensor {name:?} of shape {:?} does not split into {}", tensor.shape, new.len());
                    return Err(Error::corrupt(weights.path_of(tensor), reason));
                }
                let part = rows / new.len();
                for (i, new) in new.into_iter().enumerate() {
                    tensors.insert(new, tensor.rows(i * part, part));
                }
            }
            Place::Unknown => {
                let reason = format!("tensor {name:?} belongs to no PixArt {network} this program knows");
                return Err(Error::unsupported(weights.path_of(tensor), reason));
            }
        }
    }
    Ok(weights.mapped_to(tensors))
}

/// What becomes of a tensor of PixArt's own layout.
pub(crate) enum Place {
    At(String),
    /// Its rows, in equal parts.
    Split(Vec<String>),
    /// Recomputed (positions) or only used in training (the embedding of a dropped caption).
    Dropped,
    Unknown,
}

fn place(name: &str) -> Place {
    if matches!(name, "pos_embed" | "y_embedder.y_embedding") {
        return Place::Dropped;
    }
    if name == "final_layer.scale_shift_table" {
        return Place::At("scale_shift_table".into());
    }
    if let Some((index, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        return block_place(&format!("transformer_blocks.{index}"), rest);
    }
    let Some((layer, kind)) = name.rsplit_once('.') else { return Place::Unknown };
    let layer = match layer {
        "x_embedder.proj" => "pos_embed.proj",
        "t_embedder.mlp.0" => "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2" => "adaln_single.emb.timestep_embedder.linear_2",
        "csize_embedder.mlp.0" => "adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.2" => "adaln_single.emb.resolution_embedder.linear_2",
        "ar_embedder.mlp.0" => "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "ar_embedder.mlp.2" => "adaln_single.emb.aspect_ratio_embedder.linear_2",
        "t_block.1" => "adaln_single.linear",
        "y_embedder.y_proj.fc1" => "caption_projection.linear_1",
        "y_embedder.y_proj.fc2" => "caption_projection.linear_2",
        "final_layer.linear" => "proj_out",
        _ => return Place::Unknown,
    };
    Place::At(format!("{layer}.{kind}"))
}

/// Of the tensor `name` of a block, which diffusers calls `block`.
pub(crate) fn block_place(block: &str, name: &str) -> Place {
    if name == "scale_shift_table" {
        return Place::At(format!("{block}.scale_shift_table"));
    }
    let Some((layer, kind)) = name.rsplit_once('.') else { return Place::Unknown };
    let fused: &[&str] = match layer {
        "attn.qkv" => &["attn1.to_q", "attn1.to_k", "attn1.to_v"],
        "cross_attn.kv_linear" => &["attn2.to_k", "attn2.to_v"],
        "attn.proj" => &["attn1.to_out.0"],
        "attn.q_norm" => &["attn1.q_norm"],
        "attn.k_norm" => &["attn1.k_norm"],
        "cross_attn.q_linear" => &["attn2.to_q"],
        "cross_attn.proj" => &["attn2.to_out.0"],
        "mlp.fc1" => &["ff.net.0.proj"],
        "mlp.fc2" => &["ff.net.2"],
        _ => return Place::Unknown,
    };
    let mut places: Vec<_> = fused.iter().map(|part| format!("{block}.{part}.{kind}")).collect();
    match (places.pop(), places.is_empty()) {
        (Some(only), true) => Place::At(only),
        (Some(last), false) => {
            places.push(last);
            Place::Split(places)
        }
        (None, _) => Place::Unknown,
    }
}

/// The config of a transformer whose `weights` have already been renamed by [`original_transformer`], read off its shapes.
/// `base`, the config of the folder it is loaded over, settles what shapes do not say: the head size and, where the
/// checkpoint lacks its position table (`original` is the file as it is), the native size.
pub fn original_transformer_config(
    original: &Weights,
    weights: &Weights,
    base: Option<&TransformerConfig>,
) -> Result<TransformerConfig> {
    let shape = |name: &str| -> Result<&[usize]> {
        match weights.tensors().get(name) {
            Some(tensor) => Ok(&tensor.shape),
            None => {
                let path = original.paths().next().unwrap_or(std::path::Path::new(""));
                Err(Error::missing(path, format!("holds no tensor for {name:?}: an incomplete PixArt transformer")))
            }
        }
    };
    let dim = |name: &str, axis: usize| -> Result<usize> {
        shape(name)?.get(axis).copied().ok_or_else(|| Error::Tensor(format!("{name:?} has too few dimensions")))
    };
    let width = dim("pos_embed.proj.weight", 0)?;
    let patch_size = dim("pos_embed.proj.weight", 2)?.max(1);
    let layers = weights
        .tensors()
        .keys()
        .filter_map(|name| name.strip_prefix("transformer_blocks.")?.split_once('.')?.0.parse::<usize>().ok());
    let heads = match base {
        Some(base) if base.width() == width => base.num_attention_heads,
        _ => HEADS,
    };
    if heads == 0 || !width.is_multiple_of(heads) {
        let path = original.paths().next().unwrap_or(std::path::Path::new(""));
        let reason =
            format!("is {width} wide, which is no multiple of {heads} heads; load it over a folder of its width");
        return Err(Error::unsupported(path, reason));
    }
    let has_size_conditions = weights.tensors().contains_key("adaln_single.emb.resolution_embedder.linear_1.weight");
    let positions = original.tensors().get("pos_embed").and_then(|table| table.shape.get(1)).copied();
    let sample_size = match (positions, base) {
        (Some(count), _) => count.isqrt() * patch_size,
        (None, Some(base)) => base.sample_size,
        (None, None) if has_size_conditions => 128,
        (None, None) => 64,
    };
    Ok(TransformerConfig {
        num_attention_heads: heads,
        attention_head_dim: width / heads,
        in_channels: dim("pos_embed.proj.weight", 1)?,
        out_channels: Some(dim("proj_out.weight", 0)? / (patch_size * patch_size)),
        num_layers: layers.max().map_or(0, |last| last + 1),
        cross_attention_dim: Some(width),
        sample_size,
        patch_size,
        interpolation_scale: base
            .filter(|base| base.sample_size == sample_size)
            .and_then(|base| base.interpolation_scale),
        use_additional_conditions: Some(has_size_conditions),
        caption_channels: Some(dim("caption_projection.linear_1.weight", 1)?),
        ..TransformerConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoredTensor;

    fn places(name: &str) -> Vec<String> {
        match place(name) {
            Place::At(one) => vec![one],
            Place::Split(many) => many,
            Place::Dropped => vec![],
            Place::Unknown => panic!("{name} is unknown"),
        }
    }

    #[test]
    fn names_become_diffusers_names() {
        assert_eq!(places("x_embedder.proj.bias"), ["pos_embed.proj.bias"]);
        assert_eq!(
            places("blocks.27.attn.qkv.weight"),
            ["to_q", "to_k", "to_v"].map(|part| format!("transformer_blocks.27.attn1.{part}.weight"))
        );
        assert_eq!(places("blocks.0.mlp.fc2.bias"), ["transformer_blocks.0.ff.net.2.bias"]);
        assert!(places("pos_embed").is_empty());
        assert!(matches!(place("blocks.0.attn.sr.weight"), Place::Unknown));
    }

    #[test]
    fn rows_of_a_tensor_are_a_range_of_its_bytes() {
        let fused = StoredTensor { shape: vec![6, 5], dtype: crate::StoredDtype::F16, file: 0, bytes: 100..160 };
        let keys = fused.rows(2, 2);
        assert_eq!((keys.shape, keys.bytes), (vec![2, 5], 120..140));
    }
}
