//! Every fast form against the composition that defines it, values and gradients, on odd shapes.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use pixart_kernels::{Activation, ByteMatrix, Isa, Matrix};

use super::activation::activation_composed;
use super::attention::attention_composed;
use super::conv2d::conv2d_composed;
use super::gated_residual::gated_residual_composed;
use super::group_norm::group_norm_composed;
use super::layer_norm::{layer_norm_composed, layer_norm_modulate_composed};
use super::linear::{ByteLinear, linear_composed, linear_to};
use super::optimizer::{adamw_composed, momentum_composed};
use super::rms_norm::rms_norm_composed;
use super::upsample::upsample_nearest_2x_composed;
use super::*;
use crate::testing::random;
use crate::{ByteWeight, BytesByName, LowRank, NamedWeights};

/// The CPU and, where this program is built for it and the environment variable `PIXART_TEST_GPU` is set, the NVIDIA GPU.
fn devices() -> Result<Vec<Device>> {
    #[cfg(feature = "cuda")]
    if std::env::var_os("PIXART_TEST_GPU").is_some() {
        return Ok(vec![Device::Cpu, crate::cuda::open(0)?]);
    }
    Ok(vec![Device::Cpu])
}

/// Holds `fast` on a device to `composed` on the CPU, in the values of the result, in f32 and in bf16; there the composition takes the
/// same rounded inputs in f32.
fn hold_values_on(
    device: &Device,
    name: &str,
    shapes: &[&[usize]],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let name = &format!("{name} on {:?}", device.location());
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 2e-2)] {
        let inputs = shapes.iter().map(|shape| random(*shape)?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
        let wide = inputs.iter().map(|xs| xs.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
        let found = fast(&inputs.iter().map(|xs| xs.to_device(device)).collect::<Result<Vec<_>>>()?)?;
        assert_eq!(found.dtype(), dtype, "{name}");
        close(&format!("{name} in {dtype:?}"), &found, &composed(&wide)?, tolerance)?;
    }
    Ok(())
}

/// As [`hold_values_on`] on every device, and in the gradient of every input, in f32.
fn hold(
    name: &str,
    shapes: &[&[usize]],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    devices()?.iter().try_for_each(|device| hold_on(device, name, shapes, &fast, &composed))
}

fn hold_on(
    device: &Device,
    name: &str,
    shapes: &[&[usize]],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    hold_values_on(device, name, shapes, &fast, &composed)?;
    let name = &format!("{name} on {:?}", device.location());
    let inputs = shapes.iter().map(|shape| random(*shape)).collect::<Result<Vec<_>>>()?;
    let variables = |device: &Device| -> Result<Vec<Var>> {
        inputs.iter().map(|xs| Var::from_tensor(&xs.to_device(device)?)).collect()
    };
    let (mine, theirs) = (variables(device)?, variables(&Device::Cpu)?);
    let tensors = |of: &[Var]| of.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>();
    let ys = fast(&tensors(&mine))?;
    let weights = random(ys.shape())?;
    let found = (ys * weights.to_device(device)?)?.sum_all()?.backward()?;
    let expected = (composed(&tensors(&theirs))? * &weights)?.sum_all()?.backward()?;
    for (i, (mine, theirs)) in mine.iter().zip(&theirs).enumerate() {
        let (found, expected) = (found.get(mine), expected.get(theirs));
        let found = found.unwrap_or_else(|| panic!("{name} has no gradient for input {i}"));
        let expected = expected.unwrap_or_else(|| panic!("the composition of {name} has no gradient"));
        close(&format!("{name}, gradient of input {i}"), found, expected, 5e-5)?;
    }
    Ok(())
}

/// The largest difference is at most `tolerance` of the largest value.
fn close(name: &str, found: &Tensor, expected: &Tensor, tolerance: f32) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let largest = |xs: &Tensor| xs.to_dtype(DType::F32)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let difference = (found.to_dtype(DType::F32)?.to_device(expected.device())? - expected)?;
    let error = largest(&difference)? / largest(expected)?.max(1e-3);
    assert!(error <= tolerance, "{name} is off by {error:e}");
    Ok(())
}

#[test]
fn rounded_products_are_products() -> Result<()> {
    let (xs, weight) = (random((37, 21))?, random((18, 21))?);
    close("product", &rounded_product(&xs, &weight)?, &xs.matmul(&weight.t()?)?, 1e-2)?;
    close("gram", &rounded_gram(&xs)?, &xs.t()?.matmul(&xs)?, 1e-2)
}

/// Inputs and results with more digits than the weights, as a residual stream has them.
#[test]
fn linear_from_and_to_a_stream() -> Result<()> {
    let rounded = |xs: &Tensor| xs.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    // Some processors round inputs as the weights are, and some do not.
    let (xs, weight, bias) = (rounded(&random((2, 9, 24))?)?, random((33, 24))?.to_dtype(DType::BF16)?, random(33)?);
    let bias = bias.to_dtype(DType::BF16)?;
    for (of_xs, of_ys) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32), (DType::F32, DType::F32)] {
        let (mine, theirs) = (Var::from_tensor(&xs.to_dtype(of_xs)?)?, Var::from_tensor(&xs)?);
        let weights = (Var::from_tensor(&weight)?, Var::from_tensor(&weight.to_dtype(DType::F32)?)?);
        let ys = linear_to(&mine, &weights.0, Some(&bias), of_ys)?;
        assert_eq!(ys.dtype(), of_ys);
        let expected = linear_composed(&theirs, &weights.1, Some(&bias.to_dtype(DType::F32)?))?;
        close("values", &ys, &expected, if of_ys == DType::F32 { 2e-5 } else { 1e-2 })?;
        let loss = random(ys.shape())?;
        let found = (ys * loss.to_dtype(of_ys)?)?.sum_all()?.backward()?;
        let wanted = (expected * rounded(&loss)?)?.sum_all()?.backward()?;
        for (mine, theirs) in [(&mine, &theirs), (&weights.0, &weights.1)] {
            let (Some(found), Some(wanted)) = (found.get(mine), wanted.get(theirs)) else {
                panic!("there is no gradient");
            };
            assert_eq!(found.dtype(), mine.dtype());
            close("gradient", found, wanted, 1e-2)?;
        }
    }
    Ok(())
}

#[test]
fn linear_is_its_composition() -> Result<()> {
    for (rows, width_in, width_out) in [(1, 1, 1), (7, 15, 33), (31, 64, 17), (48, 33, 96)] {
        hold(
            "linear",
            &[&[2, rows, width_in], &[width_out, width_in], &[width_out]],
            |xs| linear(&xs[0], &xs[1], Some(&xs[2])),
            |xs| linear_composed(&xs[0], &xs[1], Some(&xs[2])),
        )?;
        hold(
            "linear without a bias",
            &[&[rows, width_in], &[width_out, width_in]],
            |xs| linear(&xs[0], &xs[1], None),
            |xs| linear_composed(&xs[0], &xs[1], None),
        )?;
    }
    Ok(())
}

/// A linear map of packed weights, whole and fused, and its gradient through the frozen weights.
#[test]
fn packed_linear_is_its_composition() -> Result<()> {
    let (rows, width_in, width_out) = (9, 31, 34);
    let device = Device::Cpu;
    let weights: Vec<_> = (0..2).map(|_| random((width_out, width_in))).collect::<Result<_>>()?;
    let biases: Vec<_> = (0..2).map(|_| random(width_out)).collect::<Result<_>>()?;
    let tensors = ["a", "b"].iter().zip(weights.iter().zip(&biases)).flat_map(|(name, (weight, bias))| {
        [(format!("{name}.weight"), weight.clone()), (format!("{name}.bias"), bias.clone())]
    });
    let vb = NamedWeights::from(VarBuilder::from_tensors(tensors.collect(), DType::F32, &device));
    let joined = Linear::joined(width_in, width_out, true, &[vb.pp("a"), vb.pp("b")])?;
    let (weight, bias) = (Tensor::cat(&weights, 0)?, Tensor::cat(&biases, 0)?);
    hold_on(
        &device,
        "joined linear",
        &[&[2, rows, width_in]],
        |xs| joined.forward(&xs[0]),
        |xs| linear_composed(&xs[0], &weight, Some(&bias)),
    )?;
    hold_on(
        &device,
        "linear and activation",
        &[&[2, rows, width_in]],
        |xs| joined.forward_activated(&xs[0], Activation::GeluTanh),
        |xs| linear_composed(&xs[0], &weight, Some(&bias))?.gelu(),
    )?;
    let shapes: [&[usize]; 3] = [&[2, rows, width_in], &[2, rows, 2 * width_out], &[2, 1, 2 * width_out]];
    hold_on(
        &device,
        "linear, gate and residual",
        &shapes,
        |xs| joined.forward_residual(&xs[0], &xs[1], Some(&xs[2])),
        |xs| gated_residual_composed(&xs[1], &xs[2], &linear_composed(&xs[0], &weight, Some(&bias))?),
    )?;
    hold_on(
        &device,
        "linear and residual",
        &shapes[..2],
        |xs| joined.forward_residual(&xs[0], &xs[1], None),
        |xs| &xs[1] + linear_composed(&xs[0], &weight, Some(&bias))?,
    )
}

#[test]
fn attention_is_its_composition() -> Result<()> {
    for (batch, heads, size, n, m) in [(1, 1, 1, 1, 1), (2, 3, 8, 7, 15), (1, 2, 72, 33, 31), (2, 1, 64, 17, 130)] {
        let width = heads * size;
        let bias = random((1, heads, n, m))?;
        let mask = Tensor::from_iter((0..batch * m).map(|i| if i % m > m / 2 { -1e4f32 } else { 0.0 }), &Device::Cpu)?;
        let mask = mask.reshape((batch, 1, 1, m))?;
        for bias in [None, Some(&bias), Some(&mask)] {
            hold(
                "attention",
                &[&[batch, n, width], &[batch, m, width], &[batch, m, width]],
                |xs| {
                    let bias = bias.map(|bias| bias.to_device(xs[0].device())).transpose()?;
                    attention(&xs[0], &xs[1], &xs[2], Scores::new(heads, 0.7), bias.as_ref())
                },
                |xs| attention_composed(&xs[0], &xs[1], &xs[2], Scores::new(heads, 0.7), bias),
            )?;
        }
    }
    // Queries, keys and values as parts of one tensor.
    let part = |xs: &Tensor, i: usize| xs.narrow(2, i * 24, 24);
    let composed = |q: &Tensor, k: &Tensor, v: &Tensor| attention_composed(q, k, v, Scores::new(3, 0.3), None);
    hold(
        "attention of parts",
        &[&[2, 19, 72]],
        |xs| attention(&part(&xs[0], 0)?, &part(&xs[0], 1)?, &part(&xs[0], 2)?, Scores::new(3, 0.3), None),
        |xs| composed(&part(&xs[0], 0)?, &part(&xs[0], 1)?, &part(&xs[0], 2)?),
    )?;
    hold(
        "self-attention",
        &[&[2, 19, 72]],
        |xs| self_attention(&xs[0], Scores::new(3, 0.3), None),
        |xs| composed(&part(&xs[0], 0)?, &part(&xs[0], 1)?, &part(&xs[0], 2)?),
    )?;
    hold(
        "cross-attention",
        &[&[2, 19, 24], &[2, 7, 48]],
        |xs| cross_attention(&xs[0], &xs[1], Scores::new(3, 0.3), None),
        |xs| composed(&xs[0], &part(&xs[1], 0)?, &part(&xs[1], 1)?),
    )
}

#[test]
fn conv2d_is_its_composition() -> Result<()> {
    for (channels, out, height, width, kernel, stride, padding) in [
        (1, 1, 1, 1, 3, 1, Padding::Same(1)),
        (3, 5, 7, 15, 3, 1, Padding::Same(1)),
        (17, 33, 6, 9, 1, 1, Padding::Same(0)),
        (4, 16, 8, 10, 2, 2, Padding::Same(0)),
        (8, 7, 10, 12, 3, 2, Padding::RightBottom),
        (8, 7, 9, 11, 3, 2, Padding::RightBottom),
    ] {
        hold(
            "conv2d",
            &[&[2, channels, height, width], &[out, channels, kernel, kernel], &[out]],
            |xs| conv2d(&xs[0], &xs[1], Some(&xs[2]), stride, padding),
            |xs| conv2d_composed(&xs[0], &xs[1], Some(&xs[2]), stride, padding),
        )?;
    }
    Ok(())
}

/// A convolution of packed weights alone, after a norm, with a residual, and of an enlarged image.
/// The same weight in 8 bits under every name.
struct OneWeight(ByteWeight);

impl BytesByName for OneWeight {
    fn bytes(&self, _: &str, shape: (usize, usize)) -> Result<Option<ByteWeight>> {
        Ok((shape == self.0.matrix.shape()).then(|| self.0.clone()))
    }
}

/// What a result differs by, relative to its root mean square.
fn relative_error(found: &Tensor, expected: &Tensor) -> Result<f32> {
    let mean = |xs: Tensor| xs.sqr()?.mean_all()?.to_scalar::<f32>();
    let difference = (found.to_dtype(DType::F32)? - expected.to_dtype(DType::F32)?)?;
    Ok((mean(difference)? / mean(expected.to_dtype(DType::F32)?)?).sqrt())
}

fn byte_matrix(weight: &Tensor) -> Result<ByteMatrix> {
    let ((rows, depth), values) = (weight.dims2()?, weight.flatten_all()?.to_vec1::<f32>()?);
    let isa = Isa::chosen().map_err(candle_core::Error::msg)?;
    Ok(ByteMatrix::quantise(isa, Matrix::new(&values, rows, depth)))
}

/// Linear maps in 8 bits against their composition: exactly where only weights are rounded, by what rounding costs where
/// inputs are too; with factors, with corrections of low rank, in order and in place.
#[test]
fn linear_in_8_bits_is_its_composition() -> Result<()> {
    let (rows, width_in, width_out, rank) = (9, 67, 34, 5);
    let device = Device::Cpu;
    let bias = random(width_out)?;
    let names = ["a", "b"];
    let tensors = names.iter().map(|name| (format!("{name}.bias"), bias.clone())).collect();
    let vb = NamedWeights::from(VarBuilder::from_tensors(tensors, DType::F32, &device));
    let matrix = byte_matrix(&random((width_out, width_in))?)?;
    let low_rank = LowRank { down: random((rank, width_in))?, up: random((width_out, rank))? };
    let factors: Vec<f32> = (0..width_in).map(|i| if i == 7 { 0.0 } else { 0.5 + (i % 5) as f32 / 4.0 }).collect();
    for (rounds_inputs, factors, low_rank) in [
        (false, None, vec![]),
        (false, None, vec![low_rank.clone()]),
        (true, None, vec![]),
        (true, Some(factors), vec![low_rank]),
    ] {
        let plain = ByteWeight::new(matrix.clone(), rounds_inputs);
        let weight = ByteWeight { input_factors: factors, low_rank, ..plain };
        let joined = ByteWeight::joined(&[weight.clone(), weight.clone()])?;
        let composed = ByteLinear::new(&joined, Some(Tensor::cat(&[&bias, &bias], 0)?), &device)?;
        let in_order = vb.clone().with_bytes(std::sync::Arc::new(OneWeight(weight)));
        for vb in [in_order.clone(), in_order.used_once()] {
            let linear = Linear::joined(width_in, width_out, true, &names.map(|name| vb.pp(name)))?;
            for dtype in [DType::F32, DType::BF16] {
                let xs = random((2, rows, width_in))?.to_dtype(dtype)?;
                let expected = composed.forward(&xs.to_dtype(DType::F32)?)?;
                let error = relative_error(&linear.forward(&xs)?, &expected)?;
                let tolerance = match (rounds_inputs, dtype) {
                    (false, DType::F32) => 1e-6,
                    (false, _) => 4e-3,
                    (true, _) => 1e-2,
                };
                assert!(error < tolerance, "inputs rounded: {rounds_inputs}, {dtype:?}: {error}");
                let gelu = linear.forward_activated(&xs, Activation::GeluTanh)?;
                assert!(relative_error(&gelu, &expected.gelu()?)? < 2.0 * tolerance);
                let residual = random(expected.shape())?;
                let added = linear.forward_residual(&xs, &residual, None)?;
                assert!(relative_error(&added, &(expected + residual)?)? < tolerance);
            }
        }
    }
    Ok(())
}

/// A few columns of huge inputs do not cost the others their digits.
#[test]
fn outliers_are_kept_out_of_the_rounding() -> Result<()> {
    let (rows, width_in, width_out) = (20, 96, 40);
    let device = Device::Cpu;
    let weight = ByteWeight::new(byte_matrix(&random((width_out, width_in))?)?, true);
    let composed = ByteLinear::new(&weight, None, &device)?;
    let huge: Vec<f32> = (0..width_in).map(|i| if [3, 77].contains(&i) { 300.0 } else { 1.0 }).collect();
    let xs = random((rows, width_in))?.broadcast_mul(&Tensor::new(huge, &device)?)?;
    // What the columns of common size contribute, whose digits are at stake.
    let expected = composed.forward(&xs)?;
    let error = |finds_outliers| {
        let weight = ByteWeight { finds_outliers, ..weight.clone() };
        let vb = NamedWeights::from(VarBuilder::zeros(DType::F32, &device));
        let vb = vb.with_bytes(std::sync::Arc::new(OneWeight(weight)));
        let found = Linear::with_bias(width_in, width_out, false, vb.pp("a"))?.forward(&xs)?;
        (found - &expected)?.abs()?.max_all()?.to_scalar::<f32>()
    };
    let (with, without) = (error(true)?, error(false)?);
    assert!(with < 0.5 && without > 20.0 * with, "{with} with, {without} without");
    Ok(())
}

/// Convolutions in 8 bits, by what rounding costs; of weights alone, nothing.
#[test]
fn conv2d_in_8_bits_is_its_composition() -> Result<()> {
    let (channels, groups) = (24, 3);
    let device = Device::Cpu;
    let (bias, norm_weight, norm_bias) = (random(channels)?, random(channels)?, random(channels)?);
    let tensors = [("conv.bias", &bias), ("norm.weight", &norm_weight), ("norm.bias", &norm_bias)];
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let vb = NamedWeights::from(VarBuilder::from_tensors(tensors, DType::F32, &device));
    let matrix = byte_matrix(&random((channels, channels * 9))?)?;
    let weight = Tensor::from_vec(matrix.to_f32(), (channels, channels, 3, 3), &device)?;
    let norm = GroupNorm::new(groups, channels, 1e-6, vb.pp("norm"))?;
    let plain = |xs: &Tensor| conv2d_composed(xs, &weight, Some(&bias), 1, Padding::Same(1));
    let xs = random((2, channels, 7, 9))?;
    let normed = group_norm_composed(&xs, groups, &norm_weight, &norm_bias, 1e-6, Activation::Silu)?;
    for (rounds_inputs, tolerance) in [(false, 1e-6), (true, 1.5e-2)] {
        let bytes = OneWeight(ByteWeight::new(matrix.clone(), rounds_inputs));
        let vb = vb.clone().with_bytes(std::sync::Arc::new(bytes));
        let conv = Conv2d::three(channels, channels, vb.pp("conv"))?;
        let upsampling = Conv2d::upsampling(channels, vb.pp("conv"))?;
        for (name, found, expected) in [
            ("plain", conv.forward(&xs)?, plain(&xs)?),
            ("normed", conv.forward_normed(&xs, &norm, None)?, plain(&normed)?),
            ("upsampling", upsampling.forward(&xs)?, plain(&upsample_nearest_2x_composed(&xs)?)?),
        ] {
            let error = relative_error(&found, &expected)?;
            assert!(error < tolerance, "{name}, inputs rounded: {rounds_inputs}: {error}");
        }
    }
    Ok(())
}

#[test]
fn packed_conv2d_is_its_composition() -> Result<()> {
    let (channels, groups) = (12, 3);
    let device = Device::Cpu;
    let (weight, bias) = (random(&[channels, channels, 3, 3])?, random(&[channels])?);
    let (norm_weight, norm_bias) = (random(&[channels])?, random(&[channels])?);
    let tensors =
        [("conv.weight", &weight), ("conv.bias", &bias), ("norm.weight", &norm_weight), ("norm.bias", &norm_bias)];
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let vb = NamedWeights::from(VarBuilder::from_tensors(tensors, DType::F32, &device));
    let conv = Conv2d::three(channels, channels, vb.pp("conv"))?;
    let upsampling = Conv2d::upsampling(channels, vb.pp("conv"))?;
    let norm = GroupNorm::new(groups, channels, 1e-6, vb.pp("norm"))?;
    let plain = |xs: &Tensor| conv2d_composed(xs, &weight, Some(&bias), 1, Padding::Same(1));
    let normed =
        |xs: &Tensor| plain(&group_norm_composed(xs, groups, &norm_weight, &norm_bias, 1e-6, Activation::Silu)?);
    let shape: &[usize] = &[2, channels, 7, 9];
    hold_on(&device, "packed conv2d", &[shape], |xs| conv.forward(&xs[0]), |xs| plain(&xs[0]))?;
    hold_values_on(
        &device,
        "norm and conv2d",
        &[shape],
        |xs| conv.forward_normed(&xs[0], &norm, None),
        |xs| normed(&xs[0]),
    )?;
    hold_values_on(
        &device,
        "norm, conv2d and residual",
        &[shape, shape],
        |xs| conv.forward_normed(&xs[0], &norm, Some(&xs[1])),
        |xs| &xs[1] + normed(&xs[0])?,
    )?;
    hold_values_on(
        &device,
        "upsampling and conv2d",
        &[shape],
        |xs| upsampling.forward(&xs[0]),
        |xs| plain(&upsample_nearest_2x_composed(&xs[0])?),
    )
}

#[test]
fn norms_are_their_compositions() -> Result<()> {
    for (rows, width) in [(1, 5), (7, 15), (5, 33), (3, 1152)] {
        hold(
            "layer norm and modulation",
            &[&[2, rows, width], &[2, 1, width], &[2, 1, width]],
            |xs| layer_norm_modulate(&xs[0], &xs[1], &xs[2], 1e-6, xs[0].dtype()),
            |xs| layer_norm_modulate_composed(&xs[0], &xs[1], &xs[2], 1e-6, xs[0].dtype()),
        )?;
        hold(
            "layer norm",
            &[&[2, rows, width], &[width], &[width]],
            |xs| layer_norm(&xs[0], &xs[1], &xs[2], 1e-5),
            |xs| layer_norm_composed(&xs[0], &xs[1], &xs[2], 1e-5),
        )?;
        hold(
            "rms norm",
            &[&[2, rows, width], &[width]],
            |xs| rms_norm(&xs[0], &xs[1], 1e-6),
            |xs| rms_norm_composed(&xs[0], &xs[1], 1e-6),
        )?;
    }
    for (channels, groups, height, width) in [(6, 3, 1, 2), (36, 9, 7, 5), (64, 32, 17, 16)] {
        for activation in [Activation::None, Activation::Silu] {
            hold(
                "group norm",
                &[&[2, channels, height, width], &[channels], &[channels]],
                |xs| group_norm(&xs[0], groups, &xs[1], &xs[2], 1e-6, activation),
                |xs| group_norm_composed(&xs[0], groups, &xs[1], &xs[2], 1e-6, activation),
            )?;
        }
    }
    Ok(())
}

#[test]
fn what_is_elementwise_is_its_composition() -> Result<()> {
    for shape in [&[1][..], &[3, 17], &[2, 33, 31]] {
        for function in [Activation::GeluTanh, Activation::Silu] {
            hold(
                "activation",
                &[shape],
                |xs| activation(&xs[0], function),
                |xs| activation_composed(&xs[0], function),
            )?;
        }
    }
    hold(
        "gated residual",
        &[&[2, 7, 33], &[2, 1, 33], &[2, 7, 33]],
        |xs| gated_residual(&xs[0], &xs[1], &xs[2]),
        |xs| gated_residual_composed(&xs[0], &xs[1], &xs[2]),
    )?;
    hold("upsampling", &[&[2, 5, 3, 7]], |xs| upsample_nearest_2x(&xs[0]), |xs| upsample_nearest_2x_composed(&xs[0]))
}

/// What optimisers change in place, over some steps.
#[test]
fn optimisers_are_their_compositions() -> Result<()> {
    for device in devices()? {
        for shape in [&[1usize][..], &[17, 33], &[5, 4, 3, 3]] {
            let start = random(shape)?;
            let mine = Var::from_tensor(&start.to_device(&device)?)?;
            let theirs = Var::from_tensor(&start.copy()?)?;
            let moments = |device: &Device| {
                let zeros = start.zeros_like()?.to_device(device)?;
                Var::from_tensor(&Tensor::stack(&[&zeros, &zeros], 0)?)
            };
            let (my_moments, their_moments) = (moments(&device)?, moments(&Device::Cpu)?);
            for step in 1..4 {
                let gradient = random(shape)?;
                let settings = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step };
                adamw(&mine, &gradient.to_device(&device)?, &my_moments, &settings)?;
                adamw_composed(&theirs, &gradient, &their_moments, &settings)?;
            }
            let change = (mine.as_tensor().to_device(&Device::Cpu)? - &start)?;
            assert!(change.abs()?.max_all()?.to_scalar::<f32>()? > 0.05);
            close("adamw", &mine, &theirs, 1e-5)?;
            close("adamw's moments", &my_moments, &their_moments, 1e-5)?;
            for _ in 0..3 {
                let gradient = random(shape)?;
                let found = momentum(&gradient.to_device(&device)?, &my_moments, 0.9)?;
                close("momentum", &found, &momentum_composed(&gradient, &their_moments, 0.9)?, 1e-5)?;
                close("momentum's moments", &my_moments, &their_moments, 1e-5)?;
            }
            let (to, before) = (random(shape)?, mine.as_tensor().copy()?.to_device(&Device::Cpu)?);
            follow(&mine, &to.to_device(&device)?, 0.9, -0.2)?;
            close("follow", &mine, &((&before * 0.9)? - (&to * 0.2)?)?, 1e-5)?;
            let mut average = start.copy()?.to_device(&device)?;
            approach(&mut average, &to.to_device(&device)?, 0.25)?;
            close("approach", &average, &((&start * 0.75)? + (&to * 0.25)?)?, 1e-5)?;
            let found = squares(&[average.clone(), mine.as_tensor().clone()])?;
            for (found, xs) in found.iter().zip([&average, mine.as_tensor()]) {
                let expected: f32 = xs.flatten_all()?.to_vec1::<f32>()?.iter().map(|x| x * x).sum();
                assert!((found - expected).abs() <= 1e-5 * expected, "{found}, {expected}");
            }
        }
    }
    Ok(())
}

/// Tall matrices, whose gradients a GPU sums up in parts.
#[cfg(feature = "cuda")]
#[test]
fn linear_of_many_rows_is_its_composition() -> Result<()> {
    hold(
        "linear of many rows",
        &[&[32, 512, 24], &[40, 24], &[40]],
        |xs| linear(&xs[0], &xs[1], Some(&xs[2])),
        |xs| linear_composed(&xs[0], &xs[1], Some(&xs[2])),
    )
}
