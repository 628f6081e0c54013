//! The values that new networks start from.

use std::hash::{DefaultHasher, Hash, Hasher};

use pixart_diffusion::Generator;

/// Draws the first values of a network's weights.
pub trait Initialise: Send + Sync {
    /// The values of the weight `name`, row after row; the same whenever it is asked.
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32>;
}

/// Convolutions and linear layers as PyTorch makes them: uniform within `1/√(numbers that an output is made of)`, biases
/// zero, norms one.
#[derive(Debug, Clone, Copy)]
pub struct UniformFanIn {
    /// Another seed is another network.
    pub seed: u64,
}

impl Initialise for UniformFanIn {
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        match shape {
            [] | [_] if name.ends_with("bias") => vec![0.0; count],
            [] | [_] => vec![1.0; count],
            [_, fan_in @ ..] => {
                let bound = 1.0 / (fan_in.iter().product::<usize>() as f32).sqrt();
                let uniform = generator(self.seed, name).rand(count);
                uniform.into_iter().map(|x| (2.0 * x - 1.0) * bound).collect()
            }
        }
    }
}

/// A random stream of its own for everything that has a name.
pub(crate) fn generator(seed: u64, name: impl Hash) -> Generator {
    // `DefaultHasher::new` has fixed keys; the generator takes 32 bits.
    let mut hasher = DefaultHasher::new();
    (seed, name).hash(&mut hasher);
    Generator::new(hasher.finish() >> 32)
}
