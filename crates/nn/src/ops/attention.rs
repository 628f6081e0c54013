use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::product_dtype;

/// The most scores that stand in memory at once, in elements (64 MiB of f32). Queries are taken in chunks to keep to
/// it: at 1024 pixels the whole 16 × 4096 × 4096 matrix of a layer would be a gigabyte.
const SCORES: usize = 1 << 24;

/// Scaled dot-product attention (Vaswani et al. 2017, equation 1) over `heads` heads.
///
/// `q` is `[batch, n, heads · d]`, `k` and `v` are `[batch, m, heads · d]`; the result is like `q`. `bias` is added to
/// the scores before the softmax: it broadcasts to `[batch, heads, n, m]`, in f32. Softmax is taken in f32.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let chunk = (SCORES / (q.dim(0)? * heads * k.dim(1)?).max(1)).max(1);
    attention_in_chunks(q, k, v, heads, scale, bias, chunk)
}

fn attention_in_chunks(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
    chunk: usize,
) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let dtype = product_dtype(q.device(), q.dtype());
    let split = |xs: &Tensor| -> Result<Tensor> {
        let (batch, n, width) = xs.dims3()?;
        xs.to_dtype(dtype)?.reshape((batch, n, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let (q_heads, k_heads, v_heads) = ((split(q)? * scale)?, split(k)?.transpose(2, 3)?, split(v)?);
    let rows = |start: usize, len: usize| -> Result<Tensor> {
        let scores = q_heads.narrow(2, start, len)?.matmul(&k_heads)?.to_dtype(DType::F32)?;
        let scores = match bias {
            Some(bias) if bias.dim(2)? == n && n > 1 => scores.broadcast_add(&bias.narrow(2, start, len)?)?,
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        softmax_last_dim(&scores)?.to_dtype(dtype)?.matmul(&v_heads)
    };
    let ys = if chunk >= n {
        rows(0, n)?
    } else {
        let parts = (0..n).step_by(chunk).map(|start| rows(start, chunk.min(n - start))).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 2)?
    };
    ys.transpose(1, 2)?.reshape((batch, n, width))?.to_dtype(q.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Chunking the queries changes nothing, with a bias per query, a bias per key, and none.
    #[test]
    fn chunks_do_not_change_the_result() -> Result<()> {
        let device = Device::Cpu;
        let (batch, n, m, heads) = (2, 7, 5, 3);
        let random = |n: usize| Tensor::randn(0f32, 1.0, (batch, n, heads * 4), &device);
        let (q, k, v) = (random(n)?, random(m)?, random(m)?);
        let per_query = Tensor::randn(0f32, 1.0, (1, heads, n, m), &device)?;
        let per_key = Tensor::randn(0f32, 1.0, (batch, 1, 1, m), &device)?;
        for bias in [None, Some(&per_query), Some(&per_key)] {
            let whole = attention_in_chunks(&q, &k, &v, heads, 0.5, bias, n)?;
            for chunk in [1, 2, 3, 6] {
                let parts = attention_in_chunks(&q, &k, &v, heads, 0.5, bias, chunk)?;
                let difference = (&whole - &parts)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                assert!(difference < 1e-6, "chunk {chunk}: {difference}");
            }
        }
        Ok(())
    }

    /// Against the definition, written out for one head with loops.
    #[test]
    fn agrees_with_the_definition() -> Result<()> {
        let (n, m, d) = (3, 4, 2);
        let device = Device::Cpu;
        let random = |n: usize| Tensor::randn(0f32, 1.0, (1, n, d), &device);
        let (q, k, v) = (random(n)?, random(m)?, random(m)?);
        let ys = attention(&q, &k, &v, 1, 0.3, None)?.squeeze(0)?.to_vec2::<f32>()?;
        let (q, k, v) =
            (q.squeeze(0)?.to_vec2::<f32>()?, k.squeeze(0)?.to_vec2::<f32>()?, v.squeeze(0)?.to_vec2::<f32>()?);
        for i in 0..n {
            let dot = |j: usize| (0..d).map(|c| q[i][c] * k[j][c]).sum::<f32>() * 0.3;
            let weights: Vec<f32> = (0..m).map(|j| dot(j).exp()).collect();
            let total: f32 = weights.iter().sum();
            for c in 0..d {
                let expected = (0..m).map(|j| weights[j] / total * v[j][c]).sum::<f32>();
                assert!((ys[i][c] - expected).abs() < 1e-5);
            }
        }
        Ok(())
    }
}
