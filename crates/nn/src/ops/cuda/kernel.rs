//! Launching the kernels of `kernels.cu`.

#![allow(unsafe_code, reason = "launches of kernels are; each block has its reason")]

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, D, DType, Device, Error, Result, Shape, Storage, Tensor};
use half::bf16;

/// The kernels' text.
const SOURCE: &str = include_str!("kernels.cu");

/// What a kernel is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    /// Where elements begin in the GPU's memory.
    Address(u64),
    Integer(i32),
    Float(f32),
}

impl Argument {
    /// In the place of a tensor that there is none of.
    pub(super) const NONE: Self = Self::Address(0);

    /// A size, which is [few enough](super::fits).
    pub(super) fn integer(x: usize) -> Self {
        Self::Integer(x as i32)
    }

    /// A tensor's elements. Errors: they do not stand side by side, or not on an NVIDIA GPU.
    pub(super) fn of(xs: &Tensor) -> Result<Self> {
        let (storage, layout) = xs.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) if layout.is_contiguous() => {
                Ok(Self::Address(address(storage)? + (layout.start_offset() * xs.dtype().size_in_bytes()) as u64))
            }
            _ => candle_core::bail!("a kernel needs contiguous elements on a GPU, not {layout:?} on {:?}", xs.device()),
        }
    }

    /// The elements from number `start` on, of those of `dtype` that this points to.
    pub(super) fn from(self, start: usize, dtype: DType) -> Self {
        match self {
            Self::Address(address) => Self::Address(address + (start * dtype.size_in_bytes()) as u64),
            other => other,
        }
    }
}

fn address(storage: &CudaStorage) -> Result<u64> {
    fn start<T>(slice: &CudaSlice<T>) -> u64 {
        // What guards against other streams is not needed: there are none.
        slice.device_ptr(slice.stream()).0
    }
    match storage.dtype() {
        DType::F32 => Ok(start(storage.as_cuda_slice::<f32>()?)),
        DType::BF16 => Ok(start(storage.as_cuda_slice::<bf16>()?)),
        dtype => candle_core::bail!("no kernel computes in {dtype:?}"),
    }
}

/// Memory that a kernel is to fill.
pub(super) struct Buffer(CudaStorage);

impl Buffer {
    pub(super) fn new(device: &CudaDevice, dtype: DType, elements: usize) -> Result<Self> {
        // SAFETY: nothing reads it before a kernel has filled it, which is the business of whoever asks for it.
        let storage = match dtype {
            DType::F32 => CudaStorage::wrap_cuda_slice(unsafe { device.alloc::<f32>(elements)? }, device.clone()),
            DType::BF16 => CudaStorage::wrap_cuda_slice(unsafe { device.alloc::<bf16>(elements)? }, device.clone()),
            dtype => candle_core::bail!("no kernel computes in {dtype:?}"),
        };
        Ok(Self(storage))
    }

    /// For as much as `xs` holds.
    pub(super) fn like(xs: &Tensor) -> Result<Self> {
        Self::new(cuda_device(xs)?, xs.dtype(), xs.elem_count())
    }

    pub(super) fn argument(&self) -> Result<Argument> {
        address(&self.0).map(Argument::Address)
    }

    pub(super) fn into_storage(self) -> CudaStorage {
        self.0
    }

    pub(super) fn into_tensor(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.0), shape, BackpropOp::none(), false)
    }
}

pub(super) fn cuda_device(xs: &Tensor) -> Result<&CudaDevice> {
    match xs.device() {
        Device::Cuda(device) => Ok(device),
        device => candle_core::bail!("a kernel for NVIDIA GPUs was given a tensor on {device:?}"),
    }
}

/// The product of matrices `[.., m, k]` and `[.., k, n]`.
pub(super) fn product(xs: &Tensor, ys: &Tensor) -> Result<Buffer> {
    let ((a, a_layout), (b, b_layout)) = (xs.storage_and_layout(), ys.storage_and_layout());
    let (m, k, n) = (xs.dim(D::Minus2)?, xs.dim(D::Minus1)?, ys.dim(D::Minus1)?);
    let batch = xs.elem_count() / (m * k);
    if ys.dim(D::Minus2)? != k || ys.elem_count() != batch * k * n {
        candle_core::bail!("a product of {:?} and {:?}", xs.shape(), ys.shape());
    }
    match (&*a, &*b) {
        (Storage::Cuda(a), Storage::Cuda(b)) => Ok(Buffer(a.matmul(b, (batch, m, n, k), a_layout, b_layout)?)),
        _ => candle_core::bail!("a product of tensors that are not on a GPU"),
    }
}

/// The name of a kernel for a dtype.
pub(super) fn named(name: &str, dtype: DType) -> String {
    format!("{name}_{}", dtype.as_str())
}

/// Runs a kernel: in x, y and z so many blocks of so many threads.
pub(super) fn launch(
    device: &CudaDevice,
    name: &str,
    (grid_dim, block_dim): ((u32, u32, u32), (u32, u32, u32)),
    arguments: &[Argument],
) -> Result<()> {
    let function = device.get_or_load_custom_func(name, "pixart", code(device)?)?;
    let mut launch = function.builder();
    for argument in arguments {
        match argument {
            Argument::Address(address) => launch.arg(address),
            Argument::Integer(integer) => launch.arg(integer),
            Argument::Float(float) => launch.arg(float),
        };
    }
    // SAFETY: the caller gives what the kernel of that name takes: addresses of as many elements as the sizes beside them say, which
    // tensors hold until the stream has come past this launch.
    unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }.w()?;
    Ok(())
}

/// Threads of a block, and the most blocks, of kernels that go through elements one by one.
pub(super) const THREADS: u32 = 256;
const BLOCKS: usize = 1 << 16;

/// Runs a kernel for each element of `of`, in its dtype: given are tensors, the number of elements, and other things.
pub(super) fn launch_elements(name: &str, of: &Tensor, tensors: &[Argument], others: &[Argument]) -> Result<()> {
    let arguments = [tensors, &[Argument::integer(of.elem_count())], others].concat();
    let sizes = elements(of.elem_count());
    launch(cuda_device(of)?, &named(name, of.dtype()), sizes, &arguments)
}

/// Blocks and threads for so many elements, which kernels [count](super::fits).
pub(super) fn elements(count: usize) -> ((u32, u32, u32), (u32, u32, u32)) {
    ((count.div_ceil(THREADS as usize).min(BLOCKS) as u32, 1, 1), (THREADS, 1, 1))
}

/// Blocks and threads for rows that a warp each goes through.
pub(super) fn rows(count: usize) -> ((u32, u32, u32), (u32, u32, u32)) {
    ((count.div_ceil(8) as u32, 1, 1), (32, 8, 1))
}

/// The kernels as the driver takes them, compiled for this GPU when first asked for.
fn code(device: &CudaDevice) -> Result<&'static str> {
    static CODE: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compiled = CODE.get_or_init(|| {
        let (major, minor) = device.cuda_stream().context().compute_capability().map_err(|error| error.to_string())?;
        let options = vec![format!("--gpu-architecture=compute_{major}{minor}")];
        let compiled = compile_ptx_with_opts(SOURCE, CompileOptions { options, ..CompileOptions::default() });
        compiled.map(|code| code.to_src()).map_err(|error| format!("the kernels do not compile: {error}"))
    });
    compiled.as_deref().map_err(|error| Error::Msg(error.clone()))
}
