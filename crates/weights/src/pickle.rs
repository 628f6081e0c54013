//! PyTorch's zipped pickles (`.bin`, `.pt`, `.pth`): where in the file each tensor's bytes are.
//!
//! The archive's members are stored uncompressed, so a tensor is a range of the mapped file. candle reads the pickle's
//! opcodes into plain objects, nothing is executed; what the objects mean is decided here.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use candle_core::pickle::{Object, Stack};
use zip::{CompressionMethod, ZipArchive};

use crate::mapped::MappedFile;
use crate::pickle_bounds::is_bounded;
use crate::{Error, Result, StoredDtype, StoredTensor, plain_message};

/// Keys under which training scripts put the weights, in order of preference.
const STATE_DICTS: [&str; 3] = ["state_dict", "model", "state_dict_ema"];

pub(crate) fn tensors(file: &MappedFile) -> Result<BTreeMap<String, StoredTensor>> {
    let path = file.path();
    let mut archive = ZipArchive::new(Cursor::new(file.bytes())).map_err(|error| {
        Error::corrupt(path, format!("is no complete zip archive ({error}): truncated or corrupt; download it again"))
    })?;
    let mut members: HashMap<String, Range<usize>> = HashMap::new();
    for index in 0..archive.len() {
        let broken = |error: zip::result::ZipError| Error::corrupt(path, format!("has a broken member: {error}"));
        let member = archive.by_index_raw(index).map_err(broken)?;
        let name = member.name().map_err(broken)?.into_owned();
        if member.compression() != CompressionMethod::Stored {
            return Err(Error::unsupported(path, format!("member {name:?} is compressed; torch.save stores it plain")));
        }
        let range = member.data_start().and_then(|start| {
            let start = usize::try_from(start).ok()?;
            Some(start..start.checked_add(usize::try_from(member.size()).ok()?)?)
        });
        match range.filter(|range| range.end <= file.bytes().len()) {
            Some(range) => members.insert(name, range),
            None => return Err(Error::corrupt(path, format!("ends inside of {name:?}: it is truncated"))),
        };
    }
    let (folder, pickle) = members
        .iter()
        .find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?.to_string(), range.clone())))
        .ok_or_else(|| Error::corrupt(path, "is a zip archive but no PyTorch file: it holds no data.pkl"))?;
    let objects = unpickle(path, &file.bytes()[pickle])?;

    let mut tensors = BTreeMap::new();
    for (name, object) in state_dict(path, objects)? {
        let (Object::Unicode(name), Some(args)) = (name, rebuild_args(object)) else { continue };
        let storage = StorageView::parse(args)
            .ok_or_else(|| Error::corrupt(path, format!("tensor {name:?} is described in an unknown way")))?;
        let tensor = storage.locate(path, &name, &folder, &members)?;
        tensors.insert(name, tensor);
    }
    if tensors.is_empty() {
        return Err(Error::unsupported(path, "holds no state dict of tensors"));
    }
    Ok(tensors)
}

fn unpickle(path: &Path, bytes: &[u8]) -> Result<Object> {
    if !is_bounded(bytes) {
        return Err(Error::unsupported(path, "is no state dict: its pickle asks for objects without end"));
    }
    let mut stack = Stack::empty();
    stack
        .read_loop(&mut Cursor::new(bytes))
        .and_then(|()| stack.finalize())
        .map_err(|error| Error::corrupt(path, format!("its pickle cannot be read: {}", plain_message(&error))))
}

/// The dictionary of weights: the object itself, or what it holds under a customary key.
fn state_dict(path: &Path, object: Object) -> Result<Vec<(Object, Object)>> {
    let object = match object {
        // torch.save of an OrderedDict adds its metadata with BUILD.
        Object::Build { callable, .. } => *callable,
        other => other,
    };
    let Object::Dict(mut entries) = object else {
        return Err(Error::unsupported(
            path,
            "holds no dictionary of tensors (a pickled model? save its state_dict())",
        ));
    };
    for wanted in STATE_DICTS {
        let found = entries.iter().position(|(key, value)| {
            matches!(key, Object::Unicode(key) if key == wanted)
                && matches!(value, Object::Dict(_) | Object::Build { .. })
        });
        if let Some(index) = found {
            return state_dict(path, entries.swap_remove(index).1);
        }
    }
    Ok(entries)
}

/// The arguments of `torch._utils._rebuild_tensor_v2`, bare or inside of a parameter; none for any other object.
fn rebuild_args(object: Object) -> Option<Vec<Object>> {
    let Object::Reduce { callable, args } = object else { return None };
    let (Object::Class { module_name, class_name }, Object::Tuple(args)) = (*callable, *args) else { return None };
    match (module_name.as_str(), class_name.as_str()) {
        ("torch._utils", "_rebuild_tensor_v2") => Some(args),
        ("torch._utils", "_rebuild_parameter") => rebuild_args(args.into_iter().next()?),
        ("torch._tensor", "_rebuild_from_type_v2") => match args.into_iter().nth(2)? {
            Object::Tuple(args) => Some(args),
            _ => None,
        },
        _ => None,
    }
}

/// A tensor as the pickle describes it: a window into a storage.
struct StorageView {
    member: String,
    dtype: StoredDtype,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl StorageView {
    /// From `(storage, offset, shape, stride, …)`, storage being `("storage", class, member, device, size)`.
    fn parse(args: Vec<Object>) -> Option<Self> {
        let mut args = args.into_iter();
        let (storage, offset, shape, stride) = (args.next()?, args.next()?, args.next()?, args.next()?);
        let Object::PersistentLoad(storage) = storage else { return None };
        let Object::Tuple(storage) = *storage else { return None };
        let mut storage = storage.into_iter().skip(1);
        let (Object::Class { class_name, .. }, Object::Unicode(member)) = (storage.next()?, storage.next()?) else {
            return None;
        };
        let dtype = match class_name.as_str() {
            "DoubleStorage" => StoredDtype::F64,
            "FloatStorage" => StoredDtype::F32,
            "HalfStorage" => StoredDtype::F16,
            "BFloat16Storage" => StoredDtype::Bf16,
            "LongStorage" => StoredDtype::I64,
            "IntStorage" => StoredDtype::I32,
            "ByteStorage" | "BoolStorage" => StoredDtype::U8,
            _ => return None,
        };
        Some(Self { member, dtype, offset: size(offset)?, shape: sizes(shape)?, stride: sizes(stride)? })
    }

    fn locate(
        self,
        path: &Path,
        name: &str,
        folder: &str,
        members: &HashMap<String, Range<usize>>,
    ) -> Result<StoredTensor> {
        let member = members
            .get(&format!("{folder}data/{}", self.member))
            .ok_or_else(|| Error::corrupt(path, format!("the data of tensor {name:?} is missing")))?;
        let mut contiguous = 1usize;
        for (&size, &stride) in self.shape.iter().zip(&self.stride).rev() {
            if size > 1 && stride != contiguous {
                let reason = format!("tensor {name:?} is a transposed view; save it with .contiguous()");
                return Err(Error::unsupported(path, reason));
            }
            contiguous = contiguous.checked_mul(size).ok_or_else(|| Error::corrupt(path, "has an endless tensor"))?;
        }
        let element = self.dtype.size();
        let range = self.offset.checked_mul(element).zip(contiguous.checked_mul(element)).and_then(|(start, len)| {
            let start = member.start.checked_add(start)?;
            Some(start..start.checked_add(len)?)
        });
        match range.filter(|range| range.end <= member.end) {
            Some(bytes) => Ok(StoredTensor { shape: self.shape, dtype: self.dtype, file: 0, bytes }),
            None => Err(Error::corrupt(path, format!("tensor {name:?} is larger than its data"))),
        }
    }
}

fn size(object: Object) -> Option<usize> {
    match object {
        Object::Int(value) => usize::try_from(value).ok(),
        Object::Long(value) => usize::try_from(value).ok(),
        _ => None,
    }
}

fn sizes(object: Object) -> Option<Vec<usize>> {
    match object {
        Object::Tuple(values) => values.into_iter().map(size).collect(),
        _ => None,
    }
}
