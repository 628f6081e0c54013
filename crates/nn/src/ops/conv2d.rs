use std::sync::Arc;

use crate::NamedWeights;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor};
use pixart_kernels::{
    Activation, Arithmetic, ConvWeights, Epilogue, Geometry, Normalise, Residual, conv2d_backward_input,
    conv2d_backward_weight,
};

use super::cpu::{self, CpuElement, SCRATCH, View, for_dtype};
use super::{GroupNorm, activation, channels_first, channels_last, product_dtype, upsample_nearest_2x};

/// Where zeros are put around an image before a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// This many on every side.
    Same(usize),
    /// One column on the right and one row at the bottom, as the VAE's downsampling has it.
    RightBottom,
}

impl Padding {
    /// How a kernel of `kernel` pixels moves over images of `height` × `width`.
    fn geometry(self, (height, width): (usize, usize), kernel: usize, stride: usize) -> Result<Geometry> {
        let (padding, more) = match self {
            Self::Same(padding) => (padding, 2 * padding),
            Self::RightBottom => (0, 1),
        };
        let size = |pixels: usize| (pixels + more).checked_sub(kernel).map(|room| room / stride + 1);
        match (size(height), size(width)) {
            (Some(height), Some(width)) => Ok(Geometry { stride, padding, height, width }),
            _ => candle_core::bail!("an image of {height}×{width} is smaller than a kernel of {kernel}×{kernel}"),
        }
    }
}

/// 2-D convolution: `xs` `[batch, in, height, width]`, `weight` `[out, in, k, k]`, `bias` `[out]`.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    {
        let ((batch, channels, height, width), (out, _, kernel, _)) = (xs.dims4()?, weight.dims4()?);
        let geometry = padding.geometry((height, width), kernel, stride)?;
        let largest = batch * geometry.height * geometry.width * (kernel * kernel * channels).max(out);
        // Planes beside and above each other are counted in 16 bits.
        let fits = super::cuda::fits(largest) && batch.max(channels) < 1 << 16;
        if super::cuda::is_fast(&[&[xs, weight], bias.as_slice()].concat()) && fits {
            return super::cuda::conv2d(xs, weight, bias, geometry);
        }
    }
    let bias_is_fast = bias.is_none_or(|bias| cpu::is_fast(&[xs, bias]));
    if !cpu::is_fast(&[xs, weight]) || !bias_is_fast {
        return conv2d_composed(xs, weight, bias, stride, padding);
    }
    let (input, weight, op) = (channels_last(xs)?, weight.contiguous()?, Convolution { stride, padding });
    channels_first(&match bias {
        Some(bias) => input.apply_op3(&weight, bias, op)?,
        None => input.apply_op2(&weight, op)?,
    })
}

/// What [`conv2d`] means.
pub(super) fn conv2d_composed(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let dtype = product_dtype(xs.device(), xs.dtype());
    let input = xs.to_dtype(dtype)?;
    let (input, padding) = match padding {
        Padding::Same(padding) => (input, padding),
        Padding::RightBottom => (input.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?, 0),
    };
    let ys = input.contiguous()?.conv2d(&weight.to_dtype(dtype)?, padding, stride, 1, 1)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(&bias.to_dtype(dtype)?.reshape((1, (), 1, 1))?)?,
        None => ys,
    };
    ys.to_dtype(xs.dtype())
}

/// A learned [`conv2d`].
#[derive(Debug, Clone)]
pub struct Conv2d {
    weights: Weights,
    stride: usize,
    padding: Padding,
    /// Whether the image is doubled first.
    doubles: bool,
}

#[derive(Debug, Clone)]
enum Weights {
    Tensors {
        weight: Tensor,
        bias: Tensor,
    },
    /// On the CPU, weights that do not change: in the order in which the convolution reads them.
    Packed(PackedConv2d),
}

impl Conv2d {
    /// Reads `weight` `[channels_out, channels_in, kernel, kernel]` and `bias` `[channels_out]`.
    pub fn new(
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
        vb: NamedWeights,
    ) -> Result<Self> {
        Self::read((channels_out, channels_in, kernel), stride, padding, false, &vb)
    }

    /// A 3×3 convolution that keeps the size.
    pub fn three(channels_in: usize, channels_out: usize, vb: NamedWeights) -> Result<Self> {
        Self::new(channels_in, channels_out, 3, 1, Padding::Same(1), vb)
    }

    /// A 1×1 convolution.
    pub fn one(channels_in: usize, channels_out: usize, vb: NamedWeights) -> Result<Self> {
        Self::new(channels_in, channels_out, 1, 1, Padding::Same(0), vb)
    }

    /// [`upsample_nearest_2x`], then a 3×3 convolution that keeps the size.
    pub fn upsampling(channels: usize, vb: NamedWeights) -> Result<Self> {
        Self::read((channels, channels, 3), 1, Padding::Same(1), true, &vb)
    }

    /// Reads the weights, and packs them if they can be and will stay as they are.
    fn read(
        (channels_out, channels_in, kernel): (usize, usize, usize),
        stride: usize,
        padding: Padding,
        doubles: bool,
        vb: &NamedWeights,
    ) -> Result<Self> {
        let (shape, bias) = ((channels_out, channels_in, kernel, kernel), vb.get(channels_out, "bias")?);
        let (weight, arithmetic) = match vb.bytes((channels_out, channels_in * kernel * kernel), "weight")? {
            Some(bytes) if bytes.input_factors.is_some() || !bytes.low_rank.is_empty() => {
                candle_core::bail!("a convolution in 8 bits has neither factors nor corrections")
            }
            Some(bytes) => {
                let weight = Tensor::from_vec(bytes.matrix.to_f32(), shape, vb.device())?;
                match bytes.rounds_inputs && cpu::is_fast(&[&weight]) {
                    true => (weight, Some(Arithmetic::Int8)),
                    false => (weight.to_dtype(vb.dtype())?, None),
                }
            }
            None => (vb.get(shape, "weight")?, None),
        };
        let weights = match weight.track_op() || !cpu::is_fast(&[&weight]) {
            true => Weights::Tensors { weight, bias },
            false => {
                let isa = cpu::isa()?;
                let packed = cpu::with_views([&weight], |[weight]| {
                    for_dtype!(weight.dtype(), T => {
                        let (weight, arithmetic) = (weight.slice::<T>()?, arithmetic.unwrap_or(T::ARITHMETIC));
                        Ok(match doubles {
                            true => ConvWeights::doubling(isa, arithmetic, weight, (channels_out, channels_in)),
                            false => ConvWeights::new(isa, arithmetic, weight, (channels_out, channels_in, kernel)),
                        })
                    })
                })?;
                let (weight, bias) = (Arc::new(packed), Arc::new(cpu::f32_values(&bias)?));
                Weights::Packed(PackedConv2d { weight, bias, stride, padding })
            }
        };
        Ok(Self { weights, stride, padding, doubles })
    }

    /// Shapes as in [`conv2d`].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Weights::Packed(packed) => channels_first(&channels_last(xs)?.apply_op1(packed.clone())?),
            Weights::Tensors { weight, bias } if self.doubles => {
                conv2d(&upsample_nearest_2x(xs)?, weight, Some(bias), self.stride, self.padding)
            }
            Weights::Tensors { weight, bias } => conv2d(xs, weight, Some(bias), self.stride, self.padding),
        }
    }

    /// `forward(silu(norm(xs)))`, plus `residual` where there is one: half of a VAE's residual block.
    pub fn forward_normed(&self, xs: &Tensor, norm: &GroupNorm, residual: Option<&Tensor>) -> Result<Tensor> {
        let tracked = xs.track_op() || norm.is_tracked() || residual.is_some_and(Tensor::track_op);
        match &self.weights {
            Weights::Packed(packed) if !tracked && cpu::is_fast(&[xs]) => {
                let coefficients = norm.coefficients(xs.dim(0)?, &norm.statistics(xs)?)?;
                packed.forward_normed(xs, &coefficients, residual)
            }
            _ => {
                let ys = self.forward(&norm.forward_silu(xs)?)?;
                match residual {
                    Some(residual) => sum(residual, &ys),
                    None => Ok(ys),
                }
            }
        }
    }

    /// As [`Conv2d::forward_normed`], of some rows of images, whose norm is known from all of them: as factors and summands,
    /// see [`GroupNorm::coefficients`]. Without a gradient.
    pub fn forward_normed_by(&self, xs: &Tensor, coefficients: &[f32], residual: Option<&Tensor>) -> Result<Tensor> {
        if let Weights::Packed(packed) = &self.weights
            && cpu::is_fast(&[xs])
        {
            return packed.forward_normed(xs, coefficients, residual);
        }
        let (batch, channels, ..) = xs.dims4()?;
        let table = Tensor::from_slice(coefficients, (batch, 2, channels, 1, 1), xs.device())?;
        let part = |i: usize| table.narrow(1, i, 1)?.squeeze(1);
        let normed = xs.to_dtype(DType::F32)?.broadcast_mul(&part(0)?)?.broadcast_add(&part(1)?)?;
        let ys = self.forward(&activation(&normed, Activation::Silu)?.to_dtype(xs.dtype())?)?;
        match residual {
            Some(residual) => sum(residual, &ys),
            None => Ok(ys),
        }
    }
}

/// The sum of images. On the CPU the channels of a pixel stand together in memory, and are not moved apart.
fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !a.device().is_cpu() {
        return a + b;
    }
    channels_first(&(channels_last(a)? + channels_last(b)?)?)
}

/// A convolution of channels-last images with frozen weights.
#[derive(Debug, Clone)]
struct PackedConv2d {
    weight: Arc<ConvWeights>,
    bias: Arc<Vec<f32>>,
    stride: usize,
    padding: Padding,
}

impl PackedConv2d {
    /// How the kernel moves over images `[batch, height, width, channels]`, and the result's shape.
    fn geometry(&self, xs: &Shape) -> Result<(Geometry, Shape)> {
        let (batch, height, width, channels) = xs.dims4()?;
        let (channels_in, channels_out) = self.weight.channels();
        if channels != channels_in {
            candle_core::bail!("a convolution of {channels_in} channels was given {channels}");
        }
        let factor = if self.weight.doubles() { 2 } else { 1 };
        let geometry = self.padding.geometry((height * factor, width * factor), self.weight.kernel(), self.stride)?;
        Ok((geometry, (batch, geometry.height, geometry.width, channels_out).into()))
    }

    fn forward_normed(&self, xs: &Tensor, coefficients: &[f32], residual: Option<&Tensor>) -> Result<Tensor> {
        let xs = channels_last(xs)?;
        let (geometry, shape) = self.geometry(xs.shape())?;
        let normalise = Normalise { coefficients, activation: Activation::Silu };
        let ys = match residual.map(channels_last).transpose()? {
            None => cpu::with_views([&xs], |[xs]| {
                for_dtype!(xs.dtype(), T => cpu::filled::<T>(shape, |ys| {
                    self.convolve(xs, Some(&normalise), &geometry, None, ys)
                }))
            }),
            Some(residual) if residual.shape() != &shape => {
                candle_core::bail!("a residual of {:?} for a convolution of {shape:?}", residual.shape())
            }
            Some(residual) => cpu::with_views([&xs, &residual], |[xs, residual]| {
                for_dtype!(xs.dtype(), T => cpu::filled::<T>(shape, |ys| {
                    let residual = Residual { xs: residual.slice::<T>()?, gate: None };
                    self.convolve(xs, Some(&normalise), &geometry, Some(residual), ys)
                }))
            }),
        }?;
        channels_first(&ys)
    }

    fn convolve<T: CpuElement>(
        &self,
        xs: View,
        normalise: Option<&Normalise>,
        geometry: &Geometry,
        residual: Option<Residual<T>>,
        ys: &mut [T],
    ) -> Result<()> {
        let images = xs.images::<T>()?;
        let epilogue = Epilogue { bias: Some(&self.bias), residual, ..Epilogue::default() };
        pixart_kernels::conv2d(cpu::isa()?, &SCRATCH, &images, normalise, &self.weight, geometry, &epilogue, ys);
        Ok(())
    }
}

impl CustomOp1 for PackedConv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = View::new(storage, layout);
        let (geometry, shape) = self.geometry(layout.shape())?;
        for_dtype!(xs.dtype(), T => {
            cpu::filled_storage::<T>(shape, |ys| self.convolve(xs, None, &geometry, None, ys))
        })
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        let Some(weight) = self.weight.unpack() else {
            candle_core::bail!(
                "no gradient goes through frozen weights of an image that is doubled first; make them variables"
            )
        };
        let isa = cpu::isa()?;
        let (geometry, _) = self.geometry(xs.shape())?;
        let (_, height, width, channels) = xs.dims4()?;
        cpu::with_views([&d_ys.contiguous()?], |[d_ys]| {
            for_dtype!(xs.dtype(), T => cpu::filled::<T>(xs.shape().clone(), |d_xs| {
                let d_ys = d_ys.images::<T>()?;
                conv2d_backward_input(isa, &SCRATCH, &d_ys, &weight, &geometry, (height, width, channels), d_xs);
                Ok(())
            }))
        })
        .map(Some)
    }
}

/// A convolution of channels-last images with weights that are tensors: for training.
struct Convolution {
    stride: usize,
    padding: Padding,
}

impl Convolution {
    fn geometry(&self, xs: &Shape, weight: &Shape) -> Result<Geometry> {
        let ((_, height, width, channels), (_, channels_in, kernel, _)) = (xs.dims4()?, weight.dims4()?);
        if channels != channels_in {
            candle_core::bail!("a convolution of {channels_in} channels was given {channels}");
        }
        self.padding.geometry((height, width), kernel, self.stride)
    }

    fn forward(&self, xs: View, weight: View, bias: Option<View>) -> Result<(CpuStorage, Shape)> {
        let isa = cpu::isa()?;
        let geometry = self.geometry(xs.layout.shape(), weight.layout.shape())?;
        let (out, channels, kernel, _) = weight.layout.shape().dims4()?;
        let bias = bias.map(View::to_f32).transpose()?;
        let shape = (xs.layout.dims()[0], geometry.height, geometry.width, out);
        for_dtype!(xs.dtype(), T => {
            let weights = ConvWeights::new(isa, T::ARITHMETIC, weight.slice::<T>()?, (out, channels, kernel));
            cpu::filled_storage::<T>(shape, |ys| {
                let epilogue = Epilogue { bias: bias.as_deref(), ..Epilogue::default() };
                pixart_kernels::conv2d(isa, &SCRATCH, &xs.images::<T>()?, None, &weights, &geometry, &epilogue, ys);
                Ok(())
            })
        })
    }

    /// The gradients of the input, the weights and the bias.
    fn backward(&self, xs: &Tensor, weight: &Tensor, d_ys: &Tensor) -> Result<[Tensor; 3]> {
        let isa = cpu::isa()?;
        let geometry = self.geometry(xs.shape(), weight.shape())?;
        let (_, height, width, channels) = xs.dims4()?;
        let out = weight.dim(0)?;
        let (mut d_weight, mut d_bias) = (vec![0f32; weight.elem_count()], vec![0f32; out]);
        let d_xs = cpu::with_views([xs, weight, &d_ys.contiguous()?], |[xs, weight, d_ys]| {
            for_dtype!(xs.dtype(), T => {
                let (xs, d_ys) = (xs.images::<T>()?, d_ys.images::<T>()?);
                conv2d_backward_weight(isa, &SCRATCH, &xs, &d_ys, &geometry, &mut d_weight, Some(&mut d_bias));
                cpu::filled::<T>((xs.batch, height, width, channels), |d_xs| {
                    let weight = weight.slice::<T>()?;
                    conv2d_backward_input(isa, &SCRATCH, &d_ys, weight, &geometry, (height, width, channels), d_xs);
                    Ok(())
                })
            })
        })?;
        let d_weight = cpu::gradient_of(weight, d_weight)?;
        let d_bias = Tensor::from_vec(d_bias, out, weight.device())?.to_dtype(weight.dtype())?;
        Ok([d_xs, d_weight, d_bias])
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(View::new(xs, xs_layout), View::new(weight, weight_layout), None)
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [d_xs, d_weight, _] = self.backward(xs, weight, d_ys)?;
        Ok((Some(d_xs), Some(d_weight)))
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = View::new(bias, bias_layout);
        self.forward(View::new(xs, xs_layout), View::new(weight, weight_layout), Some(bias))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [d_xs, d_weight, d_bias] = self.backward(xs, weight, d_ys)?;
        Ok((Some(d_xs), Some(d_weight), Some(d_bias)))
    }
}
