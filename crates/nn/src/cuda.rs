//! NVIDIA GPUs.

#![allow(unsafe_code, reason = "the driver's calls are; each block has its reason")]

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{Device, Error, Result};

/// Opens the GPU of this number as networks are fastest on it: with one stream for whatever thread uses it, and memory that is kept for the
/// next tensor when one is gone.
///
/// # Errors
/// There is no such GPU, or no driver for it.
pub fn open(number: usize) -> Result<Device> {
    // candle's own choice is a stream for each thread, which do not wait for each other.
    let device = CudaDevice::new_with_stream(number)?;
    // SAFETY: events are for tensors that streams share, and there is one stream.
    unsafe { device.disable_event_tracking() };
    keep_memory(&device).map_err(Error::wrap)?;
    Ok(Device::Cuda(device))
}

/// The driver gives memory back to the system whenever all work is done, which is in every step, and asks for it anew in the next.
fn keep_memory(device: &CudaDevice) -> std::result::Result<(), result::DriverError> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the device is open, and the attribute is a number of 64 bits that is read before the call returns.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast())
    }
}
