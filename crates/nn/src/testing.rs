//! What tests of several files share.

use std::cell::Cell;

use candle_core::{Device, Result, Shape, Tensor};

thread_local! {
    /// Each test has a thread of its own, and so the same numbers in every run.
    static STATE: Cell<u64> = const { Cell::new(1) };
}

/// Numbers of mean 0 and standard deviation 1, roughly normal, others at each call of a test.
pub(crate) fn random(shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut state = STATE.get();
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| 2.0 * (uniform() + uniform() + uniform())).collect();
    STATE.set(state);
    Tensor::from_vec(values, shape, &Device::Cpu)
}
