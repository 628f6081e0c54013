use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};
use safetensors::View;
use serde::Serialize;

use crate::tensor_file::tensor_bytes;
use crate::{Error, Result, StoredDtype, StoredTensor, Weights};

/// Makes a file by way of a temporary one beside it: `write` fills that, and only when it has succeeded and all is on
/// disk does it take the wanted name. On an error nothing is left behind, and what was there before stays.
pub fn write_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Err(Error::unsupported(path, "is not a plain file, and nothing else is written over"));
    }
    // What a link points to is written, not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.into());
    let temporary = Temporary::beside(&target).map_err(|error| error.moved(&target, path))?;
    write(&temporary.path).map_err(|error| error.moved(&temporary.path, path))?;
    let finish = || {
        let file = std::fs::OpenOptions::new().append(true).open(&temporary.path)?;
        // Some writers make files that only their owner may read.
        file.set_permissions(temporary.permissions.clone())?;
        file.sync_all()?;
        std::fs::rename(&temporary.path, &target)
    };
    finish().map_err(Error::io(path))
}

/// Makes a file of `bytes`, as [`write_atomically`] does.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |temporary| std::fs::write(temporary, bytes).map_err(Error::io(path)))
}

/// Makes a JSON file, indented, and the folder that it is in.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::unsupported(path, error.to_string()))?;
    write_bytes(path, format!("{text}\n").as_bytes())
}

/// A file that is removed when it goes out of scope; after a rename there is nothing left to remove.
struct Temporary {
    path: PathBuf,
    /// Those of any new file.
    permissions: std::fs::Permissions,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| Error::unsupported(path, "is no file name"))?;
        let temporary = path.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        // Created at once, so that a folder that cannot be written is reported before any work.
        let metadata = std::fs::File::create(&temporary).and_then(|file| file.metadata()).map_err(Error::io(path))?;
        Ok(Self { path: temporary, permissions: metadata.permissions() })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _already_renamed = std::fs::remove_file(&self.path);
    }
}

/// Writes tensors to a new safetensors file, one after another.
pub fn write_safetensors<V: View>(tensors: Vec<(String, V)>, path: &Path) -> Result<()> {
    // diffusers and transformers refuse a file whose metadata does not name its framework.
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(cause) => Error::Io { path: path.into(), cause },
        other => Error::corrupt(path, other.to_string()),
    })
}

/// A tensor in memory, as bytes.
pub(crate) struct Bytes {
    dtype: StoredDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Bytes {
    pub(crate) fn new(dtype: StoredDtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { dtype, shape: shape.to_vec(), bytes }
    }
}

impl View for Bytes {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype.to_safetensors()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A tensor of a mapped file on its way to another file.
struct Stored<'a> {
    weights: &'a Weights,
    name: &'a str,
    tensor: &'a StoredTensor,
    dtype: StoredDtype,
    /// Why it could not be converted; what is written is worthless then.
    failed: &'a Mutex<Option<Error>>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype.to_safetensors()
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.dtype == self.tensor.dtype && !self.weights.is_corrected() {
            return Cow::Borrowed(self.weights.bytes(self.tensor));
        }
        let converted = self
            .weights
            .tensor(self.name, DType::F32, &Device::Cpu)
            .and_then(|tensor| tensor_bytes(&tensor, self.dtype, self.weights.path_of(self.tensor)));
        Cow::Owned(converted.unwrap_or_else(|error| {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            vec![0; self.data_len()]
        }))
    }

    fn data_len(&self) -> usize {
        self.tensor.shape.iter().product::<usize>() * self.dtype.size()
    }
}

impl Drop for Stored<'_> {
    fn drop(&mut self) {
        self.weights.release(self.tensor);
    }
}

impl Weights {
    /// Writes all tensors to a new safetensors file, in `dtype` (f32, f16 or bf16), or as they are stored, without ever
    /// holding them all in memory.
    ///
    /// # Errors
    /// A file that cannot be written or read; weights in 8 bits that would have to change.
    pub fn save_as(&self, path: &Path, dtype: Option<StoredDtype>) -> Result<()> {
        if let Some(scheme) = self.scheme()
            && (dtype.is_some() || self.is_corrected())
        {
            let path = self.paths().next().unwrap_or(path);
            let reason = format!("is in {scheme}, which stays as it is: convert the model that it was made from");
            return Err(Error::unsupported(path, reason));
        }
        let failed = Mutex::new(None);
        write_atomically(path, |temporary| {
            let tensors = self.tensors().iter().map(|(name, tensor)| {
                let dtype = dtype.unwrap_or(tensor.dtype);
                (name.clone(), Stored { weights: self, name, tensor, dtype, failed: &failed })
            });
            write_safetensors(tensors.collect(), temporary)?;
            failed.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
        })
    }
}
