//! Muon's update of a matrix (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks").

use candle_core::{D, Result, Tensor};
use pixart_nn::ops::{rounded_gram, rounded_product};

/// Of the polynomial whose repetition brings singular values near to 1, and how often it is repeated.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const REPETITIONS: usize = 5;

/// The root mean square that AdamW's updates have about, so that both get along with one learning rate (Liu et al. 2025,
/// "Muon is Scalable for LLM Training").
const RMS_OF_ADAMW: f64 = 0.2;

/// Whether the parameter `name` is a matrix, or the kernels of a convolution, that maps one stream to another inside of a block: of such
/// the length of an update says little, and Muon takes its directions alone. Embeddings, tables, norms, first and last layers are AdamW's.
pub(crate) fn applies(name: &str, shape: &[usize]) -> bool {
    let in_block = ["blocks.", "_block.", ".block."].iter().any(|part| name.contains(part));
    matches!(shape.len(), 2 | 4) && in_block && name.ends_with(".weight") && !name.contains("relative_attention_bias")
}

/// What is taken from each of several matrices `[m, n]` of one shape for a learning rate of 1, given their momenta. Kernels
/// `[m, channels, height, width]` are a matrix of all that a result of theirs sees.
pub(crate) fn updates(momenta: &[Tensor]) -> Result<Vec<Tensor>> {
    let Some(first) = momenta.first() else { return Ok(vec![]) };
    // One alone stays a matrix, for which there are faster products.
    let matrices =
        if momenta.len() == 1 { first.flatten_from(1)? } else { Tensor::stack(momenta, 0)?.flatten_from(2)? };
    let (rows, columns) = (matrices.dim(D::Minus2)?, matrices.dim(D::Minus1)?);
    let directions = match rows < columns {
        true => {
            orthogonalised(&matrices.transpose(D::Minus2, D::Minus1)?.contiguous()?)?.transpose(D::Minus2, D::Minus1)?
        }
        false => orthogonalised(&matrices)?,
    };
    let updates = (directions * (RMS_OF_ADAMW * (rows.max(columns) as f64).sqrt()))?.contiguous()?;
    match momenta.len() {
        1 => Ok(vec![updates.reshape(first.shape())?]),
        count => (0..count).map(|i| updates.get(i)?.reshape(first.shape())).collect(),
    }
}

/// Matrices `[n, m]` or `[count, n, m]`, n ≥ m, with all their singular values brought to between about 0.7 and 1.2 (Newton–Schulz).
fn orthogonalised(matrices: &Tensor) -> Result<Tensor> {
    let norms = matrices.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()?;
    let mut xs = matrices.broadcast_div(&(norms + 1e-7)?)?;
    let [a, b, c] = COEFFICIENTS;
    let identity = (Tensor::eye(xs.dim(D::Minus1)?, xs.dtype(), xs.device())? * a)?;
    for _ in 0..REPETITIONS {
        // Products of columns with columns: symmetric, and of the smaller size, so that sums of them cost next to nothing.
        let products = gram(&xs)?;
        let polynomial = ((&products * b)?.broadcast_add(&identity)? + (product(&products, &products)? * c)?)?;
        xs = product(&xs, &polynomial)?;
    }
    Ok(xs)
}

fn gram(xs: &Tensor) -> Result<Tensor> {
    if xs.rank() == 2 { rounded_gram(xs) } else { xs.transpose(1, 2)?.matmul(xs) }
}

/// `xs · symmetric`.
fn product(xs: &Tensor, symmetric: &Tensor) -> Result<Tensor> {
    if xs.rank() == 2 { rounded_product(xs, symmetric) } else { xs.matmul(symmetric) }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use pixart_nn::ops::fastest_cpu_dtype;

    use super::*;

    /// The polynomial acts on singular values alone, so that on a matrix that has them on its diagonal it can be followed.
    #[test]
    fn singular_values_come_near_to_one() -> Result<()> {
        let values = [3.0f32, -2.0, 0.5, 0.04];
        let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for (rows, columns) in [(4, 6), (6, 4)] {
            let at = |i: usize| if i / columns == i % columns && i % columns < 4 { values[i % columns] } else { 0.0 };
            let matrix = Tensor::from_vec((0..24).map(at).collect::<Vec<_>>(), (rows, columns), &Device::Cpu)?;
            let found = updates(std::slice::from_ref(&matrix))?.remove(0).to_vec2::<f32>()?;
            let scale = 0.2 * 6f64.sqrt();
            for (i, row) in found.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let mut expected = if i == j && i < 4 { f64::from(values[i]) / norm } else { 0.0 };
                    for _ in 0..REPETITIONS {
                        let [a, b, c] = COEFFICIENTS;
                        expected = a * expected + b * expected.powi(3) + c * expected.powi(5);
                    }
                    // Where bf16 is fast, each product is rounded to its three digits.
                    let tolerance = match fastest_cpu_dtype() {
                        DType::BF16 if expected != 0.0 => 0.05,
                        _ => 1e-5,
                    };
                    assert!((f64::from(*value) / scale - expected).abs() < tolerance, "{i}, {j}: {value}");
                    assert!(i != j || i >= 4 || (0.6..1.3).contains(&expected.abs()), "{expected}");
                }
            }
            // Kernels are the matrix of all that their results see.
            let kernels = matrix.reshape((rows, columns / 2, 1, 2))?;
            assert_eq!(updates(&[kernels])?.remove(0).flatten_from(1)?.to_vec2::<f32>()?, found);
            // Several together, whose lengths do not count.
            for together in updates(&[matrix.clone(), (&matrix * 3.0)?])? {
                let largest = (together - Tensor::new(found.clone(), &Device::Cpu)?)?.abs()?.max_all()?;
                let tolerance = if fastest_cpu_dtype() == DType::BF16 { 0.1 } else { 1e-4 };
                assert!(largest.to_scalar::<f32>()? < tolerance, "{largest}");
            }
        }
        Ok(())
    }

    #[test]
    fn it_is_for_matrices_in_blocks() {
        for (name, shape, expected) in [
            ("transformer.transformer_blocks.0.attn1.to_q.weight", &[8, 8][..], true),
            ("text_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight", &[8, 16], true),
            ("controlnet_blocks.0.transformer_block.ff.net.2.weight", &[8, 32], true),
            ("transformer.transformer_blocks.0.attn1.to_q.bias", &[8], false),
            ("transformer.transformer_blocks.0.scale_shift_table", &[6, 8], false),
            ("text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 4], false),
            ("text_encoder.shared.weight", &[160, 8], false),
            ("transformer.proj_out.weight", &[32, 8], false),
            ("decoder.mid_block.resnets.0.conv1.weight", &[8, 8, 3, 3], true),
            ("decoder.conv_in.weight", &[8, 4, 3, 3], false),
        ] {
            assert_eq!(applies(name, shape), expected, "{name}");
        }
    }
}
