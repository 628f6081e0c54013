//! Safetensors files of latents and embeddings that users hand in and out.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};

use crate::{Error, Result, StoredDtype, Weights, write_atomically, write_safetensors};

/// Reads every tensor of a safetensors (or PyTorch) file as f32.
pub fn read_tensors(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let weights = Weights::open(path)?;
    let read = |name: &String| Ok((name.clone(), weights.tensor(name, DType::F32, device)?));
    weights.tensors().keys().map(read).collect()
}

/// Writes tensors as f32.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<()> {
    write_tensors_as(path, StoredDtype::F32, tensors)
}

/// Writes tensors as f32, f16 or bf16.
///
/// # Errors
/// A file that cannot be written; another dtype.
pub fn write_tensors_as(path: &Path, dtype: StoredDtype, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let bytes = tensor_bytes(tensor, dtype, path)?;
        views.push((name.to_string(), crate::write::Bytes::new(dtype, tensor.dims(), bytes)));
    }
    write_atomically(path, |temporary| write_safetensors(views, temporary))
}

/// A tensor's numbers in `dtype`, little end first; `path` is named in errors.
pub(crate) fn tensor_bytes(tensor: &Tensor, dtype: StoredDtype, path: &Path) -> Result<Vec<u8>> {
    fn bytes<T: WithDType, const N: usize>(tensor: &Tensor, to_bytes: fn(T) -> [u8; N]) -> Result<Vec<u8>> {
        let values = tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?;
        Ok(values.into_iter().flat_map(to_bytes).collect())
    }
    match dtype {
        StoredDtype::F32 => bytes(tensor, f32::to_le_bytes),
        StoredDtype::F16 => bytes(tensor, f16::to_le_bytes),
        StoredDtype::Bf16 => bytes(tensor, bf16::to_le_bytes),
        other => Err(Error::unsupported(path, format!("weights are not written as {}", other.name()))),
    }
}
