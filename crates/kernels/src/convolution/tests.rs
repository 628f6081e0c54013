use half::bf16;

use super::*;
use crate::gemm::tests::numbers;
use crate::testing::{TestElement, assert_close, assert_same_in_any_threads, soiled_scratch, wide};
use crate::{Arithmetic, Epilogue, Isa, Residual, Scratch};

/// Calls `visit` for every product that a convolution adds up, with the places of the sum, the input and the weight.
fn for_each_product<T>(
    images: &Images<T>,
    (channels_out, kernel): (usize, usize),
    geometry: &Geometry,
    mut visit: impl FnMut(usize, usize, usize),
) {
    let Images { batch, height, width, channels, .. } = *images;
    for (image, y) in (0..batch * geometry.height).map(|row| (row / geometry.height, row % geometry.height)) {
        for (x, o) in (0..geometry.width * channels_out).map(|i| (i / channels_out, i % channels_out)) {
            let out = ((image * geometry.height + y) * geometry.width + x) * channels_out + o;
            for (ky, kx) in (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)) {
                let row = (y * geometry.stride + ky).wrapping_sub(geometry.padding);
                let column = (x * geometry.stride + kx).wrapping_sub(geometry.padding);
                if row < height && column < width {
                    for c in 0..channels {
                        let input = ((image * height + row) * width + column) * channels + c;
                        visit(out, input, ((o * channels + c) * kernel + ky) * kernel + kx);
                    }
                }
            }
        }
    }
}

/// A convolution written out in f64.
fn definition(
    images: &Images<f32>,
    weight: &[f32],
    (channels_out, kernel): (usize, usize),
    geometry: &Geometry,
) -> Vec<f64> {
    let mut out = vec![0f64; images.batch * geometry.height * geometry.width * channels_out];
    for_each_product(images, (channels_out, kernel), geometry, |o, i, w| {
        out[o] += f64::from(images.data[i]) * f64::from(weight[w]);
    });
    out
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    found.iter().zip(expected).fold(0f64, |worst, (x, y)| worst.max((*x as f64 - y).abs()))
}

#[test]
fn convolution_is_the_definition() {
    let scratch = soiled_scratch();
    for isa in Isa::available() {
        for (batch, height, width, channels, channels_out, kernel, stride, padding, size) in [
            (1, 1, 1, 1, 1, 3, 1, 1, (1, 1)),
            (2, 7, 15, 3, 5, 3, 1, 1, (7, 15)),
            (1, 9, 33, 17, 33, 3, 1, 1, (9, 33)),
            (1, 16, 31, 8, 40, 3, 2, 0, (8, 15)),
            (2, 8, 8, 4, 16, 3, 2, 1, (4, 4)),
            (1, 6, 130, 5, 7, 1, 1, 0, (6, 130)),
            (1, 8, 8, 4, 48, 2, 2, 0, (4, 4)),
            // The autoencoder's downsampling: zeros on the right and below only.
            (1, 10, 12, 7, 9, 3, 2, 0, (5, 6)),
        ] {
            let data = numbers(batch * height * width * channels, 1);
            let weight = numbers(channels_out * channels * kernel * kernel, 2);
            let images = Images { data: &data, batch, height, width, channels };
            let geometry = Geometry { stride, padding, height: size.0, width: size.1 };
            let expected = definition(&images, &weight, (channels_out, kernel), &geometry);
            for (arithmetic, tolerance) in [(Arithmetic::F32, 3e-5), (Arithmetic::Bf16, 6e-2), (Arithmetic::Int8, 0.15)]
            {
                let weights = ConvWeights::new(isa, arithmetic, &weight, (channels_out, channels, kernel));
                let mut out = vec![f32::NAN; expected.len()];
                conv2d(isa, &scratch, &images, None, &weights, &geometry, &Epilogue::default(), &mut out);
                let worst = worst(&out, &expected);
                assert!(worst < tolerance, "{isa:?} {arithmetic:?} {height}×{width} {kernel}/{stride}: {worst:e}");
            }
        }
    }
}

/// What 8 bits hold exactly is multiplied exactly: whole numbers, of which the largest are there in every block and kernel.
#[test]
fn whole_numbers_in_8_bits_lose_nothing() {
    let scratch = soiled_scratch();
    for isa in Isa::available() {
        for (height, width, channels, channels_out, kernel, stride, padding, size) in [
            (1, 1, 1, 1, 3, 1, 1, (1, 1)),
            (9, 33, 17, 33, 3, 1, 1, (9, 33)),
            (40, 130, 5, 7, 3, 1, 1, (40, 130)),
            (16, 31, 8, 40, 3, 2, 0, (8, 15)),
            (6, 30, 70, 3, 1, 1, 0, (6, 30)),
        ] {
            let whole = |len, seed| numbers(len, seed).into_iter().map(|x| (x * 127.0).round()).collect::<Vec<_>>();
            let (mut data, mut weight) =
                (whole(height * width * channels, 1), whole(channels_out * channels * kernel * kernel, 2));
            // Every pixel is in some block; each has both ends of the range.
            data.chunks_exact_mut(channels).enumerate().for_each(|(i, pixel)| {
                pixel[0] = if i % 2 == 0 { 127.0 } else { -127.0 };
            });
            weight.chunks_exact_mut(channels * kernel * kernel).for_each(|kernel| kernel[0] = -127.0);
            let images = Images { data: &data, batch: 1, height, width, channels };
            let geometry = Geometry { stride, padding, height: size.0, width: size.1 };
            let expected = definition(&images, &weight, (channels_out, kernel), &geometry);
            let weights = ConvWeights::new(isa, Arithmetic::Int8, &weight, (channels_out, channels, kernel));
            let mut out = vec![f32::NAN; expected.len()];
            conv2d(isa, &scratch, &images, None, &weights, &geometry, &Epilogue::default(), &mut out);
            let largest = expected.iter().fold(1f64, |largest, x| largest.max(x.abs()));
            // Sums are whole, and rounded to f32 at the end.
            let worst = worst(&out, &expected) / largest;
            assert!(height * width == 1 || worst < 1e-6, "{isa:?} {height}×{width} {kernel}/{stride}: {worst:e}");
        }
    }
}

/// Weights that double give what a doubled image gives.
#[test]
fn doubling_is_a_convolution_of_repeated_pixels() {
    let scratch = soiled_scratch();
    let (batch, height, width, channels, channels_out) = (2, 5, 19, 6, 35);
    let data = numbers(batch * height * width * channels, 1);
    let weight = numbers(channels_out * channels * 9, 2);
    let doubled: Vec<f32> = (0..batch * 2 * height * 2 * width)
        .flat_map(|pixel| {
            let (row, x) = (pixel / (2 * width), pixel % (2 * width));
            let (image, y) = (row / (2 * height), row % (2 * height));
            let from = ((image * height + y / 2) * width + x / 2) * channels;
            data[from..from + channels].to_vec()
        })
        .collect();
    let geometry = Geometry { stride: 1, padding: 1, height: 2 * height, width: 2 * width };
    let large = Images { data: &doubled, batch, height: 2 * height, width: 2 * width, channels };
    let expected = definition(&large, &weight, (channels_out, 3), &geometry);
    let images = Images { data: &data, batch, height, width, channels };
    for isa in Isa::available() {
        for (arithmetic, tolerance) in [(Arithmetic::F32, 2e-5), (Arithmetic::Bf16, 4e-2), (Arithmetic::Int8, 0.15)] {
            let weights = ConvWeights::doubling(isa, arithmetic, &weight, (channels_out, channels));
            let mut out = vec![f32::NAN; expected.len()];
            conv2d(isa, &scratch, &images, None, &weights, &geometry, &Epilogue::default(), &mut out);
            let worst = worst(&out, &expected);
            assert!(worst < tolerance, "{isa:?} {arithmetic:?}: {worst:e}");
        }
    }
}

/// A norm before and bias, activation and residual after, on more rows than one block has.
#[test]
fn norm_and_epilogue_are_applied() {
    let scratch = soiled_scratch();
    let (batch, height, width, channels, channels_out) = (2, 40, 20, 19, 17);
    let data = numbers(batch * height * width * channels, 1);
    let weight = numbers(channels_out * channels * 9, 2);
    let coefficients = numbers(batch * 2 * channels, 3);
    let (bias, residual) = (numbers(channels_out, 4), numbers(batch * height * width * channels_out, 5));
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let normed: Vec<f32> = (0..data.len())
        .map(|i| {
            let of_image = &coefficients[i / (height * width * channels) * 2 * channels..];
            let (a, b) = (of_image[i % channels] as f64, of_image[channels + i % channels] as f64);
            silu(data[i] as f64 * a + b) as f32
        })
        .collect();
    let geometry = Geometry { stride: 1, padding: 1, height, width };
    let images = Images { data: &normed, batch, height, width, channels };
    let expected: Vec<f64> = definition(&images, &weight, (channels_out, 3), &geometry)
        .into_iter()
        .enumerate()
        .map(|(i, x)| residual[i] as f64 + silu(x + bias[i % channels_out] as f64))
        .collect();
    for isa in Isa::available() {
        let weights = ConvWeights::new(isa, Arithmetic::F32, &weight, (channels_out, channels, 3));
        let epilogue = Epilogue {
            bias: Some(&bias),
            activation: Activation::Silu,
            residual: Some(Residual { xs: &residual[..], gate: None }),
            ..Epilogue::default()
        };
        let normalise = Normalise { coefficients: &coefficients, activation: Activation::Silu };
        let mut out = vec![f32::NAN; expected.len()];
        let images = Images { data: &data, ..images };
        conv2d(isa, &scratch, &images, Some(&normalise), &weights, &geometry, &epilogue, &mut out);
        assert!(worst(&out, &expected) < 2e-5, "{isa:?}: {:e}", worst(&out, &expected));
    }
}

/// Batch, height, width, channels, output channels, kernel, stride, padding, and the result's height and width.
type Shape = (usize, usize, usize, usize, usize, usize, usize, usize, (usize, usize));

const SHAPES: [Shape; 13] = [
    (1, 1, 1, 1, 1, 3, 1, 1, (1, 1)),
    (2, 7, 15, 3, 5, 3, 1, 1, (7, 15)),
    (1, 9, 33, 17, 33, 3, 1, 1, (9, 33)),
    (3, 5, 7, 31, 15, 3, 1, 0, (3, 5)),
    (1, 16, 31, 8, 40, 3, 2, 0, (8, 15)),
    (2, 8, 8, 4, 16, 3, 2, 1, (4, 4)),
    (2, 9, 7, 33, 17, 3, 2, 1, (5, 4)),
    (1, 6, 130, 5, 7, 1, 1, 0, (6, 130)),
    (1, 7, 5, 16, 3, 1, 2, 0, (4, 3)),
    (2, 8, 8, 4, 48, 2, 2, 0, (4, 4)),
    (1, 10, 12, 7, 9, 3, 2, 0, (5, 6)),
    // More pixels than a chunk has, of one image and of several.
    (1, 40, 37, 3, 5, 3, 1, 1, (40, 37)),
    (37, 7, 8, 3, 2, 3, 1, 1, (7, 8)),
];

#[test]
fn gradients_are_those_of_the_definition() {
    gradients_agree::<f32>();
    gradients_agree::<bf16>();
}

fn gradients_agree<T: TestElement>() {
    let scratch = soiled_scratch();
    let of = |len, seed| -> Vec<T> { numbers(len, seed).into_iter().map(T::from_f32).collect() };
    for (batch, height, width, channels, channels_out, kernel, stride, padding, size) in SHAPES {
        let geometry = Geometry { stride, padding, height: size.0, width: size.1 };
        let data = of(batch * height * width * channels, 1);
        let weight = numbers(channels_out * channels * kernel * kernel, 2);
        let d_out = of(batch * size.0 * size.1 * channels_out, 3);
        let images = Images { data: &data, batch, height, width, channels };
        let d_out = Images { data: &d_out, batch, height: size.0, width: size.1, channels: channels_out };
        let (xs, ws, ys) = (wide(&data), wide(&weight), wide(d_out.data));
        let (mut d_xs, mut d_ws) = (vec![0f64; xs.len()], vec![0f64; ws.len()]);
        for_each_product(&images, (channels_out, kernel), &geometry, |o, i, w| {
            d_xs[i] += ys[o] * ws[w];
            d_ws[w] += ys[o] * xs[i];
        });
        let of_channel = |channel: usize| ys.iter().skip(channel).step_by(channels_out);
        let d_bias: Vec<f64> = (0..channels_out).map(|channel| of_channel(channel).sum()).collect();
        for isa in Isa::available() {
            let what = format!("{isa:?} {batch}×{height}×{width} {channels}→{channels_out} {kernel}/{stride}");
            let mut found = vec![T::from_f32(f32::NAN); data.len()];
            let input = (height, width, channels);
            conv2d_backward_input(isa, &scratch, &d_out, &weight, &geometry, input, &mut found);
            assert_close(&found, &d_xs, 3e-6, &what);
            let (mut found, mut found_bias) = (vec![f32::NAN; weight.len()], vec![f32::NAN; channels_out]);
            let bias = Some(&mut found_bias[..]);
            conv2d_backward_weight(isa, &scratch, &images, &d_out, &geometry, &mut found, bias);
            assert_close(&found, &d_ws, 3e-6, &what);
            assert_close(&found_bias, &d_bias, 3e-6, &what);
        }
    }
}

#[test]
fn threads_do_not_change_gradients() {
    let (batch, height, width, channels, channels_out) = (5, 20, 19, 33, 17);
    let geometry = Geometry { stride: 1, padding: 1, height, width };
    let data = numbers(batch * height * width * channels, 1);
    let weight = numbers(channels_out * channels * 9, 2);
    let d_out = numbers(batch * height * width * channels_out, 3);
    let images = Images { data: &data, batch, height, width, channels };
    let d_out = Images { data: &d_out, batch, height, width, channels: channels_out };
    for isa in Isa::available() {
        let work = || {
            let [mut d_images, mut d_weight, mut d_bias] =
                [data.len(), weight.len(), channels_out].map(|len| vec![0f32; len]);
            let (scratch, input) = (Scratch::new(), (height, width, channels));
            conv2d_backward_input(isa, &scratch, &d_out, &weight, &geometry, input, &mut d_images);
            let bias = Some(&mut d_bias[..]);
            conv2d_backward_weight(isa, &scratch, &images, &d_out, &geometry, &mut d_weight, bias);
            [d_images, d_weight, d_bias]
        };
        assert_same_in_any_threads(work, "a convolution's gradients");
    }
}

/// Nothing in, nothing out: no image, and an image that no kernel fits into.
#[test]
fn gradients_of_nothing_are_zero() {
    let isa = Isa::Portable;
    let geometry = Geometry { stride: 1, padding: 0, height: 0, width: 0 };
    let data = numbers(2 * 2 * 3, 1);
    let weight = numbers(5 * 3 * 9, 2);
    for (batch, data) in [(0, &data[..0]), (1, &data[..])] {
        let images = Images { data, batch, height: 2, width: 2, channels: 3 };
        let d_out = Images { data: &[], batch, height: 0, width: 0, channels: 5 };
        let mut d_images = vec![f32::NAN; data.len()];
        conv2d_backward_input(isa, &Scratch::new(), &d_out, &weight, &geometry, (2, 2, 3), &mut d_images);
        let (mut d_weight, mut d_bias) = (vec![f32::NAN; weight.len()], [f32::NAN; 5]);
        let bias = Some(&mut d_bias[..]);
        conv2d_backward_weight(isa, &Scratch::new(), &images, &d_out, &geometry, &mut d_weight, bias);
        assert!([&d_images[..], &d_weight, &d_bias].concat().iter().all(|x| *x == 0.0));
    }
}

#[test]
fn upsampling_repeats_pixels_and_its_gradient_adds_them_up() {
    for (batch, height, width, channels) in [(1, 1, 1, 1), (2, 3, 5, 17), (1, 7, 2, 64)] {
        let data = numbers(batch * height * width * channels, 1);
        let images = Images { data: &data, batch, height, width, channels };
        let mut out = vec![f32::NAN; 4 * data.len()];
        upsample_nearest_2x(&images, &mut out);
        // Where each element of the result comes from.
        let source = |i: usize| {
            let (pixel, c) = (i / channels, i % channels);
            let (row, x) = (pixel / (2 * width), pixel % (2 * width));
            let (image, y) = (row / (2 * height), row % (2 * height));
            ((image * height + y / 2) * width + x / 2) * channels + c
        };
        assert!(out.iter().enumerate().all(|(i, x)| *x == data[source(i)]));
        let d_out = numbers(out.len(), 2);
        let mut expected = vec![0f64; data.len()];
        for (i, x) in d_out.iter().enumerate() {
            expected[source(i)] += f64::from(*x);
        }
        for isa in Isa::available() {
            let d_out = Images { data: &d_out, batch, height: 2 * height, width: 2 * width, channels };
            let mut found = vec![f32::NAN; data.len()];
            upsample_nearest_2x_backward(isa, &d_out, &mut found);
            assert_close(&found, &expected, 2e-7, &format!("{isa:?}"));
        }
    }
}
