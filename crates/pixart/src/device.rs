//! Devices and dtypes by name.

use std::str::FromStr;

use candle_core::{DType, Device, DeviceLocation};
use pixart_weights::Scheme;

use crate::{Error, Result};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU that this program was built for and that is there, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Cuda(number)),
                _ => Err(format!("there is no device {name:?}; known are auto, cpu, cuda, cuda:N and metal")),
            },
        }
    }
}

impl From<&Device> for DeviceChoice {
    /// The choice of a device that is open.
    fn from(device: &Device) -> Self {
        match device.location() {
            DeviceLocation::Cpu => Self::Cpu,
            DeviceLocation::Cuda { gpu_id } => Self::Cuda(gpu_id),
            DeviceLocation::Metal { .. } => Self::Metal,
        }
    }
}

impl DeviceChoice {
    /// Opens the device. Errors: it is not there, or this program was built without support for it.
    pub fn open(self) -> Result<Device> {
        let failed = |name: &str, error: candle_core::Error| {
            Error::Device(format!("no {name} device can be used: {}", pixart_weights::plain_message(&error)))
        };
        match self {
            Self::Auto if candle_core::utils::cuda_is_available() => Ok(open_cuda(0).unwrap_or_else(|error| {
                tracing::warn!("{}; computing on the CPU", failed("CUDA", error));
                Device::Cpu
            })),
            Self::Auto if candle_core::utils::metal_is_available() => {
                Ok(Device::new_metal(0).unwrap_or_else(|error| {
                    tracing::warn!("{}; computing on the CPU", failed("Metal", error));
                    Device::Cpu
                }))
            }
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(Error::Device(
                "this program was built without CUDA; build it with --features cuda, or use --device cpu".into(),
            )),
            Self::Cuda(number) => open_cuda(number).map_err(|error| failed(&format!("cuda:{number}"), error)),
            Self::Metal if !candle_core::utils::metal_is_available() => Err(Error::Device(
                "this program was built without Metal; build it with --features metal, or use --device cpu".into(),
            )),
            Self::Metal => Device::new_metal(0).map_err(|error| failed("Metal", error)),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> candle_core::Result<Device> {
    pixart_nn::cuda::open(number)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(number: usize) -> candle_core::Result<Device> {
    Device::new_cuda(number)
}

/// The precision to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bf16 on a GPU, and on a CPU that multiplies it faster than f32 (AMX, and AVX-512 BF16 but Intel's); else f32.
    #[default]
    Auto,
    /// 32-bit floats: what the golden values are held to.
    F32,
    /// Brain floats.
    Bf16,
    /// Half floats.
    F16,
    /// Text encoder, transformer and ControlNet in 8 bits, weights and inputs of layers; the rest as with `Auto`.
    Int8,
    /// The same of weights alone.
    Int8Weights,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            "int8-weights" => Ok(Self::Int8Weights),
            _ => Err(format!("there is no dtype {name:?}; known are auto, f32, bf16, f16, int8 and int8-weights")),
        }
    }
}

impl Precision {
    /// The dtype on `device` of what is not in 8 bits.
    pub fn dtype(self, device: &Device) -> DType {
        match self {
            Self::Auto | Self::Int8 | Self::Int8Weights if device.is_cpu() => pixart_nn::ops::fastest_cpu_dtype(),
            Self::Auto | Self::Bf16 | Self::Int8 | Self::Int8Weights => DType::BF16,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }

    /// How weights are rounded to 8 bits as they are read, if they are.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            Self::Int8 => Some(Scheme::Int8),
            Self::Int8Weights => Some(Scheme::Int8Weights),
            Self::Auto | Self::F32 | Self::Bf16 | Self::F16 => None,
        }
    }
}

/// A dtype's short name.
pub fn dtype_name(dtype: DType) -> &'static str {
    dtype.as_str()
}

/// A device's name as `--device` takes it.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { .. } => "metal".into(),
    }
}
