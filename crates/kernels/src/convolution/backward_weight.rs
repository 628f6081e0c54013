use rayon::prelude::*;

use super::{Geometry, Images};
use crate::Isa;
use crate::gemm::{F32, Product, Rows, Run, Words, add_outer_products, column_sums, padded_stride};
use crate::isa::Body;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd};

/// Pixels of the result that are worked on at a time, at most: enough that adding their part to the gradient is little
/// beside computing it.
const CHUNK_PIXELS: usize = 1024;

/// Bytes of the result's gradient that are worked on at a time, at most: a common second-level cache. It is read in order,
/// so that some of it may come from further away, while the panel of the images that it is multiplied with stays near.
const CHUNK_BYTES: usize = 1 << 20;

/// The gradients of the weights of [`conv2d`](super::conv2d), and of a bias, from `images`, its input, and `d_out`, the
/// gradient of its result, whose height and width are those that `geometry` says: `d_weight` `[out, in, kernel, kernel]`
/// and `d_bias` `[out]`, both overwritten. Products are computed in f32.
///
/// For each tap of the kernel it is a product of two matrices whose common depth is the pixels of the result: the
/// channels of a pixel by those of the input pixel that the tap falls on. Pixels are added up in an order that does not
/// depend on the number of threads.
///
/// # Panics
/// The shapes do not belong together.
pub fn conv2d_backward_weight<T: Element>(
    isa: Isa,
    scratch: &Scratch,
    images: &Images<T>,
    d_out: &Images<T>,
    geometry: &Geometry,
    d_weight: &mut [f32],
    d_bias: Option<&mut [f32]>,
) {
    images.check();
    d_out.check();
    assert_eq!((d_out.height, d_out.width), (geometry.height, geometry.width), "the size of the result");
    assert_eq!(images.batch, d_out.batch, "images and results differ in number");
    assert!(d_bias.as_ref().is_none_or(|bias| bias.len() == d_out.channels), "a bias for every output channel");
    if d_weight.is_empty() || images.data.is_empty() || d_out.data.is_empty() {
        d_weight.fill(0.0);
        d_bias.into_iter().for_each(|bias| bias.fill(0.0));
        return;
    }
    let kernel = super::kernel_of(d_weight.len(), d_out.channels, images.channels);
    let cut = &Cut::new(isa, images, d_out, geometry, kernel);
    let (mut sums, mut left, mut right) = (scratch.take(), scratch.take(), scratch.take());
    let sums = sums.lines(cut.tasks() * cut.task_lines());
    sums.fill(ZERO);
    let (left, right) = (left.lines(cut.left_lines()), right.lines(cut.right_lines()));
    if let Some(d_bias) = d_bias {
        column_sums(isa, d_out.data, d_bias);
    }
    for image in (0..images.batch).step_by(cut.images) {
        for row in (0..geometry.height).step_by(cut.rows) {
            let chunk = Chunk {
                cut,
                geometry,
                first_image: image,
                images: cut.images.min(images.batch - image),
                first_row: row,
                rows: cut.rows.min(geometry.height - row),
            };
            chunk.copy(isa, images, d_out, left, right);
            let (left, right, runs) = (&LineWords::new(left), &LineWords::new(right), &chunk.runs());
            sums.par_chunks_mut(cut.task_lines()).with_max_len(1).enumerate().for_each(|(task, sums)| {
                isa.run(Task { cut, stride: geometry.stride, left, right, runs, task, sums });
            });
        }
    }
    let (sums, area, width) = (&LineWords::new(sums), kernel * kernel, cut.vectors * LANES);
    d_weight.par_chunks_exact_mut(images.channels * area).enumerate().for_each(|(out, d_weight)| {
        for (panel, d_weight) in d_weight.chunks_mut(width * area).enumerate() {
            for (lane, d_weight) in d_weight.chunks_exact_mut(area).enumerate() {
                for (tap, x) in d_weight.iter_mut().enumerate() {
                    *x = f32::from_bits(sums[cut.place(out, tap, panel) + lane]);
                }
            }
        }
    });
}

/// How the work is cut: into chunks of pixels, one after another, and these into tasks, each of some output channels, one
/// tap and one panel of input channels.
struct Cut {
    kernel: usize,
    width: usize,
    channels_in: usize,
    channels_out: usize,
    /// Images of a chunk, and rows of the result of each of them; only one of the two is more than 1 and less than all.
    images: usize,
    rows: usize,
    /// Pixels of an image in a chunk's copy: height and width.
    copied: (usize, usize),
    /// Vectors across a panel, and panels.
    vectors: usize,
    panels: usize,
    /// Output channels of a task, and tasks that share a tap and a panel.
    task_channels: usize,
    blocks: usize,
    /// Words from one pixel of the copied results to the next.
    left_words: usize,
}

impl Cut {
    fn new<T: Element>(isa: Isa, images: &Images<T>, d_out: &Images<T>, geometry: &Geometry, kernel: usize) -> Self {
        let left_words = padded_stride(d_out.channels);
        let pixels = CHUNK_PIXELS.min(CHUNK_BYTES / (4 * left_words)).max(1);
        let rows = (pixels / geometry.width).clamp(1, geometry.height);
        let images_at_once = (pixels / (geometry.height * geometry.width)).clamp(1, images.batch);
        // Chunks of one size, or nearly.
        let rows = geometry.height.div_ceil(geometry.height.div_ceil(rows));
        let images_at_once = images.batch.div_ceil(images.batch.div_ceil(images_at_once));
        let copied = |outputs: usize| (outputs - 1) * geometry.stride + kernel;
        let vectors = isa.tile_vectors().min(images.channels.div_ceil(LANES));
        let panels = images.channels.div_ceil(vectors * LANES);
        let tiles = d_out.channels.div_ceil(isa.tile_rows(F32::GROUP));
        // Enough tasks for threads that do not finish together.
        let blocks = 32usize.div_ceil(panels * kernel * kernel).min(tiles);
        let task_channels = tiles.div_ceil(blocks) * isa.tile_rows(F32::GROUP);
        Self {
            kernel,
            width: geometry.width,
            channels_in: images.channels,
            channels_out: d_out.channels,
            images: images_at_once,
            rows,
            copied: (copied(rows), copied(geometry.width)),
            vectors,
            panels,
            task_channels,
            blocks: d_out.channels.div_ceil(task_channels),
            left_words,
        }
    }

    fn tasks(&self) -> usize {
        self.panels * self.kernel * self.kernel * self.blocks
    }

    /// Lines of the sums of a task: the panel's vectors for one output channel after another.
    fn task_lines(&self) -> usize {
        self.task_channels * self.vectors
    }

    fn left_lines(&self) -> usize {
        self.images * self.rows * self.width * self.left_words / LANES
    }

    /// Lines of one panel of all copied pixels.
    fn panel_lines(&self) -> usize {
        self.images * self.copied.0 * self.copied.1 * self.vectors
    }

    fn right_lines(&self) -> usize {
        self.panels * self.panel_lines()
    }

    /// Where the sums for an output channel, a tap and a panel start among all sums, in words.
    #[inline(always)]
    fn place(&self, out: usize, tap: usize, panel: usize) -> usize {
        let task = (panel * self.kernel * self.kernel + tap) * self.blocks + out / self.task_channels;
        (task * self.task_channels + out % self.task_channels) * self.vectors * LANES
    }
}

/// Rows of the results of some images.
struct Chunk<'a> {
    cut: &'a Cut,
    geometry: &'a Geometry,
    first_image: usize,
    images: usize,
    first_row: usize,
    rows: usize,
}

impl Chunk<'_> {
    /// Copies the results' gradients to `left`, pixel after pixel, and the part of the images that they depend on, with
    /// zeros around, to `right`: panel after panel, so that what a task reads stands together.
    fn copy<T: Element>(&self, isa: Isa, images: &Images<T>, d_out: &Images<T>, left: &mut [Line], right: &mut [Line]) {
        let cut = self.cut;
        let copied_rows = (self.rows - 1) * self.geometry.stride + cut.kernel;
        let row_lines = cut.width * cut.left_words / LANES;
        // A chunk's pixels follow each other, since it has all rows if it has several images.
        let first = (self.first_image * d_out.height + self.first_row) * cut.width;
        left[..self.images * self.rows * row_lines].par_chunks_exact_mut(row_lines).enumerate().for_each(
            |(row, lines)| {
                let start = (first + row * cut.width) * d_out.channels;
                let data = &d_out.data[start..][..cut.width * d_out.channels];
                isa.run(CopyResults { data, channels: d_out.channels, words: LineWords::new(lines), cut });
            },
        );
        let right = &Shared::new(right);
        (0..self.images * copied_rows).into_par_iter().with_min_len(4).for_each(|row| {
            let (image, row) = (row / copied_rows, row % copied_rows);
            let y = (self.first_row * self.geometry.stride + row).wrapping_sub(self.geometry.padding);
            let start = ((self.first_image + image) * images.height + y.min(images.height)) * images.width;
            let pixels = if y < images.height { images.width } else { 0 };
            let data = &images.data[start * images.channels..][..pixels * images.channels];
            let first = image * cut.copied.0 + row;
            isa.run(CopyImage { data, cut, padding: self.geometry.padding, row: first, to: right });
        });
    }

    /// Where each row of the result starts, and the input that its first tap falls on.
    fn runs(&self) -> Vec<Run> {
        let cut = self.cut;
        let of_row = |row: usize| {
            let (image, y) = (row / self.rows, row % self.rows);
            let copied = (image * cut.copied.0 + y * self.geometry.stride) * cut.copied.1;
            Run { left: row * cut.width * cut.left_words, right: copied * cut.vectors * LANES }
        };
        (0..self.images * self.rows).map(of_row).collect()
    }
}

/// Copies one row of the results' gradients.
struct CopyResults<'a, T> {
    data: &'a [T],
    channels: usize,
    words: LineWords<'a>,
    cut: &'a Cut,
}

impl<T: Element> Body for CopyResults<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let pixels = self.data.chunks_exact(self.channels).zip(self.words.chunks_exact_mut(self.cut.left_words));
        for (pixel, words) in pixels {
            F32::left_row(s, pixel, 1.0, words);
        }
    }
}

/// Copies one row of an image, or a row of zeros where there is none, to all panels.
struct CopyImage<'a, T> {
    /// The row, or nothing.
    data: &'a [T],
    cut: &'a Cut,
    padding: usize,
    /// Which of the copied rows it is.
    row: usize,
    to: &'a Shared<'a, Line>,
}

impl<T: Element> Body for CopyImage<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Cut { copied, vectors, channels_in, panels, .. } = *self.cut;
        let row_lines = copied.1 * vectors;
        for panel in 0..panels {
            // SAFETY: each row of a panel is copied by one thread alone.
            let lines = unsafe { self.to.part(panel * self.cut.panel_lines() + self.row * row_lines, row_lines) };
            let first = panel * vectors * LANES;
            let len = (vectors * LANES).min(channels_in - first);
            for (column, lines) in lines.chunks_exact_mut(vectors).enumerate() {
                let x = column.wrapping_sub(self.padding);
                if x >= self.data.len() / channels_in {
                    lines.fill(ZERO);
                    continue;
                }
                let pixel = &self.data[x * channels_in + first..][..len];
                F32::left_row(s, pixel, 1.0, &mut LineWords::new(lines));
            }
        }
    }
}

/// Adds a chunk's part to the sums of some output channels, one tap and one panel of input channels.
struct Task<'a> {
    cut: &'a Cut,
    stride: usize,
    left: &'a [u32],
    right: &'a [u32],
    runs: &'a [Run],
    task: usize,
    sums: &'a mut [Line],
}

impl Body for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Cut { kernel, width, channels_in, channels_out, vectors, .. } = *self.cut;
        let (block, tap) = (self.task % self.cut.blocks, self.task / self.cut.blocks);
        let (tap, panel) = (tap % (kernel * kernel), tap / (kernel * kernel));
        let pixel_words = vectors * LANES;
        let right = Rows {
            words: self.right,
            start: panel * self.cut.panel_lines() * LANES
                + (tap / kernel * self.cut.copied.1 + tap % kernel) * pixel_words,
            stride: self.stride * pixel_words,
        };
        let across = vectors.min(channels_in.div_ceil(LANES) - panel * vectors);
        let first = block * self.cut.task_channels;
        let channels = first..channels_out.min(first + self.cut.task_channels);
        for (start, sums) in channels.clone().step_by(S::TILE_ROWS).zip(self.sums.chunks_mut(S::TILE_ROWS * vectors)) {
            let left = Rows { words: self.left, start, stride: self.cut.left_words };
            let tile = (S::TILE_ROWS.min(channels.end - start), across);
            add_outer_products::<F32, _>(s, (left, right), (self.runs, width), tile, sums, vectors);
        }
    }
}
