//! What the tests against golden values share.

use candle_core::{DType, Tensor};

/// Largest difference, relative to the largest golden value.
pub fn relative_error(found: &Tensor, golden: &Tensor) -> candle_core::Result<f32> {
    assert_eq!(found.dims(), golden.dims());
    let largest = |xs: &Tensor| xs.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    Ok(largest(&(found.to_dtype(DType::F32)? - golden)?)? / largest(golden)?)
}
