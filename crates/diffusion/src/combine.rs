//! Weighted sums of tensors: what every solver step comes down to.

use candle_core::Tensor;

use crate::error::Result;

/// `Σ weight · tensor` over `terms`, which all have one shape, dtype and device; there is at least one.
///
/// A weight of one costs no multiplication, and a term of weight zero is left out: the noise of a last step counts
/// for nothing, whatever it holds.
pub(crate) fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for &(weight, tensor) in terms.iter().filter(|(weight, _)| *weight != 0.0) {
        let term = if weight == 1.0 { tensor.clone() } else { tensor.affine(weight, 0.0)? };
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(terms[0].1.zeros_like()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sums_and_leaves_out_what_weighs_nothing() -> Result<()> {
        let a = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
        let b = Tensor::new(&[10f32, 20.0], &Device::Cpu)?;
        let wild = Tensor::new(&[f32::NAN, f32::INFINITY], &Device::Cpu)?;
        let sum = combine(&[(1.0, &a), (0.5, &b), (0.0, &wild)])?;
        assert_eq!(sum.to_vec1::<f32>()?, [6.0, 12.0]);
        assert_eq!(combine(&[(0.0, &wild)])?.to_vec1::<f32>()?, [0.0, 0.0]);
        Ok(())
    }
}
