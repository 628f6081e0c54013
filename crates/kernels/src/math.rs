//! Exponentials and the activations made of them, sixteen at a time.

use std::f32::consts::{LN_2, LOG2_E};

use crate::gemm::Product;
use crate::simd::{MAGIC, Simd};

/// ln 2 in two parts: `n · HIGH` is exact for the `n` that occur.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `eˣ`, to 2 units in the last place; 0 below -104 and infinity above 89.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // In this order, since a minimum or a maximum is its second operand where that is not a number.
    exp_of(s, s.min(s.splat(89.5), s.max(s.splat(-105.0), x)))
}

/// The exponents that [`bounded_exp`] tells apart. Beyond them it, or what is divided by it, would be smaller than the smallest number
/// with all its digits, and a processor takes a hundred times as long for such.
const LARGEST_EXPONENT: f32 = 87.0;

/// [`exp`] for `x` within ± 87; for others that of the nearer end.
#[inline(always)]
fn bounded_exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    exp_of(s, s.min(s.splat(LARGEST_EXPONENT), s.max(s.splat(-LARGEST_EXPONENT), x)))
}

/// [`exp`] of what is not far beyond f32's range.
#[inline(always)]
fn exp_of<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN_2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN_2_LOW), r);
    // The minimax polynomial of Cephes' `expf`, for r within ± ln 2 / 2.
    let mut p = s.splat(1.987_569_2e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = s.mul_add(p, r, s.splat(coefficient));
    }
    let p = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    s.scale_by_power(p, n)
}

/// Powers of two below that of this are nothing beside 1, even all together: a hundred thousand of them are less than its last digit.
/// As numbers they would cost, since a product of one with a small gradient may be smaller than the smallest number with
/// all its digits, and a processor takes a hundred times as long for such.
const LEAST_POWER: f32 = -40.0;

/// `2ˣ - 2⁻⁴⁰` for `x` up to 120, and 0 where that is less: a weight beside one of 1. As exact as a product of `P` needs its
/// operands: to 1e-4 for bf16, to 2 units in the last place for f32.
#[inline(always)]
pub(crate) fn exp2<S: Simd, P: Product>(s: S, x: S::F32) -> S::F32 {
    let x = s.max(x, s.splat(LEAST_POWER));
    let shifted = s.add(x, s.splat(MAGIC));
    let r = s.sub(x, s.sub(shifted, s.splat(MAGIC)));
    // For r within ± 0.5: the terms of the exponential series, (ln 2)ᵏ / k!, or the minimax polynomial of degree 3.
    const SERIES: [f32; 7] = [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, LN_2, 1.0];
    const MINIMAX: [f32; 4] = [5.517_166e-2, 0.242_611_1, 0.693_261, 0.999_928_1];
    let terms = if P::GROUP == 1 { &SERIES[..] } else { &MINIMAX[..] };
    let mut p = s.splat(terms[0]);
    for term in &terms[1..] {
        p = s.mul_add(p, r, s.splat(*term));
    }
    // What the least power gives: there r is 0, and p the last term.
    let least = terms[terms.len() - 1] * f32::from_bits(((127 + LEAST_POWER as i32) as u32) << 23);
    s.sub(s.scale_by_shifted(p, shifted), s.splat(least))
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.quotient(one, s.add(one, bounded_exp(s, s.sub(s.splat(0.0), x))))
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.quotient(x, s.add(s.splat(1.0), bounded_exp(s, s.sub(s.splat(0.0), x))))
}

/// √(2/π) twice, since `0.5 · (1 + tanh(u)) = sigmoid(2u)`.
const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
const CUBIC: f32 = 0.044715;

/// `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let cube = s.mul_add(s.mul(x, x), s.splat(CUBIC * TWO_SQRT_2_OVER_PI), s.splat(TWO_SQRT_2_OVER_PI));
    let minus_twice = s.sub(s.splat(0.0), s.mul(cube, x));
    s.quotient(x, s.add(s.splat(1.0), bounded_exp(s, minus_twice)))
}

/// The derivative of [`silu`].
#[inline(always)]
pub(crate) fn silu_gradient<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    let y = sigmoid(s, x);
    s.mul(y, s.mul_add(x, s.sub(one, y), one))
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
pub(crate) fn gelu_tanh_gradient<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    let square = s.mul(x, x);
    let two_u = s.mul(x, s.mul_add(square, s.splat(CUBIC * TWO_SQRT_2_OVER_PI), s.splat(TWO_SQRT_2_OVER_PI)));
    let slope = s.mul_add(square, s.splat(3.0 * CUBIC * TWO_SQRT_2_OVER_PI), s.splat(TWO_SQRT_2_OVER_PI));
    let y = sigmoid(s, two_u);
    s.mul(y, s.mul_add(s.mul(x, slope), s.sub(one, y), one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Bf16, F32};
    use crate::isa::{Body, Isa};
    use crate::simd::LANES;

    struct Apply(fn(f64) -> f64, usize);

    impl Body for Apply {
        type Output = f64;

        /// The largest error, relative to the value (or to 1e-30 where that is smaller).
        fn run<S: Simd>(self, s: S) -> f64 {
            let mut worst = 0f64;
            for start in 0..4000 {
                let xs: [f32; LANES] = std::array::from_fn(|i| (start * LANES + i) as f32 * 0.0027 - 86.4);
                let v = s.load(&xs);
                let ys = match self.1 {
                    0 => exp(s, v),
                    1 => silu(s, v),
                    2 => gelu_tanh(s, v),
                    3 => silu_gradient(s, v),
                    _ => gelu_tanh_gradient(s, v),
                };
                let mut lanes = [0f32; LANES];
                s.store(ys, &mut lanes);
                for (x, y) in xs.into_iter().zip(lanes) {
                    let expected = (self.0)(x as f64);
                    // Where a derivative crosses zero only the absolute error means something.
                    let scale = if self.1 >= 3 { expected.abs().max(0.05) } else { expected.abs().max(1e-30) };
                    if expected.abs() < f32::MAX as f64 && expected.abs() > 1e-36 {
                        worst = worst.max((y as f64 - expected).abs() / scale);
                    }
                }
            }
            worst
        }
    }

    #[test]
    fn functions_are_right_to_the_last_digits() {
        fn gelu(x: f64) -> f64 {
            // As a sigmoid, since 1 + tanh loses all digits of a negative x.
            x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).exp())
        }
        fn silu(x: f64) -> f64 {
            x / (1.0 + (-x).exp())
        }
        fn silu_slope(x: f64) -> f64 {
            (silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5
        }
        fn gelu_slope(x: f64) -> f64 {
            (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5
        }
        for isa in Isa::available() {
            // A relative error of gelu far to the left is that of its exponent, which is rounded to f32.
            let functions = [f64::exp, silu, gelu, silu_slope, gelu_slope];
            let tolerances = [2.5e-7, 4e-7, 2e-5, 2e-6, 2e-6];
            for (i, (function, tolerance)) in functions.into_iter().zip(tolerances).enumerate() {
                let worst = isa.run(Apply(function, i));
                assert!(worst < tolerance, "{isa:?}, function {i}: {worst:e}");
            }
        }
    }

    /// None of them, nor what they are made of, is a number with fewer digits, which would take long.
    #[test]
    fn activations_are_zero_or_normal_far_out() {
        struct FarOut;
        impl Body for FarOut {
            type Output = Vec<f32>;
            fn run<S: Simd>(self, s: S) -> Vec<f32> {
                let mut all = Vec::new();
                for start in 0..200 {
                    let x = s.load(&std::array::from_fn(|i| (start * LANES + i) as f32 * 0.125 - 200.0));
                    for ys in [silu(s, x), gelu_tanh(s, x), bounded_exp(s, x), bounded_exp(s, s.sub(s.splat(0.0), x))] {
                        let mut lanes = [0f32; LANES];
                        s.store(ys, &mut lanes);
                        all.extend(lanes);
                    }
                }
                all
            }
        }
        for isa in Isa::available() {
            for y in isa.run(FarOut) {
                assert!(y == 0.0 || y.is_normal(), "{isa:?}: {y:e}");
            }
        }
    }

    #[test]
    fn exp_is_tame_outside_its_range() {
        struct Ends;
        impl Body for Ends {
            type Output = [f32; LANES];
            fn run<S: Simd>(self, s: S) -> [f32; LANES] {
                let mut xs = [0f32; LANES];
                xs[1..6].copy_from_slice(&[-1e4, f32::MIN, f32::NEG_INFINITY, 1e4, f32::INFINITY]);
                let v = exp(s, s.load(&xs));
                s.store(v, &mut xs);
                xs
            }
        }
        for isa in Isa::available() {
            assert_eq!(isa.run(Ends)[..6], [1.0, 0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY], "{isa:?}");
        }
    }

    #[test]
    fn powers_of_two_are_right_or_nothing() {
        struct Powers;
        impl Body for Powers {
            type Output = Vec<[f32; 3]>;
            fn run<S: Simd>(self, s: S) -> Vec<[f32; 3]> {
                let xs = (0..1600).map(|i| std::array::from_fn(|lane| (i * LANES + lane) as f32 * 0.0125 - 200.0));
                xs.flat_map(|xs: [f32; LANES]| {
                    let (mut exact, mut short) = ([0f32; LANES], [0f32; LANES]);
                    s.store(exp2::<S, F32>(s, s.load(&xs)), &mut exact);
                    s.store(exp2::<S, Bf16>(s, s.load(&xs)), &mut short);
                    std::array::from_fn::<_, LANES, _>(|lane| [xs[lane], exact[lane], short[lane]])
                })
                .collect()
            }
        }
        for isa in Isa::available() {
            for [x, exact, short] in isa.run(Powers) {
                let expected = (f64::from(x).exp2() - 2f64.powi(-40)).max(0.0);
                let error = |found: f32| (f64::from(found) - expected).abs() / (f64::from(x).exp2() + 2f64.powi(-40));
                if x > -40.0 {
                    assert!(error(exact) < 3e-7 && error(short) < 1.1e-4, "{isa:?}: {x}: {exact:e} {short:e}");
                } else {
                    assert_eq!((exact, short), (0.0, 0.0), "{isa:?}: {x}");
                }
                // A product with a gradient of 1e-12 is a number with all its digits too.
                let tame = |y: f32| y == 0.0 || (y > 0.0 && (y * 1e-12).is_normal());
                assert!(tame(exact) && tame(short), "{isa:?}: {x}: {exact:e} {short:e}");
            }
        }
    }
}
