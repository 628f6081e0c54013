use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};
use pixart_kernels::{Heads, ScoreBias, attention_backward};

use super::cpu::{self, CpuElement, SCRATCH, View, for_dtype};
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
    if !cpu::is_fast(&[q, k, v]) {
        return attention_composed(q, k, v, heads, scale, bias);
    }
    let bias = bias.map(|bias| Bias::new(bias, k.dim(1)?)).transpose()?;
    let op = Attention { heads, scale: scale as f32, bias };
    cpu::with_rows(q)?.apply_op3(&cpu::with_rows(k)?, &cpu::with_rows(v)?, op)
}

/// What [`attention`] means.
pub(super) fn attention_composed(
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
        // The fused softmax has no gradient.
        let weights = if scores.track_op() { softmax(&scores, D::Minus1)? } else { softmax_last_dim(&scores)? };
        weights.to_dtype(dtype)?.matmul(&v_heads)
    };
    let ys = if chunk >= n {
        rows(0, n)?
    } else {
        let parts = (0..n).step_by(chunk).map(|start| rows(start, chunk.min(n - start))).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 2)?
    };
    ys.transpose(1, 2)?.reshape((batch, n, width))?.to_dtype(q.dtype())
}

/// A bias of the scores, as the kernel takes it.
struct Bias {
    values: Vec<f32>,
    batch_stride: usize,
    head_stride: usize,
    query_stride: usize,
}

impl Bias {
    /// `[batch or 1, heads or 1, n or 1, m or 1]`.
    fn new(bias: &Tensor, keys: usize) -> Result<Self> {
        let (batch, heads, queries, _) = bias.dims4()?;
        let bias = bias.broadcast_as((batch, heads, queries, keys))?;
        let stride = |dim: usize, stride: usize| if dim == 1 { 0 } else { stride };
        Ok(Self {
            values: cpu::f32_values(&bias.to_dtype(DType::F32)?)?,
            batch_stride: stride(batch, heads * queries * keys),
            head_stride: stride(heads, queries * keys),
            query_stride: stride(queries, keys),
        })
    }
}

struct Attention {
    heads: usize,
    scale: f32,
    bias: Option<Bias>,
}

impl Attention {
    fn heads<'a, T: CpuElement>(&'a self, q: View<'a>, k: View<'a>, v: View<'a>) -> Result<Heads<'a, T>> {
        let ((batch, n, width), (_, m, _)) = (q.layout.shape().dims3()?, k.layout.shape().dims3()?);
        let (k_shape, v_shape) = (k.layout.shape(), v.layout.shape());
        if !width.is_multiple_of(self.heads) || k_shape.dims() != [batch, m, width] || v_shape != k_shape {
            candle_core::bail!(
                "attention of {} heads: q is {:?}, k {k_shape:?}, v {v_shape:?}",
                self.heads,
                q.layout.shape()
            );
        }
        let bias = self.bias.as_ref().map(|bias| ScoreBias {
            values: &bias.values,
            batch_stride: bias.batch_stride,
            head_stride: bias.head_stride,
            query_stride: bias.query_stride,
        });
        let fits = |bias: &ScoreBias| {
            let last = (batch - 1) * bias.batch_stride + (self.heads - 1) * bias.head_stride;
            last + n.saturating_sub(1) * bias.query_stride + m <= bias.values.len()
        };
        if bias.as_ref().is_some_and(|bias| !fits(bias)) {
            candle_core::bail!("attention: the bias does not broadcast to [{batch}, {}, {n}, {m}]", self.heads);
        }
        Ok(Heads { q: q.rows()?, k: k.rows()?, v: v.rows()?, batch, heads: self.heads, scale: self.scale, bias })
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let isa = cpu::isa()?;
        let (q, k, v) = (View::new(q, q_layout), View::new(k, k_layout), View::new(v, v_layout));
        for_dtype!(q.dtype(), T => cpu::filled_storage::<T>(q_layout.shape(), |out| {
            pixart_kernels::attention(isa, &SCRATCH, T::ARITHMETIC, &self.heads::<T>(q, k, v)?, out);
            Ok(())
        }))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let isa = cpu::isa()?;
        let d_out = d_out.contiguous()?;
        for_dtype!(q.dtype(), T => {
            let [mut d_q, mut d_k, mut d_v] = [q, k, v].map(|xs| vec![T::default(); xs.elem_count()]);
            cpu::with_views([q, k, v, &d_out], |[q, k, v, d_out]| {
                let (heads, d_out) = (self.heads::<T>(q, k, v)?, d_out.slice()?);
                attention_backward(isa, &SCRATCH, &heads, d_out, &mut d_q, &mut d_k, &mut d_v);
                Ok(())
            })?;
            let like = |values, xs: &Tensor| Tensor::from_vec(values, xs.shape(), xs.device()).map(Some);
            Ok((like(d_q, q)?, like(d_k, k)?, like(d_v, v)?))
        })
    }
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
        let ys = attention_composed(&q, &k, &v, 1, 0.3, None)?.squeeze(0)?.to_vec2::<f32>()?;
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
