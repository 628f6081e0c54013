use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::grid::Grid;
use super::weights::Phase;
use super::{ConvWeights, Geometry, Images, Normalise};
use crate::gemm::{
    Bf16, F32, Int8, Left, MAX_VECTORS, Panel, Place, Product, Quantised, Right, Scales, TILE_LINES, Words, ZERO_POINT,
    goes_past_caches, multiply, padded_stride, prefetch_tile, write_tile,
};
use crate::isa::Body;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to};
use crate::{Activation, Arithmetic, Epilogue, Isa};

/// Bytes of the image that a thread copies at a time: less than half of a common second-level cache.
const BLOCK_BYTES: usize = 400 << 10;

/// Tiles along a row of a block, at most.
const BLOCK_TILES: usize = 8;

/// The largest kernel, in taps.
pub(super) const MAX_TAPS: usize = 64;

/// `out = epilogue(conv2d(normalise(images)))`, `[batch, height, width, channels]` as `geometry` says, or, with weights that
/// double, of twice the image's height and width.
///
/// With weights in int8, the images are rounded to 8 bits too: a block that one thread works on has one scale and one zero
/// point, which depend on the geometry and on what stands in the block, and on nothing else.
///
/// # Panics
/// The shapes do not belong together; the kernel is larger than 8×8.
#[allow(clippy::too_many_arguments, reason = "one operation, whose operands these are")]
pub fn conv2d<A: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    images: &Images<A>,
    normalise: Option<&Normalise>,
    weights: &ConvWeights,
    geometry: &Geometry,
    epilogue: &Epilogue<T>,
    out: &mut [T],
) {
    images.check();
    assert_eq!(images.channels, weights.channels_in, "images and weights differ in channels");
    assert!(weights.kernel * weights.kernel <= MAX_TAPS, "a kernel of {0}×{0}", weights.kernel);
    if let Some(normalise) = normalise {
        assert_eq!(normalise.coefficients.len(), images.batch * 2 * images.channels, "coefficients of a norm");
    }
    if weights.doubles() {
        let doubled = Geometry { stride: 1, padding: 1, height: 2 * images.height, width: 2 * images.width };
        assert_eq!(*geometry, doubled, "doubling weights make an image twice as large");
    }
    let pixels = images.batch * geometry.height * geometry.width;
    assert_eq!(out.len(), pixels * weights.channels_out, "the result's size");
    epilogue.check(pixels, weights.channels_out);
    if out.is_empty() {
        return;
    }
    match weights.phases[0].packed.arithmetic().on(isa) {
        Arithmetic::F32 => conv2d_as::<F32, A, T>(isa, scratch, images, normalise, weights, geometry, epilogue, out),
        Arithmetic::Bf16 => conv2d_as::<Bf16, A, T>(isa, scratch, images, normalise, weights, geometry, epilogue, out),
        Arithmetic::Int8 => conv2d_as::<Int8, A, T>(isa, scratch, images, normalise, weights, geometry, epilogue, out),
    }
}

/// How the result is cut into blocks, each for one thread. Sizes are in places of the kernel: [`ConvWeights::step`] output
/// pixels each.
struct Cut {
    height: usize,
    width: usize,
    rows: usize,
    columns: usize,
    /// Pixels of the copied part of the image: height and width.
    copied: (usize, usize),
}

impl Cut {
    /// Of tiles of so many rows.
    fn new(tile: usize, batch: usize, geometry: &Geometry, weights: &ConvWeights, pixel_words: usize) -> Self {
        let (height, width) = (geometry.height.div_ceil(weights.step), geometry.width.div_ceil(weights.step));
        let columns = width.div_ceil(width.div_ceil(tile * BLOCK_TILES)).next_multiple_of(tile).min(width);
        let copied = |places: usize| (places - 1) * geometry.stride + weights.reach;
        let row_bytes = copied(columns) * pixel_words * 4;
        let copied_rows = (BLOCK_BYTES / row_bytes).saturating_sub(weights.reach - geometry.stride.min(weights.reach));
        // Eight blocks from top to bottom of a single image, so that threads finish together; fewer of one image among
        // many, since every block reads all weights.
        let down = 32usize.div_ceil(batch).min(8);
        let rows = (copied_rows / geometry.stride).clamp(1, height.div_ceil(down));
        Self { height, width, rows, columns, copied: (copied(rows), copied(columns)) }
    }

    fn blocks_down(&self) -> usize {
        self.height.div_ceil(self.rows)
    }

    fn blocks_across(&self) -> usize {
        self.width.div_ceil(self.columns)
    }
}

#[allow(clippy::too_many_arguments, reason = "one operation, whose operands these are")]
pub(super) fn conv2d_as<P: Words, A: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    images: &Images<A>,
    normalise: Option<&Normalise>,
    weights: &ConvWeights,
    geometry: &Geometry,
    epilogue: &Epilogue<T>,
    out: &mut [T],
) {
    let pixel_words = padded_stride(images.channels.div_ceil(P::GROUP));
    let cut = &Cut::new(isa.tile_rows(P::GROUP), images.batch, geometry, weights, pixel_words);
    let out = &Shared::new(out);
    let (down, across) = (cut.blocks_down(), cut.blocks_across());
    let copied_lines = cut.copied.0 * cut.copied.1 * pixel_words / LANES;
    let panel_room = weights.phases.iter().map(|phase| phase.packed.panel_room::<P>()).max().unwrap_or(0);
    (0..images.batch * down * across).into_par_iter().with_max_len(1).for_each_init(
        || scratch.take(),
        |buffer, block| {
            let (top, left) = (block / across % down * cut.rows, block % across * cut.columns);
            let (copy, room) = buffer.lines(copied_lines + panel_room).split_at_mut(copied_lines);
            isa.run(Block::<P, A, T> {
                images,
                normalise,
                weights,
                geometry,
                epilogue,
                out,
                image: block / across / down,
                rows: top..cut.height.min(top + cut.rows),
                columns: left..cut.width.min(left + cut.columns),
                copied: cut.copied,
                words: LineWords::new(copy),
                room,
                pixel_words,
                product: PhantomData,
            });
        },
    );
}

/// A block of one result.
struct Block<'a, P, A, T> {
    images: &'a Images<'a, A>,
    normalise: Option<&'a Normalise<'a>>,
    weights: &'a ConvWeights,
    geometry: &'a Geometry,
    epilogue: &'a Epilogue<'a, T>,
    out: &'a Shared<'a, T>,
    image: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    copied: (usize, usize),
    words: LineWords<'a>,
    /// For a panel that is widened.
    room: &'a mut [Line],
    pixel_words: usize,
    product: PhantomData<P>,
}

impl<P: Words, A: Element, T: Element> Body for Block<'_, P, A, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let grid = self.copy(s);
        let (weights, geometry) = (self.weights, self.geometry);
        let (step, stride) = (weights.step, geometry.stride);
        let row_words = self.copied.1 * self.pixel_words;
        let mut segments = [0; MAX_TAPS];
        let mut tile = [ZERO; TILE_LINES];
        let tile_rows = s.tile_rows(P::GROUP);
        let past_caches = goes_past_caches(tile_rows, weights.phases[0].packed.columns, self.out);
        for panel in 0..weights.phases[0].packed.panels() {
            for (phase, Phase { packed, taps }) in weights.phases.iter().enumerate() {
                let segments = &mut segments[..taps.len()];
                for ([row, column], segment) in taps.iter().zip(&mut *segments) {
                    *segment = row * row_words + column * self.pixel_words;
                }
                let Panel { lines, vectors, sums } = packed.panel_in::<S, P>(s, panel, self.room);
                let quantised = (packed.arithmetic() == Arithmetic::Int8).then_some(Quantised {
                    scales: Scales::One(grid.scale),
                    zero_point: grid.zero_point,
                    sums: &sums,
                });
                let (phase_row, phase_column) = (phase / step, phase % step);
                // The last places of the kernel may have pixels of some phases only.
                let within = |places: &Range<usize>, phase: usize, size: usize| {
                    places.start..places.end.min((size - phase.min(size)).div_ceil(step))
                };
                let columns = within(&self.columns, phase_column, geometry.width);
                for row in within(&self.rows, phase_row, geometry.height) {
                    for first in (0..columns.len()).step_by(tile_rows) {
                        let rows = tile_rows.min(columns.len() - first);
                        let (y, x) = (row * step + phase_row, (columns.start + first) * step + phase_column);
                        let place = Place {
                            row: (self.image * geometry.height + y) * geometry.width + x,
                            row_step: step,
                            rows,
                            column: panel * packed.panel_vectors * LANES,
                            past_caches,
                        };
                        let left = Left {
                            words: &self.words,
                            start: (row - self.rows.start) * stride * row_words + first * stride * self.pixel_words,
                            row_stride: stride * self.pixel_words,
                            segments,
                            steps: packed.steps_in::<P>(),
                        };
                        prefetch_tile(s, place, packed, self.epilogue, self.out);
                        multiply::<S, P>(s, left, Right::new(lines), (rows, vectors), &mut tile, MAX_VECTORS);
                        // SAFETY: every pixel of the result belongs to exactly one block, and to one tile of it.
                        unsafe { write_tile::<S, P, T>(s, &tile, place, packed, quantised, self.epilogue, self.out) };
                    }
                }
            }
        }
        if past_caches {
            s.finish_lines();
        }
    }
}

impl<P: Words, A: Element, T: Element> Block<'_, P, A, T> {
    /// Copies the part of the image that the block's outputs depend on, with zeros around the image, and tells what it is
    /// rounded to where the product is in int8.
    #[inline(always)]
    fn copy<S: Simd>(&mut self, s: S) -> Grid {
        let Images { data, height, width, channels, .. } = *self.images;
        let Geometry { stride, padding, .. } = *self.geometry;
        let reach = |places: usize| (places - 1) * stride + self.weights.reach;
        let row_words = self.copied.1 * self.pixel_words;
        let grid = match P::GROUP == Int8::GROUP {
            true => {
                let within = |places: &Range<usize>, pixels: usize| {
                    let start = places.start * stride;
                    start.saturating_sub(padding)..pixels.min((start + reach(places.len())).saturating_sub(padding))
                };
                let (rows, columns) = (within(&self.rows, height), within(&self.columns, width));
                Grid::of_pixels(s, self.images, self.normalise, self.image, rows, columns)
            }
            false => Grid { scale: 1.0, zero_point: 0.0 },
        };
        let (rows, columns) = (reach(self.rows.len()), reach(self.columns.len()));
        // The part of a row that lies within the image, in pixels of the copy.
        let first = self.columns.start * stride;
        let inside = padding.saturating_sub(first).min(columns)..(width + padding).saturating_sub(first).min(columns);
        for row in 0..rows {
            let words = &mut self.words[row * row_words..][..columns * self.pixel_words];
            let y = (self.rows.start * stride + row).wrapping_sub(padding);
            if y >= height || inside.is_empty() {
                words.fill(grid.zero_word());
                continue;
            }
            let (before, words) = words.split_at_mut(inside.start * self.pixel_words);
            let (words, after) = words.split_at_mut(inside.len() * self.pixel_words);
            before.fill(grid.zero_word());
            after.fill(grid.zero_word());
            let x = first + inside.start - padding;
            let pixels = &data[((self.image * height + y) * width + x) * channels..][..inside.len() * channels];
            let pixels = pixels.chunks_exact(channels).zip(words.chunks_exact_mut(self.pixel_words));
            match self.normalise {
                None if P::GROUP == Int8::GROUP => {
                    for (pixel, words) in pixels {
                        for (xs, words) in pixel.chunks(LANES).zip(words.chunks_mut(LANES / P::GROUP)) {
                            store_words::<S, P>(s, load_up_to(s, xs), grid, words);
                        }
                    }
                }
                None => pixels.for_each(|(pixel, words)| P::left_row(s, pixel, 1.0, words)),
                Some(normalise) => {
                    let (a, b) = normalise.coefficients[self.image * 2 * channels..][..2 * channels].split_at(channels);
                    // Known to be this one, the usual one is chosen once and not for each vector.
                    match normalise.activation {
                        Activation::Silu => {
                            normalise_pixels::<S, P, A>(s, pixels, (a, b), Activation::Silu, grid);
                        }
                        activation => normalise_pixels::<S, P, A>(s, pixels, (a, b), activation, grid),
                    }
                }
            }
        }
        grid
    }
}

/// Pixels after a norm and an activation, as words.
#[inline(always)]
fn normalise_pixels<'a, S: Simd, P: Words, A: Element>(
    s: S,
    pixels: impl Iterator<Item = (&'a [A], &'a mut [u32])>,
    (a, b): (&[f32], &[f32]),
    activation: Activation,
    grid: Grid,
) {
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (pixel, words) in pixels {
        let (whole, rest) = pixel.as_chunks::<LANES>();
        let (words, last) = words.split_at_mut(whole.len() * (LANES / P::GROUP));
        let coefficients = whole_a.iter().zip(whole_b);
        for ((xs, (a, b)), words) in whole.iter().zip(coefficients).zip(words.chunks_exact_mut(LANES / P::GROUP)) {
            let x = s.mul_add(A::load(s, xs), s.load(a), s.load(b));
            store_words::<S, P>(s, activation.apply(s, x), grid, words);
        }
        if !rest.is_empty() {
            let count = last.len().min(LANES / P::GROUP);
            let x = s.mul_add(load_up_to(s, rest), load_up_to(s, rest_a), load_up_to(s, rest_b));
            store_words::<S, P>(s, activation.apply(s, x), grid, &mut last[..count]);
        }
    }
}

/// Stores sixteen numbers as words, as bytes of `grid` where the product is in int8.
#[inline(always)]
fn store_words<S: Simd, P: Words>(s: S, xs: S::F32, grid: Grid, words: &mut [u32]) {
    if P::GROUP != Int8::GROUP {
        return P::store_words(s, xs, words);
    }
    // What stores bytes puts zero in their middle.
    let offset = grid.zero_point - ZERO_POINT;
    P::store_words(s, s.mul_add(xs, s.splat(1.0 / grid.scale), s.splat(offset)), words);
}
