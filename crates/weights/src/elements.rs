//! Raw bytes of a file to tensors of the wanted dtype.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

/// Element types that weight files hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum StoredDtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I8,
    U8,
}

impl StoredDtype {
    /// Size of an element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }

    /// Its usual short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I8 => "i8",
            Self::U8 => "u8",
        }
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        use safetensors::Dtype;
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::I64 => Self::I64,
            Dtype::I32 => Self::I32,
            Dtype::I8 => Self::I8,
            Dtype::U8 => Self::U8,
            _ => return None,
        })
    }

    pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
        use safetensors::Dtype;
        match self {
            Self::F64 => Dtype::F64,
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::I64 => Dtype::I64,
            Self::I32 => Dtype::I32,
            Self::I8 => Dtype::I8,
            Self::U8 => Dtype::U8,
        }
    }
}

/// A float that a network computes with.
trait Element: candle_core::WithDType {
    fn of(value: f32) -> Self;
}

impl Element for f32 {
    fn of(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Element for bf16 {
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

/// How many bytes are converted before the pages they were read from are let go.
const PIECE: usize = 1 << 24;

/// Little-endian `bytes` of `stored` elements as a tensor of dtype `wanted`, which must be f32, f16 or bf16. Exactly one
/// buffer of the tensor's size is allocated; `release` is told of each range of bytes that has been converted.
pub(crate) fn tensor(
    bytes: &[u8],
    stored: StoredDtype,
    wanted: DType,
    shape: &[usize],
    device: &Device,
    release: impl Fn(Range<usize>),
) -> candle_core::Result<Tensor> {
    match wanted {
        DType::F32 => of::<f32>(bytes, stored, shape, device, release),
        DType::F16 => of::<f16>(bytes, stored, shape, device, release),
        DType::BF16 => of::<bf16>(bytes, stored, shape, device, release),
        other => candle_core::bail!("weights cannot be loaded as {other:?}"),
    }
}

fn of<T: Element>(
    bytes: &[u8],
    stored: StoredDtype,
    shape: &[usize],
    device: &Device,
    release: impl Fn(Range<usize>),
) -> candle_core::Result<Tensor> {
    let mut values: Vec<T> = Vec::with_capacity(bytes.len() / stored.size());
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        match stored {
            StoredDtype::F64 => values.extend(decode(piece, |b| T::of(f64::from_le_bytes(b) as f32))),
            StoredDtype::F32 => values.extend(decode(piece, |b| T::of(f32::from_le_bytes(b)))),
            StoredDtype::F16 => values.extend(decode(piece, |b| T::of(f16::from_le_bytes(b).to_f32()))),
            StoredDtype::Bf16 => values.extend(decode(piece, |b| T::of(bf16::from_le_bytes(b).to_f32()))),
            StoredDtype::I64 => values.extend(decode(piece, |b| T::of(i64::from_le_bytes(b) as f32))),
            StoredDtype::I32 => values.extend(decode(piece, |b| T::of(i32::from_le_bytes(b) as f32))),
            StoredDtype::I8 => values.extend(decode(piece, |b| T::of(f32::from(i8::from_le_bytes(b))))),
            StoredDtype::U8 => values.extend(decode(piece, |[b]: [u8; 1]| T::of(f32::from(b)))),
        }
        release(i * PIECE..i * PIECE + piece.len());
    }
    Tensor::from_vec(values, shape, device)
}

fn decode<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |chunk| element(*chunk))
}
