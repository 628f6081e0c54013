//! What the tests of several kernels share.

use half::bf16;

use crate::Scratch;
use crate::memory::Line;
use crate::simd::{Element, LANES};

/// Widths and lengths around those of a vector and of four, and the transformer's own.
pub(crate) const WIDTHS: [usize; 9] = [1, 7, 15, 16, 17, 31, 33, 71, 1152];

/// An element together with the error of rounding to it.
pub(crate) trait TestElement: Element {
    /// The largest relative error of one rounding.
    const ROUNDING: f64;
}

impl TestElement for f32 {
    const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;
}

impl TestElement for bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;
}

/// Numbers of mean 0.3 and standard deviation 1, roughly normal, the same for the same `seed`.
pub(crate) fn random<T: Element>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| T::from_f32(0.3 + 2.0 * (uniform() + uniform() + uniform()))).collect()
}

/// The same numbers in f64.
pub(crate) fn wide<T: Element>(xs: &[T]) -> Vec<f64> {
    xs.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Each element of `found` is `expected`, to `tolerance` times the largest of `expected` and one rounding to `T`.
#[track_caller]
pub(crate) fn assert_close<T: TestElement>(found: &[T], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found.to_f32()) - expected).abs();
        let allowed = tolerance * largest + 1.01 * T::ROUNDING * expected.abs();
        // Written so that a NaN fails.
        assert!(error <= allowed, "{what}, element {i}: {found:?}, not {expected} (off by {error:e} of {allowed:e})");
    }
}

/// `work` gives the same in one thread and in three.
#[track_caller]
pub(crate) fn assert_same_in_any_threads<R: PartialEq + Send>(work: impl Fn() -> R + Sync, what: &str) {
    let run =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start").install(&work);
    let one = run(1);
    for _ in 0..3 {
        assert!(run(3) == one, "{what}: three threads give another result than one");
    }
}

/// Working memory that is full of NaN, so that a kernel that reads what it has not written gives NaN.
pub(crate) fn soiled_scratch() -> Scratch {
    let scratch = Scratch::new();
    let mut buffers: Vec<_> = (0..8).map(|_| scratch.take()).collect();
    for buffer in &mut buffers {
        buffer.lines(1 << 13).fill(Line([f32::NAN.to_bits(); LANES]));
    }
    drop(buffers);
    scratch
}

/// The gradient of `loss` at `xs` by central differences.
pub(crate) fn slopes(xs: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut moved = xs.to_vec();
    (0..xs.len())
        .map(|i| {
            moved[i] = xs[i] + STEP;
            let above = loss(&moved);
            moved[i] = xs[i] - STEP;
            let below = loss(&moved);
            moved[i] = xs[i];
            (above - below) / (2.0 * STEP)
        })
        .collect()
}
