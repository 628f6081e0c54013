//! Decoding in bands: images between layers, of which only some rows are computed at a time.
//!
//! A convolution of 3×3 pixels needs one more row above and below. A group norm needs statistics of the whole image, so that
//! what comes before it is computed twice: once to learn them, and again to go on. Nothing is approximated.

use std::collections::VecDeque;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use pixart_kernels::GroupStatistics;

use super::{Decoder, ResnetBlock};
use crate::ops::{Conv2d, GroupNorm};

/// Rows of an image, band after band; those that nobody needs any more are let go of.
struct Bands {
    /// Each with the row that it starts at.
    bands: VecDeque<(usize, Tensor)>,
    size: Size,
}

#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
}

impl Size {
    fn of(image: &Tensor) -> Result<Self> {
        let (batch, channels, height, width) = image.dims4()?;
        Ok(Self { batch, channels, height, width })
    }

    /// Bands of about `elements` numbers.
    fn cut(self, elements: usize) -> impl Iterator<Item = Range<usize>> {
        let rows = (elements / (self.batch * self.channels * self.width).max(1)).clamp(8, self.height.max(8));
        (0..self.height).step_by(rows).map(move |row| row..self.height.min(row + rows))
    }

    /// The same rows and `more` on both sides, where the image has them.
    fn around(self, rows: &Range<usize>, more: usize) -> Range<usize> {
        rows.start.saturating_sub(more)..self.height.min(rows.end + more)
    }
}

/// `rows` of a tensor whose first row is row `first`.
fn part(xs: &Tensor, first: usize, rows: &Range<usize>) -> Result<Tensor> {
    xs.narrow(2, rows.start - first, rows.len())
}

impl Bands {
    fn rows(&self, rows: &Range<usize>) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (start, band) in &self.bands {
            let within = rows.start.max(*start)..rows.end.min(start + band.dim(2)?);
            if !within.is_empty() {
                parts.push(part(band, *start, &within)?);
            }
        }
        match &parts[..] {
            [part] => Ok(part.clone()),
            _ => Tensor::cat(&parts, 2),
        }
    }

    /// Lets go of bands that end before `row`.
    fn release_before(&mut self, row: usize) -> Result<()> {
        while let Some((start, band)) = self.bands.front()
            && start + band.dim(2)? <= row
        {
            self.bands.pop_front();
        }
        Ok(())
    }
}

/// An image between layers.
enum Image<'a> {
    /// As it is in memory.
    Rows(Bands),
    /// Twice as large as another one, and convolved: computed whenever rows of it are asked for, since it is by far the larger.
    Doubled(Bands, &'a Conv2d),
}

impl Image<'_> {
    fn size(&self) -> Size {
        match self {
            Self::Rows(bands) => bands.size,
            Self::Doubled(Bands { size, .. }, _) => Size { height: 2 * size.height, width: 2 * size.width, ..*size },
        }
    }

    fn rows(&self, rows: &Range<usize>) -> Result<Tensor> {
        match self {
            Self::Rows(bands) => bands.rows(rows),
            Self::Doubled(bands, conv) => {
                // A row meets the pixels of the row that it doubles and of one neighbour.
                let halves = bands.size.around(&(rows.start / 2..rows.end.div_ceil(2)), 1);
                part(&conv.forward(&bands.rows(&halves)?)?, 2 * halves.start, rows)
            }
        }
    }

    fn release_before(&mut self, row: usize) -> Result<()> {
        match self {
            Self::Rows(bands) => bands.release_before(row),
            Self::Doubled(bands, _) => bands.release_before((row / 2).saturating_sub(1)),
        }
    }

    /// The coefficients of `norm` over what `compute` makes of all bands of rows.
    fn coefficients(
        &self,
        elements: usize,
        norm: &GroupNorm,
        compute: impl Fn(&Range<usize>) -> Result<Tensor>,
    ) -> Result<Vec<f32>> {
        let mut all: Option<GroupStatistics> = None;
        for rows in self.size().cut(elements) {
            let statistics = norm.statistics(&compute(&rows)?)?;
            match &mut all {
                Some(all) => all.add(&statistics),
                none => *none = Some(statistics),
            }
        }
        match all {
            Some(all) => norm.coefficients(self.size().batch, &all),
            None => candle_core::bail!("an image without rows"),
        }
    }
}

impl ResnetBlock {
    fn forward_in_bands(&self, mut xs: Image, elements: usize) -> Result<Bands> {
        let size = xs.size();
        let first = xs.coefficients(elements, &self.norm1, |rows| xs.rows(rows))?;
        // `rows` of what comes out of the first convolution, of rows of `xs` that start at row `start`.
        let hidden = |input: &Tensor, start: usize, rows: &Range<usize>| {
            part(&self.conv1.forward_normed_by(input, &first, None)?, start, rows)
        };
        let second = xs.coefficients(elements, &self.norm2, |rows| {
            let around = size.around(rows, 1);
            hidden(&xs.rows(&around)?, around.start, rows)
        })?;
        let mut bands = VecDeque::new();
        let mut channels = size.channels;
        for rows in size.cut(elements) {
            let (around, beyond) = (size.around(&rows, 1), size.around(&rows, 2));
            let input = xs.rows(&beyond)?;
            let hidden = hidden(&input, beyond.start, &around)?;
            let input = part(&input, beyond.start, &around)?;
            let residual = match &self.conv_shortcut {
                Some(conv) => conv.forward(&input)?,
                None => input,
            };
            let ys = self.conv2.forward_normed_by(&hidden, &second, Some(&residual))?;
            // A copy, so that rows which are not kept take no memory; its channels stand together, as before.
            let ys =
                part(&ys, around.start, &rows)?.permute((0, 2, 3, 1))?.force_contiguous()?.permute((0, 3, 1, 2))?;
            channels = ys.dim(1)?;
            bands.push_back((rows.start, ys));
            xs.release_before(rows.end.saturating_sub(2))?;
        }
        Ok(Bands { bands, size: Size { channels, ..size } })
    }
}

impl Decoder {
    /// See [`super::AutoencoderKl::decode_in_bands`].
    pub(super) fn forward_in_bands(&self, latents: Tensor, elements: usize) -> Result<Tensor> {
        let xs = self.mid_block.forward(self.conv_in.forward(&latents)?)?;
        let mut image = Image::Rows(Bands { size: Size::of(&xs)?, bands: VecDeque::from([(0, xs)]) });
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                image = Image::Rows(resnet.forward_in_bands(image, elements)?);
            }
            image = match (image, upsampler) {
                (Image::Rows(bands), Some(conv)) => Image::Doubled(bands, conv),
                (image, _) => image,
            };
        }
        let size = image.size();
        let coefficients = image.coefficients(elements, &self.conv_norm_out, |rows| image.rows(rows))?;
        let mut pixels = Vec::new();
        for rows in size.cut(elements) {
            let around = size.around(&rows, 1);
            let ys = self.conv_out.forward_normed_by(&image.rows(&around)?, &coefficients, None)?;
            pixels.push(part(&ys, around.start, &rows)?.to_dtype(DType::F32)?);
            image.release_before(rows.end.saturating_sub(1))?;
        }
        Tensor::cat(&pixels, 2)
    }
}
