//! Checkpoints to 8 bits, tensor by tensor.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pixart_nn::ops::quantise;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::convert::{copy_folder, new_folder};
use crate::tensor_file::tensor_bytes;
use crate::{
    Calibration, Error, Part, PipelineFolder, Result, Scheme, StoredDtype, StoredTensor, Weights, is_rounded,
    read_json, write_atomically, write_json,
};

/// How far a part is written, told after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct QuantiseProgress {
    /// What is written.
    pub part: Part,
    /// Bytes of the unrounded weights so far.
    pub read: u64,
    /// Bytes of them in all.
    pub total: u64,
}

/// Is told how far it is; its `Break` ends the work with [`Error::Cancelled`].
type OnProgress<'a> = &'a dyn Fn(QuantiseProgress) -> ControlFlow<()>;

/// Rounds `parts` of a pipeline to 8 bits, and writes it, its other parts as they are, to the new folder `output`. No more of
/// the weights than a tensor is ever in memory. `calibration` says what inputs of layers look like.
///
/// # Errors
/// A part that is missing, broken or in 8 bits already; weights that are not finite; an `output` that exists; a `Break` of
/// `on_progress`, which is told of every tensor. On an error no folder is left.
pub fn quantise_pipeline(
    folder: &PipelineFolder,
    parts: &[Part],
    scheme: Scheme,
    calibration: Option<&Calibration>,
    output: &Path,
    on_progress: OnProgress,
) -> Result<()> {
    let opened = open_unrounded(folder, parts)?;
    new_folder(output, |temporary| {
        copy_folder(folder.path(), temporary, &|name| parts.iter().any(|part| name == Path::new(part.name())))?;
        for (part, config, weights) in &opened {
            let to = temporary.join(part.name());
            std::fs::create_dir(&to).map_err(Error::io(&to))?;
            write_part(weights, *part, config, scheme, calibration, &to, on_progress)?;
        }
        Ok(())
    })
}

/// Looks at what [`quantise_pipeline`] refuses, before anything is written.
///
/// # Errors
/// A part that is missing, broken or in 8 bits already.
pub fn check_unrounded(folder: &PipelineFolder, parts: &[Part]) -> Result<()> {
    open_unrounded(folder, parts).map(drop)
}

/// Parts with where their configs are.
fn open_unrounded(folder: &PipelineFolder, parts: &[Part]) -> Result<Vec<(Part, PathBuf, Weights)>> {
    let opened = parts.iter().map(|part| {
        let path = folder.part_path(*part);
        Ok((*part, path.join("config.json"), unrounded(*part, folder.weights(*part, DType::F32)?)?))
    });
    opened.collect()
}

/// As [`quantise_pipeline`], of a single part in a folder of its own.
///
/// # Errors
/// As there.
pub fn quantise_part(folder: &Path, part: Part, scheme: Scheme, output: &Path, on_progress: OnProgress) -> Result<()> {
    let (_, weights) = crate::open_part::<serde_json::Value>(folder, part, DType::F32)?;
    let weights = unrounded(part, weights)?;
    new_folder(output, |temporary| {
        write_part(&weights, part, &folder.join("config.json"), scheme, None, temporary, on_progress)
    })
}

/// Refuses weights that are in 8 bits already.
fn unrounded(part: Part, weights: Weights) -> Result<Weights> {
    match weights.scheme() {
        Some(scheme) => {
            let path = weights.paths().next().unwrap_or(Path::new(""));
            let reason = format!("the {} is in {scheme} already", part.name().replace('_', " "));
            Err(Error::unsupported(path, reason))
        }
        None => Ok(weights),
    }
}

fn write_part(
    weights: &Weights,
    part: Part,
    config: &Path,
    scheme: Scheme,
    calibration: Option<&Calibration>,
    to: &Path,
    on_progress: OnProgress,
) -> Result<()> {
    // Where only weights are rounded, it does not matter what inputs look like.
    let calibration = calibration.filter(|_| scheme == Scheme::Int8);
    write_json(&to.join("config.json"), &scheme.named_in(read_json(config)?))?;
    let both = weights.tensors().contains_key("shared.weight");
    // The embeddings of a text encoder stand under one or both of two names.
    let is_kept = |name: &str| !part.is_spare(name) || !both && name == "encoder.embed_tokens.weight";
    let mut tensors: Vec<_> = weights.tensors().iter().filter(|(name, _)| is_kept(name)).collect();
    // As they stand on disk.
    tensors.sort_by_key(|(_, stored)| (stored.file, stored.bytes.start));
    let rounded = |name: &str, stored: &StoredTensor| is_rounded(part, name, &stored.shape);
    let mut planned = Vec::new();
    for (name, stored) in &tensors {
        let layer = name.strip_suffix("weight").unwrap_or(name);
        if !rounded(name, stored) {
            planned.push(((*name).clone(), kept_dtype(part, name, stored.dtype), stored.shape.clone()));
            continue;
        }
        let rows = stored.shape[0];
        planned.push(((*name).clone(), StoredDtype::I8, stored.shape.clone()));
        planned.push((format!("{name}_scale"), StoredDtype::F32, vec![rows]));
        if let Some(inputs) = calibration.and_then(|calibration| calibration.inputs(part, name)) {
            if inputs.factors.is_some() {
                planned.push((format!("{layer}input_factors"), StoredDtype::F32, vec![stored.shape[1]]));
            }
            if !inputs.outliers.is_empty() {
                let columns = inputs.outliers.len();
                planned.push((format!("{layer}outlier_columns"), StoredDtype::I64, vec![columns]));
                planned.push((format!("{layer}outlier_weight"), StoredDtype::Bf16, vec![rows, columns]));
            }
        }
    }
    let total = tensors.iter().map(|(_, stored)| stored.bytes.len() as u64).sum();
    write_in_any_order(&to.join(format!("{}.safetensors", part.stems()[0])), planned, |write| {
        let mut read = 0;
        for (name, stored) in &tensors {
            match rounded(name, stored) {
                true => write_rounded(weights, part, name, stored, calibration, write)?,
                false => write_kept(weights, part, name, stored, write)?,
            }
            weights.release(stored);
            read += stored.bytes.len() as u64;
            if on_progress(QuantiseProgress { part, read, total }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    })
}

/// What a tensor that is not rounded is stored in: as it was, but for the embeddings of tokens, which are large and of which
/// bf16 loses nothing that is seen.
pub(crate) fn kept_dtype(part: Part, name: &str, dtype: StoredDtype) -> StoredDtype {
    if part.is_embedding(name) && dtype == StoredDtype::F32 { StoredDtype::Bf16 } else { dtype }
}

type WriteTensor<'a> = &'a mut dyn FnMut(&str, &[u8]) -> Result<()>;

fn write_kept(weights: &Weights, part: Part, name: &str, stored: &StoredTensor, write: WriteTensor) -> Result<()> {
    let path = weights.path_of(stored);
    let tensor = weights.tensor(name, DType::F32, &Device::Cpu)?;
    weights.check_values(name, stored, &tensor)?;
    match kept_dtype(part, name, stored.dtype) {
        dtype if dtype == stored.dtype => write(name, weights.bytes(stored)),
        dtype => write(name, &tensor_bytes(&tensor, dtype, path)?),
    }
}

fn write_rounded(
    weights: &Weights,
    part: Part,
    name: &str,
    stored: &StoredTensor,
    calibration: Option<&Calibration>,
    write: WriteTensor,
) -> Result<()> {
    let rows = stored.shape[0];
    let mut tensor = weights.tensor(name, DType::F32, &Device::Cpu)?.reshape((rows, ()))?;
    let layer = name.strip_suffix("weight").unwrap_or(name);
    if let Some(inputs) = calibration.and_then(|calibration| calibration.inputs(part, name)) {
        if !inputs.outliers.is_empty() {
            let columns: Vec<i64> = inputs.outliers.iter().map(|column| *column as i64).collect();
            let outliers = Tensor::from_vec(columns.clone(), columns.len(), &Device::Cpu)?;
            let taken = tensor.index_select(&outliers, 1)?;
            let bytes: Vec<u8> = columns.iter().flat_map(|column| column.to_le_bytes()).collect();
            write(&format!("{layer}outlier_columns"), &bytes)?;
            let path = weights.path_of(stored);
            write(&format!("{layer}outlier_weight"), &tensor_bytes(&taken, StoredDtype::Bf16, path)?)?;
        }
        if let Some(factors) = &inputs.factors {
            // What inputs are multiplied with, weights are divided by; an outlier's weight is in the product no more.
            let divisors: Vec<f32> =
                factors.iter().map(|factor| if *factor == 0.0 { 0.0 } else { factor.recip() }).collect();
            tensor = tensor.broadcast_mul(&Tensor::new(divisors, &Device::Cpu)?)?;
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            write(&format!("{layer}input_factors"), &bytes)?;
        }
    }
    let matrix = quantise(&tensor)?;
    weights.check_finite(name, stored, &matrix)?;
    let scales: Vec<u8> = matrix.scales().iter().flat_map(|scale| scale.to_le_bytes()).collect();
    write(&format!("{name}_scale"), &scales)?;
    // It was just made, in one piece.
    write(name, matrix.whole().unwrap_or_default())
}

/// Writes a safetensors file whose tensors, of known dtypes and shapes, are handed over one after another in any order.
fn write_in_any_order(
    path: &Path,
    mut planned: Vec<(String, StoredDtype, Vec<usize>)>,
    fill: impl FnOnce(WriteTensor) -> Result<()>,
) -> Result<()> {
    // Large elements first, so that all stand at multiples of their size.
    planned.sort_by(|(a_name, a, _), (b_name, b, _)| b.size().cmp(&a.size()).then_with(|| a_name.cmp(b_name)));
    let mut places = HashMap::new();
    let mut infos = Vec::new();
    let mut end = 0;
    for (name, dtype, shape) in planned {
        let start = end;
        end += dtype.size() * shape.iter().product::<usize>();
        places.insert(name.clone(), start..end);
        infos.push((name, TensorInfo { dtype: dtype.to_safetensors(), shape, data_offsets: (start, end) }));
    }
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(about), infos).map_err(|error| Error::corrupt(path, error.to_string()))?;
    let mut header = serde_json::to_string(&metadata).map_err(|error| Error::corrupt(path, error.to_string()))?;
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    write_atomically(path, |temporary| {
        let io = || Error::io(temporary);
        let mut file = File::create(temporary).map_err(io())?;
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
        file.write_all(header.as_bytes()).map_err(io())?;
        fill(&mut |name, bytes| {
            let place = places.remove(name).filter(|place| place.len() == bytes.len());
            let place = place.ok_or_else(|| Error::corrupt(path, format!("tensor {name:?} was not planned so")))?;
            file.seek(SeekFrom::Start((8 + header.len() + place.start) as u64)).map_err(io())?;
            file.write_all(bytes).map_err(io())
        })?;
        match places.keys().next() {
            Some(name) => Err(Error::corrupt(path, format!("tensor {name:?} was planned and not written"))),
            None => Ok(()),
        }
    })
}
