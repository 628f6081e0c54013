use crate::math;
use crate::simd::Simd;

/// What is done to every element after a product or a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// GELU by its tanh approximation: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks & Gimpel 2016).
    GeluTanh,
    /// SiLU: `x·sigmoid(x)` (Elfwing et al. 2017).
    Silu,
}

impl Activation {
    /// The activation of each lane.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        match self {
            Self::None => x,
            Self::GeluTanh => math::gelu_tanh(s, x),
            Self::Silu => math::silu(s, x),
        }
    }

    /// The smallest and the largest value it can take, or a little beyond, between `low` and `high`.
    pub(crate) fn range(self, low: f32, high: f32) -> (f32, f32) {
        // Both curves fall to a smallest value below zero and rise from there on.
        let (smallest, at): (f32, fn(f32) -> f32) = match self {
            Self::None => return (low, high),
            Self::GeluTanh => (-0.170_041, |x| 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())),
            Self::Silu => (-0.278_465, |x| x / (1.0 + (-x).exp())),
        };
        (if low < 0.0 { smallest } else { at(low) }, at(low).max(at(high)))
    }

    /// The derivative at each lane of `x`, the activation's input.
    #[inline(always)]
    pub(crate) fn gradient<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
        match self {
            Self::None => s.splat(1.0),
            Self::GeluTanh => math::gelu_tanh_gradient(s, x),
            Self::Silu => math::silu_gradient(s, x),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Activation;

    pub(crate) const ALL: [Activation; 3] = [Activation::None, Activation::GeluTanh, Activation::Silu];

    /// The definition and its derivative, for the tests of the kernels that apply it.
    pub(crate) fn reference(activation: Activation, x: f64) -> (f64, f64) {
        match activation {
            Activation::None => (x, 1.0),
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let tanh = (c * (x + 0.044715 * x.powi(3))).tanh();
                let slope = (1.0 - tanh * tanh) * c * (1.0 + 3.0 * 0.044715 * x * x);
                (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * slope)
            }
            Activation::Silu => {
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
            }
        }
    }

    #[test]
    fn the_reference_gradient_is_the_slope() {
        for activation in ALL {
            for x in [-4.1, -1.0, -0.2, 0.0, 0.7, 3.3] {
                let slope = (reference(activation, x + 1e-5).0 - reference(activation, x - 1e-5).0) / 2e-5;
                assert!((reference(activation, x).1 - slope).abs() < 1e-8, "{activation:?} at {x}");
            }
        }
    }
}
