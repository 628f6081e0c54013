//! Safetensors files of latents and embeddings that users hand in and out.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{Result, Weights, write_atomically, write_safetensors};

/// Reads every tensor of a safetensors (or PyTorch) file as f32.
pub fn read_tensors(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let weights = Weights::open(path)?;
    let read = |name: &String| Ok((name.clone(), weights.tensor(name, DType::F32, device)?));
    weights.tensors().keys().map(read).collect()
}

/// Writes tensors as f32.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        views.push((name.to_string(), crate::write::Bytes::new(crate::StoredDtype::F32, tensor.dims(), bytes)));
    }
    write_atomically(path, |temporary| write_safetensors(views, temporary))
}
