use super::*;
use crate::gemm::tests::numbers;
use crate::{Arithmetic, Epilogue, Isa, Residual, Scratch};

/// A convolution written out in f64.
fn definition(
    images: &Images<f32>,
    weight: &[f32],
    (channels_out, kernel): (usize, usize),
    geometry: &Geometry,
) -> Vec<f64> {
    let Images { data, batch, height, width, channels } = *images;
    let mut out = Vec::new();
    for image in 0..batch {
        for y in 0..geometry.height {
            for x in 0..geometry.width {
                for o in 0..channels_out {
                    let mut sum = 0f64;
                    for (ky, kx) in (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)) {
                        let row = (y * geometry.stride + ky).wrapping_sub(geometry.padding);
                        let column = (x * geometry.stride + kx).wrapping_sub(geometry.padding);
                        if row < height && column < width {
                            for c in 0..channels {
                                sum += data[((image * height + row) * width + column) * channels + c] as f64
                                    * weight[((o * channels + c) * kernel + ky) * kernel + kx] as f64;
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    found.iter().zip(expected).fold(0f64, |worst, (x, y)| worst.max((*x as f64 - y).abs()))
}

#[test]
fn convolution_is_the_definition() {
    let scratch = Scratch::new();
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
            for (arithmetic, tolerance) in [(Arithmetic::F32, 3e-5), (Arithmetic::Bf16, 6e-2)] {
                let weights = ConvWeights::new(isa, arithmetic, &weight, (channels_out, channels, kernel));
                let mut out = vec![f32::NAN; expected.len()];
                conv2d(isa, &scratch, &images, None, &weights, &geometry, &Epilogue::default(), &mut out);
                let worst = worst(&out, &expected);
                assert!(worst < tolerance, "{isa:?} {arithmetic:?} {height}×{width} {kernel}/{stride}: {worst:e}");
            }
        }
    }
}

/// Weights that double give what a doubled image gives.
#[test]
fn doubling_is_a_convolution_of_repeated_pixels() {
    let scratch = Scratch::new();
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
        for (arithmetic, tolerance) in [(Arithmetic::F32, 2e-5), (Arithmetic::Bf16, 4e-2)] {
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
    let scratch = Scratch::new();
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
        };
        let normalise = Normalise { coefficients: &coefficients, activation: Activation::Silu };
        let mut out = vec![f32::NAN; expected.len()];
        let images = Images { data: &data, ..images };
        conv2d(isa, &scratch, &images, Some(&normalise), &weights, &geometry, &epilogue, &mut out);
        assert!(worst(&out, &expected) < 2e-5, "{isa:?}: {:e}", worst(&out, &expected));
    }
}
