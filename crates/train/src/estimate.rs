//! What a run will need, before it is begun.

use pixart_nn::transformer::TransformerConfig;

use crate::Recipe;

/// Bytes of a parameter and its gradient, and of the two moments that AdamW keeps of it.
const TRAINED: u64 = 4 + 4;
const MOMENTS: u64 = 8;

/// Bytes of the program itself.
const PROGRAM: u64 = 250_000_000;

/// For each number of a token: numbers that a block keeps for its backward pass; how many there are of it with its
/// gradients in that pass; and how many go on from a block that is computed again. Measured (docs/benchmarks.md, "Memory of
/// training").
const KEPT_IN_BLOCK: u64 = 26;
const IN_BACKWARD_PASS: u64 = 33;
const KEPT_OF_RECOMPUTED: u64 = 2;

/// Bytes of a block's keys and values of a token of the text, with their gradients, for each number of a token.
const TEXT_OF_BLOCK: u64 = 16;

/// What an objective says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Footprint {
    /// Numbers that are trained.
    pub trained: u64,
    /// How many of them are the result, of which an average may be kept.
    pub averaged: u64,
    /// Numbers of all networks, those that stay included.
    pub parameters: u64,
    /// Bytes of what stays as it is, and of averages that the loss needs.
    pub frozen_bytes: u64,
    /// Bytes that one picture takes between the forward and the backward pass.
    pub bytes_per_picture: u64,
    /// Floating-point operations of a step for one picture.
    pub flops_per_picture: f64,
}

/// What a run will need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// What it is estimated from.
    pub footprint: Footprint,
    /// Bytes of memory: all of these and the program itself.
    pub bytes: u64,
    /// Bytes of parameters and their gradients.
    pub parameter_bytes: u64,
    /// Bytes of the optimiser's moments and of the average of the weights.
    pub optimizer_bytes: u64,
    /// Bytes of what is kept for the backward pass of a part of a batch.
    pub activation_bytes: u64,
    /// Floating-point operations of a step.
    pub flops: f64,
}

impl Estimate {
    pub(crate) fn new(recipe: &Recipe, footprint: Footprint) -> Self {
        let parameter_bytes = footprint.trained * TRAINED;
        let average = if recipe.ema_decay.is_some() { 4 * footprint.averaged } else { 0 };
        let optimizer_bytes = footprint.trained * MOMENTS + average;
        let activation_bytes = footprint.bytes_per_picture * (recipe.batch_size / recipe.accumulate) as u64;
        Self {
            bytes: PROGRAM + parameter_bytes + optimizer_bytes + activation_bytes + footprint.frozen_bytes,
            parameter_bytes,
            optimizer_bytes,
            activation_bytes,
            flops: footprint.flops_per_picture * recipe.batch_size as f64,
            footprint,
        }
    }
}

/// Floating-point operations of a transformer's pass for a picture of `tokens` with a text of `text` tokens: products with
/// weights and in attention.
pub(crate) fn transformer_flops(config: &TransformerConfig, tokens: u64, text: u64) -> f64 {
    let (width, layers) = (config.width() as f64, config.num_layers as f64);
    let (tokens, text) = (tokens as f64, text as f64);
    // Queries, keys, values, result; queries and result of cross-attention; an MLP four times as wide.
    let block = tokens * width * width * (4.0 + 2.0 + 8.0) + text * 2.0 * width * width;
    let attention = 2.0 * tokens * width * (tokens + text);
    2.0 * layers * (block + attention)
}

/// Bytes that a transformer takes for a picture of `tokens` with a text of `text` tokens, computing in numbers of `bytes`,
/// with those that go from block to block of `stream` bytes.
pub(crate) fn transformer_bytes(
    config: &TransformerConfig,
    (tokens, text): (u64, u64),
    (bytes, stream): (u64, u64),
    recomputes: bool,
) -> u64 {
    let (width, layers) = (config.width() as u64, config.num_layers as u64);
    let numbers = tokens * width;
    match recomputes {
        true => {
            let between = numbers * KEPT_OF_RECOMPUTED * stream + text * width * TEXT_OF_BLOCK;
            between * layers + numbers * IN_BACKWARD_PASS * bytes
        }
        false => numbers * (KEPT_IN_BLOCK * (layers - 1) + IN_BACKWARD_PASS) * bytes,
    }
}
