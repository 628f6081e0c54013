use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use pixart_nn::{NamedWeights, ReadRows, RowsByName};
use safetensors::SafeTensors;

use crate::mapped::MappedFile;
use crate::quantise::kept_dtype;
use crate::{Error, Lora, Part, Result, Scheme, StoredDtype, elements, pickle, read_json};

/// Values of a tensor that are looked at together for those that are not finite.
const CHECKED_AT_ONCE: usize = 1 << 20;

/// Where a tensor is on disk.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub dtype: StoredDtype,
    pub(crate) file: usize,
    pub(crate) bytes: Range<usize>,
}

impl StoredTensor {
    /// Rows `start .. start + len` of the first dimension, which are a range of the same bytes.
    pub(crate) fn rows(&self, start: usize, len: usize) -> Self {
        let row = self.bytes.len() / self.shape[0].max(1);
        let begin = self.bytes.start + start * row;
        let mut shape = self.shape.clone();
        shape[0] = len;
        Self { shape, bytes: begin..begin + len * row, ..self.clone() }
    }
}

/// The tensors of one network, on disk: memory-mapped files and where in them each tensor is.
///
/// Cloning is cheap. Nothing is read before a tensor is asked for, and what was read is released again, so that
/// loading costs the memory of the loaded weights and of one tensor.
#[derive(Clone, Default)]
pub struct Weights {
    files: Vec<Arc<MappedFile>>,
    tensors: BTreeMap<String, StoredTensor>,
    pub(crate) on_read: Option<Arc<dyn Fn(u64) + Send + Sync>>,
    /// Corrections of some of the tensors.
    loras: Vec<Lora>,
    /// The scheme in which weights are stored in 8 bits.
    pub(crate) scheme: Option<Scheme>,
    /// Of what part weights are rounded to 8 bits as they are read, and how.
    pub(crate) rounding: Option<(Part, Scheme)>,
    /// Names of the tensors that were asked for, by this or a clone of it.
    pub(crate) read: Arc<Mutex<BTreeSet<String>>>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<_> = self.paths().collect();
        f.debug_struct("Weights").field("files", &paths).field("tensors", &self.tensors.len()).finish()
    }
}

impl Weights {
    /// Maps one `.safetensors`, `.bin`, `.pt` or `.pth` file, or all shards that an `.index.json` names.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains(".index.") && name.ends_with(".json") {
            return Self::open_index(path);
        }
        let mut weights = Self::default();
        weights.add_file(path)?;
        Ok(weights)
    }

    fn open_index(index: &Path) -> Result<Self> {
        let json = read_json(index)?;
        let map = json.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| Error::corrupt(index, "has no \"weight_map\" that names the shards"))?;
        let mut shards = BTreeSet::new();
        for (key, file) in map {
            let file = file.as_str().filter(|file| !file.contains(['/', '\\']) && *file != "..");
            shards.insert(file.ok_or_else(|| Error::corrupt(index, format!("names no file for {key:?}")))?);
        }
        if shards.is_empty() {
            return Err(Error::corrupt(index, "names no shards"));
        }
        let mut weights = Self::default();
        for shard in shards {
            let path = index.with_file_name(shard);
            if !path.exists() {
                let what = format!("this shard is missing, {} names it; download it again", index.display());
                return Err(Error::missing(&path, what));
            }
            weights.add_file(&path)?;
        }
        match map.keys().find(|key| !weights.tensors.contains_key(*key)) {
            Some(key) => Err(Error::corrupt(index, format!("names tensor {key:?}, which no shard holds"))),
            None => Ok(weights),
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = MappedFile::open(path)?;
        let tensors = match file.bytes() {
            [b'P', b'K', ..] => pickle::tensors(&file)?,
            bytes if path.extension().is_some_and(|extension| extension == "safetensors") => {
                safetensors_tensors(path, bytes)?
            }
            _ => {
                let reason = "is neither a safetensors nor a zipped PyTorch file (a truncated download, or a file that \
                              PyTorch before 1.6 wrote: load and save it again with torch.save)";
                return Err(Error::corrupt(path, reason));
            }
        };
        let index = self.files.len();
        self.files.push(Arc::new(file));
        for (name, tensor) in tensors {
            self.tensors.insert(name, StoredTensor { file: index, ..tensor });
        }
        Ok(())
    }

    /// The same files with their tensors under other names.
    pub(crate) fn mapped_to(&self, tensors: BTreeMap<String, StoredTensor>) -> Self {
        Self { tensors, read: Arc::default(), ..self.clone() }
    }

    /// Those tensors whose names `keep` is true of.
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        let tensors = self.tensors.iter().filter(|(name, _)| keep(name));
        self.mapped_to(tensors.map(|(name, tensor)| (name.clone(), tensor.clone())).collect())
    }

    /// The same tensors, `prefix` before each name.
    pub fn below(&self, prefix: &str) -> Self {
        let named = |(name, tensor): (&String, &StoredTensor)| (format!("{prefix}{name}"), tensor.clone());
        self.mapped_to(self.tensors.iter().map(named).collect())
    }

    /// Corrects the tensors by an adapter, after those that correct them already.
    ///
    /// # Errors
    /// An adapter of another network.
    pub fn with_lora(mut self, lora: Lora) -> Result<Self> {
        lora.check(&self)?;
        self.loras.push(lora);
        Ok(self)
    }

    /// Whether tensors are not what is stored.
    pub(crate) fn is_corrected(&self) -> bool {
        !self.loras.is_empty()
    }

    /// Calls `on_read` with the bytes of each tensor that was read, for a progress display.
    pub fn on_read(mut self, on_read: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.on_read = Some(Arc::new(on_read));
        self
    }

    /// The tensors that nothing has asked for yet.
    pub fn unread(&self) -> Vec<String> {
        // Names are only ever added, so a thread that stopped half-way has broken nothing.
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.tensors.keys().filter(|name| !read.contains(*name)).cloned().collect()
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// The mapped files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path())
    }

    /// Number of numbers in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }

    /// Size of all tensors on disk.
    pub fn size_in_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum()
    }

    /// Raw little-endian bytes of a tensor.
    pub(crate) fn bytes(&self, tensor: &StoredTensor) -> &[u8] {
        &self.files[tensor.file].bytes()[tensor.bytes.clone()]
    }

    pub(crate) fn release(&self, tensor: &StoredTensor) {
        self.files[tensor.file].release(tensor.bytes.clone());
    }

    /// The file a tensor is in, for messages.
    pub(crate) fn path_of(&self, tensor: &StoredTensor) -> &Path {
        self.files[tensor.file].path()
    }

    pub(crate) fn file_of(&self, tensor: &StoredTensor) -> &Arc<MappedFile> {
        &self.files[tensor.file]
    }

    pub(crate) fn loras(&self) -> &[Lora] {
        &self.loras
    }

    fn a_path(&self) -> PathBuf {
        self.files.first().map(|file| file.path().to_path_buf()).unwrap_or_default()
    }

    /// Reads one tensor, with the LoRAs added. Errors: no tensor of that name.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        if self.loras.is_empty() {
            return self.uncorrected(name, dtype, device);
        }
        let tensor = self.uncorrected(name, DType::F32, device)?;
        let corrected = self.loras.iter().try_fold(tensor, |tensor, lora| lora.correct(name, tensor))?;
        Ok(corrected.to_dtype(dtype)?)
    }

    /// As [`Weights::tensor`], without the LoRAs.
    pub(crate) fn uncorrected(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let stored = self.tensors.get(name).ok_or_else(|| {
            let of_all = match self.files.len() {
                0 | 1 => String::new(),
                n => format!(" (nor is it in the other {} files)", n - 1),
            };
            Error::missing(&self.a_path(), format!("holds no tensor {name:?}{of_all}; is this another model's file?"))
        })?;
        let (file, start) = (&self.files[stored.file], stored.bytes.start);
        let release = |range: Range<usize>| file.release(start + range.start..start + range.end);
        let is_rounded = stored.dtype == StoredDtype::I8 && name.ends_with("weight");
        if is_rounded {
            return Ok(self.dequantised(name, stored, device)?.to_dtype(dtype)?);
        }
        let tensor = self.kept(name, stored, self.bytes(stored), &stored.shape, (dtype, device), release)?;
        self.mark_read(name, stored);
        Ok(tensor)
    }

    /// `bytes` of a tensor that is not in 8 bits, all or some of them, as a tensor of `shape`.
    fn kept(
        &self,
        name: &str,
        stored: &StoredTensor,
        bytes: &[u8],
        shape: &[usize],
        (dtype, device): (DType, &Device),
        release: impl Fn(Range<usize>),
    ) -> Result<Tensor> {
        // Rounded on the way or by `quantise`: the same numbers.
        let loses_digits = self.rounding.is_some_and(|(part, _)| kept_dtype(part, name, stored.dtype) != stored.dtype);
        let read_in = if loses_digits { DType::BF16 } else { dtype };
        let tensor = elements::tensor(bytes, stored.dtype, read_in, shape, device, release)?.to_dtype(dtype)?;
        if self.rounding.is_some() {
            self.check_values(name, stored, &tensor)?;
        }
        Ok(tensor)
    }

    /// The rows `ids` of a tensor.
    fn read_rows(&self, name: &str, stored: &StoredTensor, ids: &[u32], to: (DType, &Device)) -> Result<Tensor> {
        let (rows, width) = (stored.shape[0], stored.shape[1]);
        let mut bytes = Vec::with_capacity(ids.len() * width * stored.dtype.size());
        for id in ids {
            if *id as usize >= rows {
                let reason = format!("tensor {name:?} has no row {id}: it has {rows}");
                return Err(Error::corrupt(self.path_of(stored), reason));
            }
            bytes.extend_from_slice(self.bytes(&stored.rows(*id as usize, 1)));
        }
        self.kept(name, stored, &bytes, &[ids.len(), width], to, |_| {})
    }

    /// Refuses a tensor with values that are not finite.
    pub(crate) fn check_values(&self, name: &str, stored: &StoredTensor, tensor: &Tensor) -> Result<()> {
        let values = tensor.flatten_all()?;
        for start in (0..values.elem_count()).step_by(CHECKED_AT_ONCE) {
            let some = values.narrow(0, start, CHECKED_AT_ONCE.min(values.elem_count() - start))?;
            // Zero times a number is zero, but for those that are not finite.
            if (some * 0.0)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? != 0.0 {
                let reason = format!("tensor {name:?} is not finite: it holds NaN or infinity");
                return Err(Error::corrupt(self.path_of(stored), reason));
            }
        }
        Ok(())
    }

    /// Hands the tensors to a network.
    pub fn named(&self, dtype: DType, device: &Device) -> NamedWeights<'static> {
        let tensors = VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone());
        let stored = Arc::new(self.clone());
        let weights = NamedWeights::from(tensors).with_tables(stored.clone());
        match self.scheme.is_some() || self.rounding.is_some() {
            true => weights.with_bytes(stored),
            false => weights,
        }
    }

    /// Remembers that a tensor was asked for.
    pub(crate) fn mark_read(&self, name: &str, stored: &StoredTensor) {
        // Names are only ever added, so a thread that stopped half-way has broken nothing.
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string());
        if let Some(on_read) = &self.on_read {
            on_read(stored.bytes.len() as u64);
        }
    }
}

impl RowsByName for Weights {
    fn rows(
        &self,
        name: &str,
        shape: (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Option<ReadRows>> {
        let stored = self.tensors.get(name).filter(|stored| stored.shape == [shape.0, shape.1]);
        let Some(stored) = stored.filter(|stored| stored.dtype != StoredDtype::I8 && self.loras.is_empty()) else {
            // The tensor itself is asked for next; it is refused if it is missing or of another shape.
            return Ok(None);
        };
        self.mark_read(name, stored);
        let (weights, stored, name, device) = (self.clone(), stored.clone(), name.to_string(), device.clone());
        Ok(Some(Arc::new(move |ids| {
            weights.read_rows(&name, &stored, ids, (dtype, &device)).map_err(candle_core::Error::wrap)
        })))
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if let Some(stored) = self.tensors.get(name)
            && stored.shape != shape.dims()
        {
            // Published autoencoders store some linear layers as 1×1 convolutions.
            let as_linear = stored.shape.strip_suffix(&[1, 1]).is_some_and(|found| found == shape.dims());
            if !as_linear {
                return Err(candle_core::Error::wrap(Error::Shape {
                    path: self.path_of(stored).into(),
                    key: name.into(),
                    found: stored.shape.clone(),
                    wanted: shape.dims().to_vec(),
                }));
            }
        }
        self.get_unchecked(name, dtype, device)?.reshape(shape)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

fn safetensors_tensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, StoredTensor>> {
    let broken = |error: safetensors::SafeTensorError| {
        let hint = "the file is truncated or corrupt; download or copy it again";
        Error::corrupt(path, format!("is no complete safetensors file ({error}): {hint}"))
    };
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let data = 8 + header;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let Some(dtype) = StoredDtype::from_safetensors(info.dtype) else {
            return Err(Error::unsupported(path, format!("tensor {name:?} is stored as {:?}", info.dtype)));
        };
        let (start, end) = info.data_offsets;
        let bytes_range = data + start..data + end;
        if bytes_range.end > bytes.len() {
            return Err(Error::corrupt(path, format!("ends inside of tensor {name:?}: it is truncated")));
        }
        tensors.insert(name, StoredTensor { shape: info.shape.clone(), dtype, file: 0, bytes: bytes_range });
    }
    Ok(tensors)
}
