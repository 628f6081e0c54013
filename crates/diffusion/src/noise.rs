use candle_core::{Device, Shape, Tensor};

use crate::Generator;
use crate::error::{Error, Result};

/// Where the noise of a batch comes from: diffusers' pipelines take one generator or a list of them.
#[derive(Debug, Clone)]
pub enum NoiseSource {
    /// One stream for the whole batch.
    Shared(Generator),
    /// A stream for each image, so that an image does not depend on the batch it is drawn in.
    PerImage(Vec<Generator>),
}

impl NoiseSource {
    /// A float32 tensor of standard normal numbers, drawn on the CPU, then moved to `device`. The first dimension of
    /// `shape` is the batch.
    ///
    /// # Errors
    /// If there are not as many generators as images, or the device has no room for the tensor.
    pub fn randn_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        match self {
            Self::Shared(generator) => generator.randn_tensor(shape, device),
            Self::PerImage(generators) => {
                let batch = shape.dims().first().copied().unwrap_or(0);
                if batch != generators.len() || batch == 0 {
                    return Err(Error::Generators { generators: generators.len(), images: batch });
                }
                let one = [&[1][..], &shape.dims()[1..]].concat();
                let images: Result<Vec<_>> =
                    generators.iter_mut().map(|generator| generator.randn_tensor(one.as_slice(), device)).collect();
                Ok(Tensor::cat(&images?, 0)?)
            }
        }
    }
}

impl From<Generator> for NoiseSource {
    fn from(generator: Generator) -> Self {
        Self::Shared(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_batch_has_the_noise_of_its_own_seed() -> Result<()> {
        let mut batch = NoiseSource::PerImage([3, 4].map(Generator::new).to_vec());
        let mut alone = NoiseSource::from(Generator::new(4));
        for _ in 0..2 {
            let both = batch.randn_tensor((2, 4, 3, 3), &Device::Cpu)?;
            let one = alone.randn_tensor((1, 4, 3, 3), &Device::Cpu)?;
            let second = both.narrow(0, 1, 1)?.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(second, one.flatten_all()?.to_vec1::<f32>()?);
        }
        assert!(batch.randn_tensor((3, 4, 3, 3), &Device::Cpu).is_err());
        Ok(())
    }
}
