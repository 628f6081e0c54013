//! Holistically-nested edge detection (Xie & Tu 2015): soft edges of a picture, the condition that PixArt-δ's ControlNets
//! were trained with.

use crate::NamedWeights;
use candle_core::{Result, Tensor};

use crate::ops::{Conv2d, Padding};

/// Convolutions of each of the five blocks.
const DEPTHS: [usize; 5] = [2, 2, 3, 3, 3];

/// The edge detector. Its widths are those of its weights; the published ones are 64, 128, 256, 512 and 512.
#[derive(Debug, Clone)]
pub struct Hed {
    /// What is subtracted from a picture, `[1, 3, 1, 1]`.
    norm: Tensor,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
struct Block {
    convs: Vec<Conv2d>,
    /// To one channel of edges.
    projection: Conv2d,
}

impl Hed {
    /// Reads the published weights by their names. `widths` are the channels of the blocks.
    ///
    /// # Errors
    /// A weight that is missing or has another shape.
    pub fn new(widths: [usize; 5], vb: NamedWeights) -> Result<Self> {
        let mut channels = 3;
        let mut blocks = Vec::new();
        for (i, (depth, width)) in DEPTHS.into_iter().zip(widths).enumerate() {
            let vb = vb.pp(format!("block{}", i + 1));
            let mut convs = Vec::new();
            for conv in 0..depth {
                convs.push(Conv2d::new(channels, width, 3, 1, Padding::Same(1), vb.pp("convs").pp(conv))?);
                channels = width;
            }
            blocks.push(Block { convs, projection: Conv2d::one(width, 1, vb.pp("projection"))? });
        }
        Ok(Self { norm: vb.get((1, 3, 1, 1), "norm")?, blocks })
    }

    /// Edges, 0 to 1, `[batch, 1, height, width]`, of pictures `[batch, 3, height, width]` of 0 to 255, f32. Height and width
    /// are at least 16.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = pictures.dims4()?;
        let mut xs = pictures.broadcast_sub(&self.norm)?;
        let mut sum: Option<Tensor> = None;
        for (i, block) in self.blocks.iter().enumerate() {
            if i > 0 {
                xs = xs.max_pool2d(2)?;
            }
            for conv in &block.convs {
                xs = relu(&conv.forward(&xs)?)?;
            }
            let edges = block.projection.forward(&xs)?.contiguous()?.upsample_bilinear2d(height, width, false)?;
            sum = Some(match sum {
                Some(sum) => (sum + edges)?,
                None => edges,
            });
        }
        match sum {
            Some(sum) => candle_nn::ops::sigmoid(&(sum / self.blocks.len() as f64)?),
            None => candle_core::bail!("an edge detector without blocks"),
        }
    }
}

/// Of an image that is stored with its channels last, as convolutions on a CPU give it: in the order of memory.
fn relu(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 2, 3, 1))?.relu()?.permute((0, 3, 1, 2))
}
