use candle_core::{DType, Result, Tensor};

use super::super::Scores;
use super::kernel::{Argument, Buffer, cuda_device, launch, launch_elements, named, rows};
use super::with_gradient;

/// Queries, keys and values, or gradients of them, by heads: `[batch, heads, n, size]` each.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// Attention of tokens to others, see [`super::super::attention()`]. The bias has no gradient.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores, bias: Option<&Tensor>) -> Result<Tensor> {
    let split = |xs: &Tensor| split(&xs.detach().contiguous()?, 0, scores.heads, 1);
    let (out, backward) = attend(Heads { q: split(q)?, k: split(k)?, v: split(v)? }, scores, bias)?;
    with_gradient(&[q, k, v], out, q.shape(), move |d_out| {
        let Heads { q, k, v } = backward(d_out)?;
        Ok(vec![join(&[q])?, join(&[k])?, join(&[v])?])
    })
}

/// As [`attention`], of a sequence to itself: `qkv` has queries, keys and values side by side.
pub(crate) fn self_attention(qkv: &Tensor, scores: Scores, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, n, width) = qkv.dims3()?;
    let input = qkv.detach().contiguous()?;
    let part = |i: usize| split(&input, i, scores.heads, 3);
    let (out, backward) = attend(Heads { q: part(0)?, k: part(1)?, v: part(2)? }, scores, bias)?;
    with_gradient(&[qkv], out, (batch, n, width / 3), move |d_out| {
        let Heads { q, k, v } = backward(d_out)?;
        Ok(vec![join(&[q, k, v])?])
    })
}

/// As [`attention`], with keys and values side by side in `kv`.
pub(crate) fn cross_attention(q: &Tensor, kv: &Tensor, scores: Scores, bias: Option<&Tensor>) -> Result<Tensor> {
    let (queries, input) = (q.detach().contiguous()?, kv.detach().contiguous()?);
    let part = |i: usize| split(&input, i, scores.heads, 2);
    let (out, backward) =
        attend(Heads { q: split(&queries, 0, scores.heads, 1)?, k: part(0)?, v: part(1)? }, scores, bias)?;
    with_gradient(&[q, kv], out, q.shape(), move |d_out| {
        let Heads { q, k, v } = backward(d_out)?;
        Ok(vec![join(&[q])?, join(&[k, v])?])
    })
}

/// What all attend to together, as tokens, and what gives the gradients for that of it.
fn attend(
    heads: Heads,
    scores: Scores,
    bias: Option<&Tensor>,
) -> Result<(Buffer, impl Fn(&Tensor) -> Result<Heads> + Send + Sync + 'static)> {
    let scale = scores.scale as f32;
    let Heads { q, k, v } = heads;
    let weights = softmax(&q.matmul(&k.t()?)?, bias, scale)?;
    let out = join_to_buffer(&[weights.matmul(&v)?])?;
    let count = scores.heads;
    Ok((out, move |d_out: &Tensor| {
        let d_out = split(d_out, 0, count, 1)?;
        let d_weights = d_out.matmul(&v.t()?)?;
        let d_scores = softmax_backward(&weights, &d_weights, scale)?;
        Ok(Heads { q: d_scores.matmul(&k)?, k: d_scores.t()?.matmul(&q)?, v: weights.t()?.matmul(&d_out)? })
    }))
}

/// Of `softmax(scale · scores + bias)`: `scores` are `[batch, heads, n, m]`, `bias` broadcasts to them.
fn softmax(scores: &Tensor, bias: Option<&Tensor>, scale: f32) -> Result<Tensor> {
    let (batch, heads, n, m) = scores.dims4()?;
    let wide = |bias: &Tensor| -> Result<Tensor> {
        let (of_batch, of_heads, of_queries, _) = bias.dims4()?;
        bias.detach().to_dtype(DType::F32)?.broadcast_as((of_batch, of_heads, of_queries, m))?.contiguous()
    };
    let bias = bias.map(wide).transpose()?;
    let mut strides = [0; 3];
    if let Some(bias) = &bias {
        for (dim, size) in [batch, heads, n].into_iter().enumerate() {
            let own = bias.dim(dim)?;
            if own != 1 && own != size {
                candle_core::bail!("attention: a bias of {:?} for scores of {:?}", bias.shape(), scores.shape());
            }
            strides[dim] = if own == 1 { 0 } else { bias.stride()[dim] };
        }
    }
    let weights = Buffer::like(scores)?;
    let arguments = [
        Argument::of(scores)?,
        bias.as_ref().map_or(Ok(Argument::NONE), Argument::of)?,
        weights.argument()?,
        Argument::integer(batch * heads * n),
        Argument::integer(m),
        Argument::integer(heads),
        Argument::integer(n),
        Argument::integer(strides[0]),
        Argument::integer(strides[1]),
        Argument::integer(strides[2]),
        Argument::Float(scale),
    ];
    launch(cuda_device(scores)?, &named("softmax_forward", scores.dtype()), rows(batch * heads * n), &arguments)?;
    Ok(weights.into_tensor(scores.shape()))
}

/// The gradient of the scores, given the softmax and its gradient.
fn softmax_backward(weights: &Tensor, d_weights: &Tensor, scale: f32) -> Result<Tensor> {
    let m = weights.dim(3)?;
    let (count, d_scores) = (weights.elem_count() / m, Buffer::like(weights)?);
    let arguments = [
        Argument::of(weights)?,
        Argument::of(d_weights)?,
        d_scores.argument()?,
        Argument::integer(count),
        Argument::integer(m),
        Argument::Float(scale),
    ];
    launch(cuda_device(weights)?, &named("softmax_backward", weights.dtype()), rows(count), &arguments)?;
    Ok(d_scores.into_tensor(weights.shape()))
}

/// Part `part` of `parts` that stand side by side in tokens `[batch, n, parts · heads · size]`, by heads.
fn split(xs: &Tensor, part: usize, heads: usize, parts: usize) -> Result<Tensor> {
    let (batch, n, all) = xs.dims3()?;
    let width = all / parts;
    if heads == 0 || !all.is_multiple_of(parts * heads) {
        candle_core::bail!("attention: a width of {all} for {parts} parts of {heads} heads");
    }
    let split = Buffer::new(cuda_device(xs)?, xs.dtype(), batch * n * width)?;
    let split = split.into_tensor((batch, heads, n, width / heads));
    let tokens = Argument::of(xs)?.from(part * width, xs.dtype());
    move_heads(tokens, &split, all, false)?;
    Ok(split)
}

/// The way back from [`split`], of all parts.
fn join(parts: &[Tensor]) -> Result<Tensor> {
    let (batch, heads, n, size) = parts[0].dims4()?;
    // Keys may be more or fewer than queries; parts of one tensor are as many.
    Ok(join_to_buffer(parts)?.into_tensor((batch, n, parts.len() * heads * size)))
}

fn join_to_buffer(parts: &[Tensor]) -> Result<Buffer> {
    let first = &parts[0];
    let (_, heads, _, size) = first.dims4()?;
    let (width, all) = (heads * size, parts.len() * heads * size);
    let tokens = Buffer::new(cuda_device(first)?, first.dtype(), parts.len() * first.elem_count())?;
    for (i, part) in parts.iter().enumerate() {
        move_heads(tokens.argument()?.from(i * width, first.dtype()), part, all, true)?;
    }
    Ok(tokens)
}

/// Moves tokens, whose rows are `stride` elements, to their heads or back.
fn move_heads(tokens: Argument, split: &Tensor, stride: usize, back: bool) -> Result<()> {
    let (_, heads, n, size) = split.dims4()?;
    let sizes = [n, heads, size, stride, usize::from(back)].map(Argument::integer);
    launch_elements("move_heads", split, &[tokens, Argument::of(split)?], &sizes)
}
