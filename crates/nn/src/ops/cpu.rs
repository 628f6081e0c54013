//! The way from candle's tensors to the kernels' slices and back.

use candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType};
use half::bf16;
use pixart_kernels::{Arithmetic, Element, Images, Isa, Matrix, Scratch};

/// Working memory of all kernels.
pub(super) static SCRATCH: Scratch = Scratch::new();

/// The instructions in use. Errors: `PIXART_CPU` names some that are not there.
pub(super) fn isa() -> Result<Isa> {
    Isa::chosen().map_err(Error::msg)
}

/// A dtype that the kernels compute in.
pub(super) trait CpuElement: Element + WithDType {
    /// What products of it are computed in.
    const ARITHMETIC: Arithmetic;
}

impl CpuElement for f32 {
    const ARITHMETIC: Arithmetic = Arithmetic::F32;
}

impl CpuElement for bf16 {
    const ARITHMETIC: Arithmetic = Arithmetic::Bf16;
}

/// Runs a block for the Rust type of a dtype, which must be one that [`is_fast`] lets through.
macro_rules! for_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            dtype => candle_core::bail!("no kernel computes in {dtype:?}"),
        }
    };
}
pub(super) use for_dtype;

/// Whether the kernels compute in `dtype` on `device`.
pub(super) fn is_fast_dtype(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && matches!(dtype, DType::F32 | DType::BF16)
}

/// Whether the kernels take these tensors: on the CPU, all of one dtype that they compute in.
pub(super) fn is_fast(tensors: &[&Tensor]) -> bool {
    let dtype = tensors[0].dtype();
    tensors.iter().all(|xs| xs.dtype() == dtype && is_fast_dtype(xs.device(), dtype))
}

/// A tensor's elements where they stand.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    storage: &'a CpuStorage,
    pub layout: &'a Layout,
}

impl<'a> View<'a> {
    pub(super) fn new(storage: &'a CpuStorage, layout: &'a Layout) -> Self {
        Self { storage, layout }
    }

    pub(super) fn dtype(&self) -> DType {
        match self.storage {
            CpuStorage::BF16(_) => DType::BF16,
            CpuStorage::F32(_) => DType::F32,
            // No kernel takes any other.
            _ => DType::U8,
        }
    }

    /// All elements. Errors: they do not stand side by side.
    pub(super) fn slice<T: CpuElement>(&self) -> Result<&'a [T]> {
        match self.layout.contiguous_offsets() {
            Some((start, end)) => Ok(&T::cpu_storage_as_slice(self.storage)?[start..end]),
            None => candle_core::bail!("a kernel needs contiguous elements, not {:?}", self.layout),
        }
    }

    /// The rows of the last dimension as a matrix. Errors: they do not stand at equal distances.
    pub(super) fn rows<T: CpuElement>(&self) -> Result<Matrix<'a, T>> {
        match (row_stride(self.layout), self.layout.dims().split_last()) {
            (Some(stride), Some((width, rows))) => {
                let data = &T::cpu_storage_as_slice(self.storage)?[self.layout.start_offset()..];
                Ok(Matrix::strided(data, rows.iter().product(), *width, stride))
            }
            _ => candle_core::bail!("a kernel needs rows at equal distances, not {:?}", self.layout),
        }
    }

    /// The elements as images `[batch, height, width, channels]`.
    pub(super) fn images<T: CpuElement>(&self) -> Result<Images<'a, T>> {
        let (batch, height, width, channels) = self.layout.shape().dims4()?;
        Ok(Images { data: self.slice()?, batch, height, width, channels })
    }

    /// All elements in order, in f32.
    pub(super) fn to_f32(self) -> Result<Vec<f32>> {
        for_dtype!(self.dtype(), T => {
            let data = T::cpu_storage_as_slice(self.storage)?;
            Ok(match self.layout.contiguous_offsets() {
                Some((start, end)) => data[start..end].iter().map(|x| Element::to_f32(*x)).collect(),
                None => places(self.layout).into_iter().map(|i| Element::to_f32(data[i])).collect(),
            })
        })
    }
}

/// Where each element stands, in order.
fn places(layout: &Layout) -> Vec<usize> {
    let mut places = vec![layout.start_offset()];
    for (dim, stride) in layout.dims().iter().zip(layout.stride()) {
        places = places.into_iter().flat_map(|place| (0..*dim).map(move |i| place + i * stride)).collect();
    }
    places
}

/// The distance between the rows of the last dimension, if it is the same between all of them.
fn row_stride(layout: &Layout) -> Option<usize> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let (width, last) = (*dims.last()?, *strides.last()?);
    if last != 1 && width != 1 {
        return None;
    }
    let mut stride = None;
    let mut rows = 1;
    for (dim, step) in dims.iter().zip(strides).rev().skip(1) {
        if *dim == 1 {
            continue;
        }
        match stride {
            None => stride = Some(*step),
            Some(stride) if *step == stride * rows => {}
            Some(_) => return None,
        }
        rows *= dim;
    }
    Some(stride.unwrap_or(width))
}

/// The tensor itself if its rows stand at equal distances, else a copy whose rows do.
pub(super) fn with_rows(xs: &Tensor) -> Result<Tensor> {
    match row_stride(xs.layout()) {
        Some(_) => Ok(xs.clone()),
        None => xs.contiguous(),
    }
}

/// Calls `run` with the elements of tensors on the CPU.
pub(super) fn with_views<const N: usize, R>(
    tensors: [&Tensor; N],
    run: impl FnOnce([View; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut views = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => views.push(View::new(storage, layout)),
            _ => candle_core::bail!("a kernel for the CPU was given a tensor elsewhere"),
        }
    }
    match views.try_into() {
        Ok(views) => run(views),
        Err(_) => candle_core::bail!("as many views as tensors"),
    }
}

/// A tensor's elements in f32, in order.
pub(super) fn f32_values(xs: &Tensor) -> Result<Vec<f32>> {
    with_views([xs], |[xs]| xs.to_f32())
}

/// A gradient that a kernel computed in f32, as a tensor of the shape and dtype of `xs`.
pub(super) fn gradient_of(xs: &Tensor, gradient: Vec<f32>) -> Result<Tensor> {
    Tensor::from_vec(gradient, xs.shape(), xs.device())?.to_dtype(xs.dtype())
}

/// A new tensor on the CPU, all of which `fill` writes.
pub(super) fn filled<T: CpuElement>(
    shape: impl Into<Shape>,
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Tensor> {
    let (storage, shape) = filled_storage(shape, fill)?;
    Tensor::from_vec(T::cpu_storage_data(storage)?, shape, &Device::Cpu)
}

/// What a custom operation gives, all of it written by `fill`.
pub(super) fn filled_storage<T: CpuElement>(
    shape: impl Into<Shape>,
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<(CpuStorage, Shape)> {
    let shape = shape.into();
    let mut data = pixart_kernels::arbitrary(shape.elem_count());
    fill(&mut data)?;
    Ok((T::to_cpu_storage_owned(data), shape))
}
