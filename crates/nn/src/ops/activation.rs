use candle_core::{Result, Tensor};

/// GELU by its tanh approximation: `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks & Gimpel 2016), any shape.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    xs.gelu()
}

/// SiLU: `x·sigmoid(x)`, any shape.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    xs.silu()
}
