use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};
use pixart_kernels::{Arithmetic, Heads, Matrix, ScoreBias, attention_backward};

use super::cpu::{self, CpuElement, SCRATCH, View, for_dtype};
use super::{product_dtype, return_on_cuda};

/// The most scores that stand in memory at once, in elements (64 MiB of f32). Queries are taken in chunks to keep to
/// it: at 1024 pixels the whole 16 × 4096 × 4096 matrix of a layer would be a gigabyte.
const SCORES: usize = 1 << 24;

/// How the scores of attention are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Heads, which share the width of queries and keys.
    pub heads: usize,
    /// What products of queries and keys are multiplied with.
    pub scale: f64,
    /// Whether queries and keys are rounded to 8 bits first, where there is a kernel that gains by it: on a CPU.
    pub rounded: bool,
}

impl Scores {
    /// Scores in the precision of queries and keys.
    pub fn new(heads: usize, scale: f64) -> Self {
        Self { heads, scale, rounded: false }
    }
}

/// Scaled dot-product attention (Vaswani et al. 2017, equation 1).
///
/// `q` is `[batch, n, heads · d]`, `k` and `v` are `[batch, m, heads · d]`; the result is like `q`. `bias` is added to
/// the scores before the softmax: it broadcasts to `[batch, heads, n, m]`, in f32. Softmax is taken in f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores, bias: Option<&Tensor>) -> Result<Tensor> {
    return_on_cuda!(
        is_fast_on_cuda(&[q, k, v], scores.heads * q.dim(1)? * k.dim(1)?, bias),
        cuda::attention(q, k, v, scores, bias)
    );
    if !is_fast(&[q, k, v], bias) {
        return attention_composed(q, k, v, scores, bias);
    }
    let op = Attention::new(scores, bias, k.dim(1)?)?;
    cpu::with_rows(q)?.apply_op3(&cpu::with_rows(k)?, &cpu::with_rows(v)?, op)
}

/// [`attention`] of a sequence to itself: `qkv` `[batch, n, 3 · heads · d]` has queries, keys and values side by side.
pub fn self_attention(qkv: &Tensor, scores: Scores, bias: Option<&Tensor>) -> Result<Tensor> {
    return_on_cuda!(
        is_fast_on_cuda(&[qkv], scores.heads * qkv.dim(1)? * qkv.dim(1)?, bias),
        cuda::self_attention(qkv, scores, bias)
    );
    let width = qkv.dim(2)? / 3;
    if !is_fast(&[qkv], bias) {
        let part = |i: usize| qkv.narrow(2, i * width, width);
        return attention(&part(0)?, &part(1)?, &part(2)?, scores, bias);
    }
    cpu::with_rows(qkv)?.apply_op1(Attention::new(scores, bias, qkv.dim(1)?)?)
}

/// [`attention`] of `q` `[batch, n, heads · d]` to another sequence, whose keys and values stand side by side in `kv`
/// `[batch, m, 2 · heads · d]`.
pub fn cross_attention(q: &Tensor, kv: &Tensor, scores: Scores, bias: Option<&Tensor>) -> Result<Tensor> {
    return_on_cuda!(
        is_fast_on_cuda(&[q, kv], scores.heads * q.dim(1)? * kv.dim(1)?, bias),
        cuda::cross_attention(q, kv, scores, bias)
    );
    if !is_fast(&[q, kv], bias) {
        let part = |i: usize| kv.narrow(2, i * q.dim(2)?, q.dim(2)?);
        return attention(q, &part(0)?, &part(1)?, scores, bias);
    }
    let op = Attention::new(scores, bias, kv.dim(1)?)?;
    cpu::with_rows(q)?.apply_op2(&cpu::with_rows(kv)?, op)
}

/// As [`is_fast`], on NVIDIA GPUs. All scores stand in memory there, `scores` of an image: where no gradient needs them, the composition
/// with its chunks takes care that they are not too many.
#[cfg(feature = "cuda")]
fn is_fast_on_cuda(tensors: &[&Tensor], scores: usize, bias: Option<&Tensor>) -> bool {
    let tracked = tensors.iter().any(|xs| xs.track_op());
    let scores = tensors[0].dims()[0] * scores;
    super::cuda::is_fast(tensors)
        && !bias.is_some_and(Tensor::track_op)
        && (tracked || scores <= SCORES)
        && super::cuda::fits(scores)
}

/// The kernels have no gradient of the bias, which is learned in T5 alone.
fn is_fast(tensors: &[&Tensor], bias: Option<&Tensor>) -> bool {
    cpu::is_fast(tensors) && !bias.is_some_and(Tensor::track_op)
}

/// What [`attention`] means, without any rounding.
pub(super) fn attention_composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scores: Scores,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let chunk = (SCORES / (q.dim(0)? * scores.heads * k.dim(1)?).max(1)).max(1);
    attention_in_chunks(q, k, v, scores, bias, chunk)
}

fn attention_in_chunks(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scores: Scores,
    bias: Option<&Tensor>,
    chunk: usize,
) -> Result<Tensor> {
    let Scores { heads, scale, .. } = scores;
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
    scores: Scores,
    bias: Option<Bias>,
}

/// Queries, keys and values as they stand in one, two or three tensors, whose rows are tokens.
struct Parts<'a, T> {
    batch: usize,
    q: Matrix<'a, T>,
    k: Matrix<'a, T>,
    v: Matrix<'a, T>,
}

impl<'a, T: CpuElement> Parts<'a, T> {
    /// One tensor holds `qkv`, two hold `q` and `kv`, three one each.
    fn new(tensors: &[View<'a>]) -> Result<Self> {
        let batch = tensors[0].layout.shape().dims3()?.0;
        let rows = tensors.iter().map(|view| view.rows::<T>()).collect::<Result<Vec<_>>>()?;
        let width = rows[0].columns() / if rows.len() == 1 { 3 } else { 1 };
        let wanted: &[usize] = match rows.len() {
            1 => &[3],
            2 => &[1, 2],
            _ => &[1, 1, 1],
        };
        if rows.iter().zip(wanted).any(|(rows, parts)| rows.columns() != parts * width) {
            candle_core::bail!("attention: widths {:?}", rows.iter().map(Matrix::columns).collect::<Vec<_>>());
        }
        let [q, k, v] = match rows[..] {
            [qkv] => [0, 1, 2].map(|i| qkv.part(i * width, width)),
            [q, kv] => [q, kv.part(0, width), kv.part(width, width)],
            _ => [rows[0], rows[1], rows[2]],
        };
        if k.rows() != v.rows() || tensors.iter().any(|view| view.layout.dims()[0] != batch) {
            candle_core::bail!("attention: {} keys for {} values", k.rows(), v.rows());
        }
        Ok(Self { batch, q, k, v })
    }
}

impl Attention {
    fn new(scores: Scores, bias: Option<&Tensor>, keys: usize) -> Result<Self> {
        let bias = bias.map(|bias| Bias::new(bias, keys)).transpose()?;
        Ok(Self { scores, bias })
    }

    fn heads<'a, T: CpuElement>(&'a self, parts: &Parts<'a, T>) -> Result<Heads<'a, T>> {
        let Parts { batch, q, k, v } = *parts;
        let Scores { heads, scale, .. } = self.scores;
        let (n, m) = (q.rows() / batch.max(1), k.rows() / batch.max(1));
        if batch == 0 || !q.columns().is_multiple_of(heads) {
            candle_core::bail!("attention: a width of {} for {heads} heads", q.columns());
        }
        let bias = self.bias.as_ref().map(|bias| ScoreBias {
            values: &bias.values,
            batch_stride: bias.batch_stride,
            head_stride: bias.head_stride,
            query_stride: bias.query_stride,
        });
        let fits = |bias: &ScoreBias| {
            let last = (batch - 1) * bias.batch_stride + (heads - 1) * bias.head_stride;
            last + n.saturating_sub(1) * bias.query_stride + m <= bias.values.len()
        };
        if bias.as_ref().is_some_and(|bias| !fits(bias)) {
            candle_core::bail!("attention: the bias does not broadcast to [{batch}, {heads}, {n}, {m}]");
        }
        Ok(Heads { q, k, v, batch, heads, scale: scale as f32, bias })
    }

    fn forward(&self, tensors: &[View]) -> Result<(CpuStorage, Shape)> {
        let isa = cpu::isa()?;
        for_dtype!(tensors[0].dtype(), T => {
            let parts = Parts::<T>::new(tensors)?;
            let shape = (parts.batch, parts.q.rows() / parts.batch.max(1), parts.q.columns());
            cpu::filled_storage::<T>(shape, |out| {
                let arithmetic = match self.scores.rounded {
                    true => Arithmetic::Int8,
                    false => T::ARITHMETIC,
                };
                pixart_kernels::attention(isa, &SCRATCH, arithmetic, &self.heads(&parts)?, out);
                Ok(())
            })
        })
    }

    /// The gradients of the tensors, in which queries, keys and values stand side by side as in them.
    fn backward<const N: usize>(&self, tensors: [&Tensor; N], d_out: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let isa = cpu::isa()?;
        let d_out = d_out.contiguous()?;
        for_dtype!(d_out.dtype(), T => {
            let [d_q, d_k, d_v] = cpu::with_views(tensors, |tensors| {
                let parts = Parts::<T>::new(&tensors)?;
                let heads = self.heads(&parts)?;
                let zeros = |part: &Matrix<T>| vec![T::default(); part.rows() * part.columns()];
                let (mut d_q, mut d_k, mut d_v) = (zeros(&parts.q), zeros(&parts.k), zeros(&parts.v));
                cpu::with_views([&d_out], |[d_out]| {
                    let d_out = d_out.slice()?;
                    attention_backward(isa, &SCRATCH, T::ARITHMETIC, &heads, d_out, &mut d_q, &mut d_k, &mut d_v);
                    Ok(())
                })?;
                Ok([d_q, d_k, d_v])
            })?;
            let width = d_out.dim(2)?;
            let gradients = match N {
                1 => vec![side_by_side(&[d_q, d_k, d_v], width)],
                2 => vec![d_q, side_by_side(&[d_k, d_v], width)],
                _ => vec![d_q, d_k, d_v],
            };
            let like = |(values, xs): (Vec<T>, &Tensor)| Tensor::from_vec(values, xs.shape(), xs.device()).map(Some);
            gradients.into_iter().zip(tensors).map(like).collect()
        })
    }
}

/// The rows of matrices of `width` columns, side by side.
fn side_by_side<T: Copy>(parts: &[Vec<T>], width: usize) -> Vec<T> {
    let mut rows = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for start in (0..parts[0].len()).step_by(width.max(1)) {
        parts.iter().for_each(|part| rows.extend_from_slice(&part[start..start + width]));
    }
    rows
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[View::new(qkv, layout)])
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward([qkv], d_out)?.remove(0))
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "cross-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        kv: &CpuStorage,
        kv_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[View::new(q, q_layout), View::new(kv, kv_layout)])
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, _: &Tensor, d_out: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.backward([q, kv], d_out)?;
        Ok((gradients.remove(0), gradients.remove(0)))
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
        self.forward(&[View::new(q, q_layout), View::new(k, k_layout), View::new(v, v_layout)])
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.backward([q, k, v], d_out)?;
        Ok((gradients.remove(0), gradients.remove(0), gradients.remove(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// Chunking the queries changes nothing, with a bias per query, a bias per key, and none.
    #[test]
    fn chunks_do_not_change_the_result() -> Result<()> {
        let (batch, n, m, heads) = (2, 7, 5, 3);
        let tokens = |n: usize| random((batch, n, heads * 4));
        let (q, k, v) = (tokens(n)?, tokens(m)?, tokens(m)?);
        let per_query = random((1, heads, n, m))?;
        let per_key = random((batch, 1, 1, m))?;
        for bias in [None, Some(&per_query), Some(&per_key)] {
            let whole = attention_in_chunks(&q, &k, &v, Scores::new(heads, 0.5), bias, n)?;
            for chunk in [1, 2, 3, 6] {
                let parts = attention_in_chunks(&q, &k, &v, Scores::new(heads, 0.5), bias, chunk)?;
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
        let (q, k, v) = (random((1, n, d))?, random((1, m, d))?, random((1, m, d))?);
        let ys = attention_composed(&q, &k, &v, Scores::new(1, 0.3), None)?.squeeze(0)?.to_vec2::<f32>()?;
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
