use super::*;
use crate::gemm::tests::numbers;
use crate::{Arithmetic, Isa, Scratch};

/// Attention written out in f64.
pub(super) fn definition(heads: &Heads<f32>) -> Vec<f64> {
    let (size, queries, keys) = (heads.size(), heads.queries(), heads.keys());
    let mut out = vec![0f64; heads.q.rows * heads.q.columns];
    for image in 0..heads.batch {
        for head in 0..heads.heads {
            for query in 0..queries {
                let q = |c| heads.q.at(image * queries + query, head * size + c) as f64;
                let score = |key: usize| {
                    let k = |c| heads.k.at(image * keys + key, head * size + c) as f64;
                    let bias = heads.bias.map_or(0.0, |bias| bias.row(image, head, query, keys)[key] as f64);
                    (0..size).map(|c| q(c) * k(c)).sum::<f64>() * heads.scale as f64 + bias
                };
                let scores: Vec<f64> = (0..keys).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..size {
                    let v = |key: usize| heads.v.at(image * keys + key, head * size + c) as f64;
                    out[(image * queries + query) * heads.q.columns + head * size + c] =
                        (0..keys).map(|key| weights[key] / total * v(key)).sum();
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
fn attention_is_the_definition() {
    let scratch = Scratch::new();
    for isa in Isa::available() {
        for (batch, heads, size, queries, keys) in [
            (1, 1, 1, 1, 1),
            (2, 3, 8, 7, 15),
            (1, 2, 72, 33, 31),
            (1, 1, 17, 60, 300),
            (2, 2, 64, 16, 256),
            (1, 1, 512, 15, 70),
            (1, 3, 33, 1, 513),
        ] {
            let width = heads * size;
            // Queries, keys and values as parts of wider rows.
            let (q, kv) = (numbers(batch * queries * (width + 3), 1), numbers(batch * keys * 2 * width, 2));
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
                let expected = definition(&heads);
                for (arithmetic, tolerance) in [(Arithmetic::F32, 3e-6), (Arithmetic::Bf16, 2e-2)] {
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
    let scratch = Scratch::new();
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
            assert!(worst(&out, &definition(&heads)) < 1e-4);
            out
        };
        assert_eq!(of(1.0), of(3.0));
    }
}
