use half::bf16;

use super::*;
use crate::{Activation, Matrix};

/// Numbers between -1 and 1 that depend on `seed` and nothing else.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

/// Error of `found` relative to the largest expected value.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs())).max(1e-30);
    found.iter().zip(expected).fold(0f64, |worst, (x, y)| worst.max((*x as f64 - y).abs())) / largest
}

const SIZES: [usize; 10] = [1, 2, 7, 15, 16, 17, 31, 33, 48, 129];

#[test]
fn products_are_the_definition() {
    let scratch = Scratch::new();
    for isa in Isa::available() {
        for (i, rows) in SIZES.into_iter().enumerate() {
            for (j, columns) in SIZES.into_iter().enumerate() {
                let depth = SIZES[(i + 3 * j) % SIZES.len()];
                let (left, right) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
                let bias = numbers(columns, 3);
                let residual = numbers(rows * columns, 4);
                let gate_rows = rows.div_ceil(2);
                let gate = numbers(rows.div_ceil(gate_rows) * columns, 5);
                for activation in [Activation::None, Activation::Silu, Activation::GeluTanh] {
                    let expected: Vec<f64> = (0..rows * columns)
                        .map(|at| {
                            let (r, c) = (at / columns, at % columns);
                            let dot: f64 =
                                (0..depth).map(|d| left[r * depth + d] as f64 * right[c * depth + d] as f64).sum();
                            residual[at] as f64
                                + gate[r / gate_rows * columns + c] as f64 * activate(activation, dot + bias[c] as f64)
                        })
                        .collect();
                    let epilogue = Epilogue {
                        bias: Some(&bias),
                        activation,
                        residual: Some(Residual {
                            xs: &residual[..],
                            gate: Some(Gate { values: &gate, rows: gate_rows }),
                        }),
                        ..Epilogue::default()
                    };
                    for (arithmetic, tolerance) in
                        [(Arithmetic::F32, 2e-6), (Arithmetic::Bf16, 1.2e-2), (Arithmetic::Int8, 2e-2)]
                    {
                        let packed = Packed::new(isa, arithmetic, Matrix::new(&right, columns, depth));
                        let mut out = vec![f32::NAN; rows * columns];
                        gemm(isa, &scratch, Matrix::new(&left, rows, depth), &packed, &epilogue, &mut out);
                        let error = error(&out, &expected);
                        assert!(
                            error < tolerance,
                            "{isa:?} {arithmetic:?} {activation:?} {rows}×{depth}×{columns}: {error:e}"
                        );
                    }
                }
            }
        }
    }
}

/// Weights in 8 bits that stay where they are, in one piece or several, are multiplied as the numbers they stand for: by
/// rows in 8 bits, in bf16 and in f32.
#[test]
fn weights_in_bytes_are_the_numbers_they_stand_for() {
    let scratch = crate::testing::soiled_scratch();
    for isa in Isa::available() {
        // In the widest, several panels go through the rows together.
        let sizes = [(1, 1, 1), (7, 33, 15), (31, 17, 129), (300, 130, 70), (16, 64, 32), (5, 67, 33), (70, 67, 700)];
        for (rows, depth, columns) in sizes {
            let (left, right) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
            let whole = ByteMatrix::quantise(isa, Matrix::new(&right, columns, depth));
            let cut = columns / 3;
            let part = |rows: Range<usize>| {
                let bytes: Vec<u8> = rows.clone().flat_map(|row| whole.row(row).to_vec()).collect();
                ByteMatrix::new(std::sync::Arc::new(bytes), whole.scales()[rows].to_vec(), depth)
            };
            let parts = ByteMatrix::joined(&[part(0..cut), part(cut..columns)]);
            let values = whole.to_f32();
            for (x, y) in values.iter().zip(&right) {
                assert!((x - y).abs() <= 0.5001 / 127.0, "{x} for {y}");
            }
            let left = Matrix::new(&left, rows, depth);
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
                let product = |right: &Packed| {
                    let mut out = vec![f32::NAN; rows * columns];
                    gemm(isa, &scratch, left, right, &Epilogue::default(), &mut out);
                    out
                };
                let found = product(&Packed::from_bytes(isa, arithmetic, whole.clone()));
                let apart = Packed::from_bytes(isa, arithmetic, parts.clone());
                assert_eq!(found, product(&apart));
                assert_eq!(found, product(&apart.in_order(isa)));
                // Left rows are rounded as the arithmetic says; the bytes are not rounded again, even to bf16.
                let rounded: Vec<f64> = match arithmetic.on(isa) {
                    Arithmetic::F32 => left.data.iter().map(|x| f64::from(*x)).collect(),
                    Arithmetic::Bf16 => left.data.iter().map(|x| bf16::from_f32(*x).to_f64()).collect(),
                    Arithmetic::Int8 => {
                        let rows = ByteMatrix::quantise(isa, left);
                        rows.to_f32().into_iter().map(f64::from).collect()
                    }
                };
                let expected: Vec<f64> = (0..rows * columns)
                    .map(|at| {
                        let (r, c) = (at / columns, at % columns);
                        (0..depth).map(|d| rounded[r * depth + d] * f64::from(values[c * depth + d])).sum()
                    })
                    .collect();
                let error = error(&found, &expected);
                assert!(error < 3e-6, "{isa:?} {arithmetic:?} {rows}×{depth}×{columns}: {error:e}");
            }
        }
    }
}

/// Where a large result's rows start with lines of the cache, some sets of instructions write past it. It is the same result.
#[test]
fn large_results_do_not_depend_on_where_they_lie() {
    fn check<T: Element>(isa: Isa) {
        let (rows, depth, columns) = ((16 << 20) / 1024 / size_of::<T>() + 5, 20, 1024 + 32);
        let (left, right, bias) = (numbers(rows * depth, 1), numbers(columns * depth, 2), numbers(columns, 3));
        let left = Matrix::new(&left, rows, depth);
        let packed = Packed::new(isa, Arithmetic::Bf16, Matrix::new(&right, columns, depth));
        let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
        let mut memory = vec![T::default(); rows * columns + 64];
        let line = memory.as_ptr().align_offset(64);
        let mut product = |start: usize| {
            let out = &mut memory[start..][..rows * columns];
            out.fill(T::from_f32(f32::NAN));
            gemm(isa, &Scratch::new(), left, &packed, &epilogue, out);
            out.to_vec()
        };
        assert!(product(line) == product(line + 1), "{isa:?}");
    }
    for isa in Isa::available() {
        check::<f32>(isa);
        check::<bf16>(isa);
    }
}

/// A product whose left columns are multiplied first is that of the multiplied ones, and an addend is added before anything
/// else.
#[test]
fn left_factors_and_addends() {
    let scratch = crate::testing::soiled_scratch();
    for isa in Isa::available() {
        let (rows, depth, columns) = (37, 45, 70);
        let (left, right) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
        let mut factors = numbers(depth, 3);
        factors[7] = 0.0;
        let multiplied: Vec<f32> = left.iter().zip(factors.iter().cycle()).map(|(x, factor)| x * factor).collect();
        let packed = Packed::new(isa, Arithmetic::Int8, Matrix::new(&right, columns, depth));
        let (addend, bias) = (numbers(rows * columns, 4), numbers(columns, 5));
        let product = |left: &[f32], right: &Packed, epilogue: &Epilogue<f32>| {
            let mut out = vec![f32::NAN; rows * columns];
            gemm(isa, &scratch, Matrix::new(left, rows, depth), right, epilogue, &mut out);
            out
        };
        let plain = Epilogue::default();
        let expected = product(&multiplied, &packed, &plain);
        let packed = packed.with_left_factors(factors);
        assert_eq!(product(&left, &packed, &plain), expected, "{isa:?}");
        let added: Vec<f64> = (0..rows * columns)
            .map(|at| activate(Activation::Silu, f64::from(expected[at] + addend[at] + bias[at % columns])))
            .collect();
        let epilogue =
            Epilogue { addend: Some(&addend), bias: Some(&bias), activation: Activation::Silu, residual: None };
        assert!(error(&product(&left, &packed, &epilogue), &added) < 1e-6, "{isa:?}");
    }
}

#[test]
fn maxima_of_columns() {
    for isa in Isa::available() {
        let xs = numbers(5 * 45, 1);
        let of = |column: usize| (0..5).map(|row| xs[row * 45 + column].abs()).fold(0f32, f32::max);
        assert_eq!(column_maxima(isa, Matrix::new(&xs, 5, 45)), (0..45).map(of).collect::<Vec<_>>());
    }
}

/// What is not finite is told by the scale of its row.
#[test]
fn rows_that_are_not_finite_have_no_scale() {
    for isa in Isa::available() {
        let mut xs = numbers(3 * 37, 1);
        (xs[37 + 5], xs[2 * 37 + 36]) = (f32::NAN, f32::NEG_INFINITY);
        let scales = ByteMatrix::quantise(isa, Matrix::new(&xs, 3, 37)).scales().to_vec();
        assert!(scales[0].is_finite() && scales[1].is_nan() && scales[2].is_nan(), "{scales:?}");
    }
}

/// bf16 operands that are exact give the exact product, in f32 and in bf16.
#[test]
fn bf16_in_and_out() {
    let scratch = Scratch::new();
    for isa in Isa::available() {
        let (rows, columns, depth) = (17, 35, 50);
        let small = |len, seed| -> Vec<bf16> {
            numbers(len, seed).into_iter().map(|x| bf16::from_f32((x * 8.0).round())).collect()
        };
        let (left, right) = (small(rows * depth, 1), small(columns * depth, 2));
        let expected: Vec<f32> = (0..rows * columns)
            .map(|at| {
                let (r, c) = (at / columns, at % columns);
                (0..depth).map(|d| left[r * depth + d].to_f32() * right[c * depth + d].to_f32()).sum()
            })
            .collect();
        let packed = Packed::new(isa, Arithmetic::Bf16, Matrix::new(&right, columns, depth));
        let left = Matrix::new(&left, rows, depth);
        let mut wide = vec![0f32; rows * columns];
        gemm(isa, &scratch, left, &packed, &Epilogue::default(), &mut wide);
        assert_eq!(wide, expected, "{isa:?}");
        let mut narrow = vec![bf16::ZERO; rows * columns];
        gemm(isa, &scratch, left, &packed, &Epilogue::default(), &mut narrow);
        assert_eq!(narrow, expected.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>(), "{isa:?}");
    }
}

/// Both gradients of a product are products of transposed matrices; strided rows are those of a wider matrix.
#[test]
fn transposed_and_strided_operands() {
    let scratch = Scratch::new();
    for isa in Isa::available() {
        for (rows, columns, depth) in [(5, 33, 17), (31, 7, 64), (16, 16, 16)] {
            let (left, right) = (numbers(depth * rows, 1), numbers(depth * columns, 2));
            let expected: Vec<f64> = (0..rows * columns)
                .map(|at| {
                    let (r, c) = (at / columns, at % columns);
                    (0..depth).map(|d| left[d * rows + r] as f64 * right[d * columns + c] as f64).sum()
                })
                .collect();
            for (arithmetic, tolerance) in
                [(Arithmetic::F32, 2e-6), (Arithmetic::Bf16, 1.2e-2), (Arithmetic::Int8, 2e-2)]
            {
                let packed = Packed::new(isa, arithmetic, Matrix::new(&right, depth, columns).transposed());
                let mut out = vec![0f32; rows * columns];
                let transposed = Matrix::new(&left, depth, rows).transposed();
                gemm(isa, &scratch, transposed, &packed, &Epilogue::default(), &mut out);
                assert!(error(&out, &expected) < tolerance, "{isa:?} {arithmetic:?}");
            }
            let wide = numbers(rows * (depth + 5), 3);
            let narrow: Vec<f32> = (0..rows).flat_map(|r| wide[r * (depth + 5)..][..depth].iter().copied()).collect();
            let packed = Packed::new(isa, Arithmetic::F32, Matrix::new(&right, columns, depth));
            let (mut a, mut b) = (vec![0f32; rows * columns], vec![0f32; rows * columns]);
            let strided = Matrix::strided(&wide, rows, depth, depth + 5);
            gemm(isa, &scratch, strided, &packed, &Epilogue::default(), &mut a);
            gemm(isa, &scratch, Matrix::new(&narrow, rows, depth), &packed, &Epilogue::default(), &mut b);
            assert_eq!(a, b, "{isa:?}");
        }
    }
}

/// What was packed comes back: as it was in f32, rounded to bf16, or to half a step of its column's scale.
#[test]
fn unpacking_gives_back_what_was_packed() {
    for isa in Isa::available() {
        for (columns, depth, taps) in [(1, 1, 1), (15, 7, 4), (17, 33, 1), (31, 15, 9), (33, 64, 1), (129, 71, 1)] {
            let weight = numbers(columns * taps * depth, 1);
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
                let at = |column: usize, tap: usize, d: usize| weight[(column * taps + tap) * depth + d];
                let mut packed = vec![Packed::with_taps(isa, arithmetic, columns, depth, taps, at)];
                if taps == 1 {
                    packed.push(Packed::new(isa, arithmetic, Matrix::new(&weight, columns, depth)));
                }
                for packed in packed {
                    let found = packed.unpack();
                    assert_eq!(found.len(), weight.len());
                    for (i, (x, y)) in found.into_iter().zip(&weight).enumerate() {
                        let right = match arithmetic {
                            Arithmetic::F32 => x == *y,
                            Arithmetic::Bf16 => x == bf16::from_f32(*y).to_f32(),
                            Arithmetic::Int8 => (x - y).abs() <= 0.5001 * packed.scales[i / (taps * depth)],
                        };
                        assert!(right, "{isa:?} {arithmetic:?} {columns}×{taps}×{depth}, element {i}: {x}, not {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_the_result() {
    let (rows, columns, depth) = (150, 200, 70);
    let (left, right) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
    let isa = *Isa::available().last().unwrap_or(&Isa::Portable);
    let packed = Packed::new(isa, Arithmetic::F32, Matrix::new(&right, columns, depth));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let mut out = vec![0f32; rows * columns];
        let left = Matrix::new(&left, rows, depth);
        pool.install(|| gemm(isa, &Scratch::new(), left, &packed, &Epilogue::default(), &mut out));
        out
    };
    assert_eq!(with(1), with(3));
}
