use std::ops::Range;

use half::bf16;

use super::*;
use crate::gemm::tests::numbers;
use crate::testing::{TestElement, assert_close, assert_same_in_any_threads, slopes, soiled_scratch, wide};
use crate::{Arithmetic, Isa, Scratch};

/// Attention in f64.
#[derive(Clone)]
struct Definition {
    heads: usize,
    size: usize,
    queries: usize,
    keys: usize,
    scale: f64,
    /// q, k and v, without gaps.
    qkv: [Vec<f64>; 3],
    /// `[batch, heads, queries, keys]`.
    bias: Vec<f64>,
}

impl Definition {
    fn new<T: Element>(heads: &Heads<T>) -> Self {
        let (queries, keys) = (heads.queries(), heads.keys());
        let elements = |matrix: &Matrix<T>| -> Vec<f64> {
            let places = (0..matrix.rows).flat_map(|row| (0..matrix.columns).map(move |column| (row, column)));
            places.map(|(row, column)| matrix.at(row, column).to_f32().into()).collect()
        };
        let row = |i: usize| (i / queries / heads.heads, i / queries % heads.heads, i % queries);
        let bias = |i: usize| {
            let (image, head, query) = row(i);
            heads.bias.map_or(vec![0.0; keys], |bias| {
                bias.row(image, head, query, keys).iter().map(|x| f64::from(*x)).collect()
            })
        };
        Self {
            heads: heads.heads,
            size: heads.size(),
            queries,
            keys,
            scale: heads.scale.into(),
            qkv: [&heads.q, &heads.k, &heads.v].map(elements),
            bias: (0..heads.batch * heads.heads * queries).flat_map(bias).collect(),
        }
    }

    /// Calls `visit` for every image, head and query with the range of its elements in a result, with that of each key
    /// in `k` and `v`, and with its weights.
    fn for_each_query(&self, mut visit: impl FnMut(Range<usize>, &[Range<usize>], &[f64])) {
        let [q, k, _] = &self.qkv;
        let part =
            |row: usize, head: usize| (row * self.heads + head) * self.size..(row * self.heads + head + 1) * self.size;
        for (i, bias) in self.bias.chunks(self.keys).enumerate() {
            let (image, head, query) = (i / self.queries / self.heads, i / self.queries % self.heads, i % self.queries);
            let query = part(image * self.queries + query, head);
            let keys: Vec<_> = (0..self.keys).map(|key| part(image * self.keys + key, head)).collect();
            let score =
                |(key, bias): (&Range<usize>, &f64)| dot(&q[query.clone()], &k[key.clone()]) * self.scale + bias;
            let scores: Vec<f64> = keys.iter().zip(bias).map(score).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            visit(query, &keys, &weights.iter().map(|weight| weight / total).collect::<Vec<_>>());
        }
    }

    fn forward(&self) -> Vec<f64> {
        let mut out = vec![0f64; self.qkv[0].len()];
        self.for_each_query(|query, keys, weights| {
            for (key, weight) in keys.iter().zip(weights) {
                add(&mut out[query.clone()], *weight, &self.qkv[2][key.clone()]);
            }
        });
        out
    }

    /// The gradients of q, k and v.
    fn backward(&self, d_out: &[f64]) -> [Vec<f64>; 3] {
        let [q, k, v] = &self.qkv;
        let [mut d_q, mut d_k, mut d_v] = [q, k, v].map(|xs| vec![0f64; xs.len()]);
        self.for_each_query(|query, keys, weights| {
            let (q, d_out) = (&q[query.clone()], &d_out[query.clone()]);
            let d_weights: Vec<f64> = keys.iter().map(|key| dot(d_out, &v[key.clone()])).collect();
            let mean = dot(weights, &d_weights);
            for ((key, weight), d_weight) in keys.iter().zip(weights).zip(d_weights) {
                let d_score = weight * (d_weight - mean) * self.scale;
                add(&mut d_q[query.clone()], d_score, &k[key.clone()]);
                add(&mut d_k[key.clone()], d_score, q);
                add(&mut d_v[key.clone()], *weight, d_out);
            }
        });
        [d_q, d_k, d_v]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, xs: &[f64]) {
    to.iter_mut().zip(xs).for_each(|(to, x)| *to += factor * x);
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    found.iter().zip(expected).fold(0f64, |worst, (x, y)| worst.max((*x as f64 - y).abs()))
}

#[test]
fn attention_is_the_definition() {
    let scratch = soiled_scratch();
    for isa in Isa::available() {
        for (batch, heads, size, queries, keys) in [
            (1, 1, 1, 1, 1),
            (1, 1, 1, 40, 3),
            (2, 3, 8, 7, 15),
            (1, 2, 72, 33, 31),
            (1, 1, 17, 60, 300),
            (2, 2, 64, 16, 256),
            (1, 1, 512, 15, 70),
            (1, 3, 33, 1, 513),
        ] {
            let width = heads * size;
            // Queries without gaps where they are even in number.
            let q_stride = width + 3 * (queries % 2);
            // Queries, keys and values as parts of wider rows.
            let (q, kv) = (numbers(batch * queries * q_stride, 1), numbers(batch * keys * 2 * width, 2));
            let bias = numbers(batch * heads * queries * keys, 3);
            let mask: Vec<f32> = (0..batch * keys).map(|i| if i % keys > keys / 2 { -10000.0 } else { 0.0 }).collect();
            let per_query = ScoreBias {
                values: &bias,
                batch_stride: heads * queries * keys,
                head_stride: queries * keys,
                query_stride: keys,
            };
            let per_key = ScoreBias { values: &mask, batch_stride: keys, head_stride: 0, query_stride: 0 };
            for bias in [None, Some(per_query), Some(per_key)] {
                let heads = Heads {
                    q: Matrix::strided(&q, batch * queries, width, q_stride),
                    k: Matrix::strided(&kv, batch * keys, width, 2 * width),
                    v: Matrix::strided(&kv[width..], batch * keys, width, 2 * width),
                    batch,
                    heads,
                    scale: 2.0 / (size as f32).sqrt(),
                    bias,
                };
                let expected = Definition::new(&heads).forward();
                for (arithmetic, tolerance) in
                    [(Arithmetic::F32, 3e-6), (Arithmetic::Bf16, 2e-2), (Arithmetic::Int8, 2e-2)]
                {
                    let mut out = vec![f32::NAN; batch * queries * width];
                    attention(isa, &scratch, arithmetic, &heads, &mut out);
                    let worst = worst(&out, &expected);
                    assert!(worst < tolerance, "{isa:?} {arithmetic:?} {size} {queries}×{keys}: {worst:e}");
                }
            }
        }
    }
}

/// A key that all queries are masked from has no influence, whatever stands there; scores far apart do not overflow.
#[test]
fn masked_keys_have_no_influence() {
    let scratch = soiled_scratch();
    let (keys, size) = (300, 20);
    let (q, mut k, v) = (numbers(9 * size, 1), numbers(keys * size, 2), numbers(keys * size, 3));
    // The first block of keys is masked altogether.
    let mask: Vec<f32> = (0..keys).map(|i| if i < 290 { f32::MIN } else { 0.0 }).collect();
    for isa in Isa::available() {
        let mut of = |factor: f32| {
            k[..280 * size].iter_mut().for_each(|x| *x *= factor);
            let heads = Heads {
                q: Matrix::new(&q, 9, size),
                k: Matrix::new(&k, keys, size),
                v: Matrix::new(&v, keys, size),
                batch: 1,
                heads: 1,
                scale: 50.0,
                bias: Some(ScoreBias { values: &mask, batch_stride: 0, head_stride: 0, query_stride: 0 }),
            };
            let mut out = vec![0f32; 9 * size];
            attention(isa, &scratch, Arithmetic::F32, &heads, &mut out);
            assert!(worst(&out, &Definition::new(&heads).forward()) < 1e-4);
            out
        };
        assert_eq!(of(1.0), of(3.0));
    }
}

/// What all keys have in common takes no bits of theirs when they are rounded.
#[test]
fn what_all_keys_share_costs_no_precision() {
    let scratch = soiled_scratch();
    let (queries, keys, size) = (40, 300, 24);
    let (q, k, v) = (numbers(queries * size, 1), numbers(keys * size, 2), numbers(keys * size, 3));
    let shifted: Vec<f32> = k.iter().enumerate().map(|(i, x)| x + [30.0, -70.0][i % 2]).collect();
    for isa in Isa::available() {
        let of = |arithmetic, k: &[f32]| {
            let heads = Heads {
                q: Matrix::new(&q, queries, size),
                k: Matrix::new(k, keys, size),
                v: Matrix::new(&v, keys, size),
                batch: 1,
                heads: 1,
                scale: 0.5,
                bias: None,
            };
            let mut out = vec![f32::NAN; queries * size];
            attention(isa, &scratch, arithmetic, &heads, &mut out);
            out
        };
        let expected: Vec<f64> = of(Arithmetic::F32, &k).iter().map(|x| f64::from(*x)).collect();
        let (plain, shifted) = (of(Arithmetic::Int8, &k), of(Arithmetic::Int8, &shifted));
        assert!(worst(&plain, &expected) < 1e-2 && worst(&shifted, &expected) < 1e-2, "{isa:?}");
    }
}

#[test]
fn gradients_are_those_of_the_definition() {
    gradients_agree::<f32>(Arithmetic::F32, 1e-5);
    gradients_agree::<bf16>(Arithmetic::F32, 1e-5);
    gradients_agree::<bf16>(Arithmetic::Bf16, 1e-2);
}

fn gradients_agree<T: TestElement>(arithmetic: Arithmetic, tolerance: f64) {
    let scratch = soiled_scratch();
    let of = |len, seed| -> Vec<T> { numbers(len, seed).into_iter().map(T::from_f32).collect() };
    for isa in Isa::available() {
        for (batch, heads, size, queries, keys) in [
            (1, 1, 1, 1, 1),
            (2, 3, 8, 7, 15),
            (1, 2, 72, 33, 31),
            (1, 1, 17, 130, 15),
            (2, 1, 33, 60, 300),
            (1, 2, 64, 64, 64),
        ] {
            let width = heads * size;
            // Queries, keys and values as parts of wider rows.
            let (q, kv) = (of(batch * queries * (width + 3), 1), of(batch * keys * 2 * width, 2));
            let bias = numbers(batch * heads * queries * keys, 3);
            let mask: Vec<f32> = (0..batch * keys).map(|i| if i % keys > keys / 2 { -10000.0 } else { 0.0 }).collect();
            let per_query = ScoreBias {
                values: &bias,
                batch_stride: heads * queries * keys,
                head_stride: queries * keys,
                query_stride: keys,
            };
            let per_key = ScoreBias { values: &mask, batch_stride: keys, head_stride: 0, query_stride: 0 };
            for bias in [None, Some(per_query), Some(per_key)] {
                let heads = Heads {
                    q: Matrix::strided(&q, batch * queries, width, width + 3),
                    k: Matrix::strided(&kv, batch * keys, width, 2 * width),
                    v: Matrix::strided(&kv[width..], batch * keys, width, 2 * width),
                    batch,
                    heads,
                    scale: 2.0 / (size as f32).sqrt(),
                    bias,
                };
                let d_out = of(batch * queries * width, 4);
                let expected = Definition::new(&heads).backward(&wide(&d_out));
                let nan = |len| vec![T::from_f32(f32::NAN); len];
                let mut found = [nan(batch * queries * width), nan(batch * keys * width), nan(batch * keys * width)];
                let [d_q, d_k, d_v] = &mut found;
                attention_backward(isa, &scratch, arithmetic, &heads, &d_out, d_q, d_k, d_v);
                let [_, d_k, d_v] = &found;
                for ((found, expected), name) in found.iter().zip(&expected).zip(["d_q", "d_k", "d_v"]) {
                    assert_close(
                        found,
                        expected,
                        tolerance,
                        &format!("{isa:?} {arithmetic:?} {size} {queries}×{keys} {name}"),
                    );
                }
                if bias.is_some_and(|bias| bias.head_stride == 0) {
                    // Not the smallest of numbers, which what comes after would be slow with.
                    for (at, gradient) in [d_k, d_v].into_iter().flat_map(|gradient| gradient.iter().enumerate()) {
                        assert!(
                            at / width % keys <= keys / 2 || gradient.to_f32() == 0.0,
                            "{isa:?}: a masked key's gradient"
                        );
                    }
                }
            }
        }
    }
}

/// The gradients that the kernel is held to are the slopes of the forward definition.
#[test]
fn gradient_is_the_slope() {
    let (batch, heads, size, queries, keys) = (2, 2, 3, 4, 5);
    let of = |rows: usize, seed| numbers(rows * heads * size, seed);
    let (q, k, v) = (of(batch * queries, 1), of(batch * keys, 2), of(batch * keys, 3));
    let bias = numbers(keys, 4);
    let definition = Definition::new(&Heads {
        q: Matrix::new(&q, batch * queries, heads * size),
        k: Matrix::new(&k, batch * keys, heads * size),
        v: Matrix::new(&v, batch * keys, heads * size),
        batch,
        heads,
        scale: 0.7,
        bias: Some(ScoreBias { values: &bias, batch_stride: 0, head_stride: 0, query_stride: 0 }),
    });
    let d_out: Vec<f64> = of(batch * queries, 5).into_iter().map(f64::from).collect();
    for (i, found) in definition.backward(&d_out).iter().enumerate() {
        let loss = |xs: &[f64]| {
            let mut moved = definition.clone();
            moved.qkv[i] = xs.to_vec();
            dot(&moved.forward(), &d_out)
        };
        for (found, slope) in found.iter().zip(slopes(&definition.qkv[i], loss)) {
            assert!((found - slope).abs() < 1e-8, "operand {i}: {found}, not {slope}");
        }
    }
}

#[test]
fn threads_do_not_change_gradients() {
    let (batch, heads, size, queries, keys) = (3, 2, 20, 70, 40);
    let of = |rows: usize, seed| numbers(rows * heads * size, seed);
    let (q, k, v, d_out) = (of(batch * queries, 1), of(batch * keys, 2), of(batch * keys, 3), of(batch * queries, 4));
    let heads = Heads {
        q: Matrix::new(&q, batch * queries, heads * size),
        k: Matrix::new(&k, batch * keys, heads * size),
        v: Matrix::new(&v, batch * keys, heads * size),
        batch,
        heads,
        scale: 0.3,
        bias: None,
    };
    for isa in Isa::available() {
        let work = || {
            let [mut d_q, mut d_k, mut d_v] = [q.len(), k.len(), v.len()].map(|len| vec![0f32; len]);
            attention_backward(isa, &Scratch::new(), Arithmetic::F32, &heads, &d_out, &mut d_q, &mut d_k, &mut d_v);
            [d_q, d_k, d_v]
        };
        assert_same_in_any_threads(work, "attention_backward");
    }
}

/// A query that may look at no key looks at all of them alike, as in torch, whatever their number.
#[test]
fn a_query_without_keys_sees_their_mean() {
    let scratch = Scratch::new();
    let (keys, size) = (21, 5);
    let (q, k, v) = (numbers(2 * size, 1), numbers(keys * size, 2), numbers(keys * size, 3));
    let mask = vec![f32::MIN; keys];
    for isa in Isa::available() {
        let heads = Heads {
            q: Matrix::new(&q, 2, size),
            k: Matrix::new(&k, keys, size),
            v: Matrix::new(&v, keys, size),
            batch: 1,
            heads: 1,
            scale: 1.0,
            bias: Some(ScoreBias { values: &mask, batch_stride: 0, head_stride: 0, query_stride: 0 }),
        };
        let mut out = vec![0f32; 2 * size];
        attention(isa, &scratch, Arithmetic::F32, &heads, &mut out);
        for (i, found) in out.iter().enumerate() {
            let mean = (0..keys).map(|key| v[key * size + i % size]).sum::<f32>() / keys as f32;
            assert!((found - mean).abs() < 1e-6, "{isa:?}: {found}, not {mean}");
        }
    }
}
