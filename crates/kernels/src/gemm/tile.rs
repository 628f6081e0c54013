//! The innermost loop of every matrix product: a tile of the result, kept in registers while it runs over the whole
//! depth.
//!
//! All products look alike here, since their operands come in groups of 32 bits along the depth: one f32, a pair of bf16,
//! or four bytes. A step takes, for each row of the tile, one group of the left matrix in all lanes, and multiplies it with
//! the groups of sixteen columns of the right matrix. The left matrix is read where it stands, row by row; the right one
//! has been packed so that the loop walks through it line by line.

use std::marker::PhantomData;

use super::Rows;
use crate::isa::Body;
use crate::memory::Line;
use crate::simd::{LANES, MATRIX_ROWS, Simd};

/// What is multiplied.
pub trait Product: 'static {
    /// Elements in a group of 32 bits.
    const GROUP: usize;
    type Sum<S: Simd>: Copy;
    fn zero<S: Simd>(s: S) -> Self::Sum<S>;
    fn multiply_add<S: Simd>(s: S, sum: Self::Sum<S>, left: u32, right: S::Bits) -> Self::Sum<S>;
    fn in_order<S: Simd>(s: S, sum: Self::Sum<S>) -> Self::Sum<S>;
    fn store<S: Simd>(s: S, sum: Self::Sum<S>, to: &mut Line);
}

/// f32 times f32, summed in f32.
pub struct F32;
/// bf16 times bf16, summed in f32.
pub(crate) struct Bf16;
/// Unsigned times signed bytes, summed in i32.
pub(crate) struct Int8;

impl Product for F32 {
    const GROUP: usize = 1;
    type Sum<S: Simd> = S::F32;
    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::F32 {
        s.splat(0.0)
    }
    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::F32, left: u32, right: S::Bits) -> S::F32 {
        s.mul_add(s.splat(f32::from_bits(left)), s.as_f32(right), sum)
    }
    #[inline(always)]
    fn in_order<S: Simd>(s: S, sum: S::F32) -> S::F32 {
        s.as_f32(s.in_order(s.as_bits(sum)))
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, sum: S::F32, to: &mut Line) {
        store_f32(s, sum, to);
    }
}

impl Product for Bf16 {
    const GROUP: usize = 2;
    type Sum<S: Simd> = S::F32;
    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::F32 {
        s.splat(0.0)
    }
    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::F32, left: u32, right: S::Bits) -> S::F32 {
        s.dot_bf16(sum, s.splat_bits(left), right)
    }
    #[inline(always)]
    fn in_order<S: Simd>(s: S, sum: S::F32) -> S::F32 {
        s.as_f32(s.in_order(s.as_bits(sum)))
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, sum: S::F32, to: &mut Line) {
        store_f32(s, sum, to);
    }
}

impl Product for Int8 {
    const GROUP: usize = 4;
    type Sum<S: Simd> = S::Bits;
    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::Bits {
        s.splat_bits(0)
    }
    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::Bits, left: u32, right: S::Bits) -> S::Bits {
        s.dot_u8_i8(sum, s.splat_bits(left), right)
    }
    #[inline(always)]
    fn in_order<S: Simd>(s: S, sum: S::Bits) -> S::Bits {
        s.in_order(sum)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, sum: S::Bits, to: &mut Line) {
        s.store_bits(sum, &mut to.0);
    }
}

/// A line of f32.
#[inline(always)]
pub(crate) fn load_f32<S: Simd>(s: S, line: &Line) -> S::F32 {
    s.as_f32(s.load_bits(&line.0))
}

/// Writes a line of f32.
#[inline(always)]
pub(crate) fn store_f32<S: Simd>(s: S, v: S::F32, line: &mut Line) {
    s.store_bits(s.as_bits(v), &mut line.0);
}

/// The left matrix of a tile: rows of groups at equal distances. Its depth is a run of `steps` groups for each of
/// `segments`: one for a plain product, one for each tap of a convolution.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub words: &'a [u32],
    /// Where the first row starts.
    pub start: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// Where each run starts, from the start of its row.
    pub segments: &'a [usize],
    /// Groups in a run.
    pub steps: usize,
}

/// The right matrix of a tile, as [`super::Packed`] has it.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub lines: &'a [Line],
    pub soon: Soon,
}

impl<'a> Right<'a> {
    /// With the lines themselves brought nearer a little before their use. The processor foresees the way along them only
    /// to the end of each page.
    #[inline(always)]
    pub(crate) fn new(lines: &'a [Line]) -> Self {
        const AHEAD: usize = 48;
        Self { lines, soon: Soon { next: lines.as_ptr().wrapping_add(AHEAD).cast(), step: size_of::<Line>(), tile: 0 } }
    }
}

/// What a tile brings nearer while it is computed.
#[derive(Clone, Copy)]
pub(crate) struct Soon {
    next: *const u8,
    /// Bytes from one vector of a step to the next.
    step: usize,
    tile: usize,
}

impl Soon {
    /// Memory that will be read soon, spread over the `vectors` (over all steps) of each of `tiles` tiles.
    #[inline(always)]
    pub(crate) fn new<T>(memory: &[T], tiles: usize, vectors: usize) -> Self {
        let tile = size_of_val(memory).div_ceil(tiles);
        Self { next: memory.as_ptr().cast(), step: tile.div_ceil(vectors).min(size_of::<Line>()), tile }
    }

    /// Tile `index`'s share.
    #[inline(always)]
    pub(crate) fn of_tile(self, index: usize) -> Self {
        Self { next: self.next.wrapping_add(index * self.tile), ..self }
    }
}

/// The most rows of a tile in any set of instructions, and the most vectors across one.
pub(crate) const MAX_ROWS: usize = MATRIX_ROWS;
pub(crate) const MAX_VECTORS: usize = 2;

/// Room for any tile.
pub(crate) const TILE_LINES: usize = MAX_ROWS * MAX_VECTORS;

/// Computes `rows` × (`vectors` · 16) sums into `tile`, whose rows start `tile_stride` lines after each other. `right` holds
/// `vectors` lines a step, segment after segment. `rows` is 1 to [`Simd::tile_rows`], `vectors` 1 to
/// [`Simd::TILE_VECTORS`].
#[inline(always)]
pub(crate) fn multiply<S: Simd, P: Product>(
    s: S,
    left: Left,
    right: Right,
    (rows, vectors): (usize, usize),
    tile: &mut [Line],
    tile_stride: usize,
) {
    if P::GROUP > 1 && s.has_matrices() {
        check(left, right, (rows, vectors), tile, tile_stride, MATRIX_ROWS, MAX_VECTORS);
        let operand = (right.lines.as_ptr().cast(), vectors * LANES);
        let soon = (right.soon.next, vectors * right.soon.step);
        // SAFETY: what is asked for has just been checked.
        unsafe { s.multiply_matrices(P::GROUP, left, operand, (rows, vectors), tile.as_mut_ptr(), tile_stride, soon) };
        return;
    }
    s.apart(Tile { left, right, rows, vectors, tile, tile_stride, product: PhantomData::<P> });
}

/// As [`multiply`] of bf16, with a right operand whose rows stand at any distance, by instructions for whole matrices, which
/// must be there. The rows of the tile start [`MAX_VECTORS`] lines after each other.
#[inline(always)]
pub(crate) fn multiply_rows<S: Simd>(
    s: S,
    left: Left,
    right: Rows,
    (rows, vectors): (usize, usize),
    tile: &mut [Line],
) {
    assert!(s.has_matrices() && (1..=MATRIX_ROWS).contains(&rows) && (1..=MAX_VECTORS).contains(&vectors));
    assert!(rows * MAX_VECTORS <= tile.len() && left.steps > 0);
    let last_row = left.start + (rows - 1) * left.row_stride;
    assert!(left.segments.len() == 1 && last_row + left.segments[0] + left.steps <= left.words.len());
    assert!(right.start + (left.steps - 1) * right.stride + vectors * LANES <= right.words.len());
    let operand = (right.words.as_ptr().wrapping_add(right.start), right.stride);
    let soon = (right.words.as_ptr().cast(), 0);
    // SAFETY: what is asked for has just been checked.
    unsafe {
        let tile = tile.as_mut_ptr();
        s.multiply_matrices(Bf16::GROUP, left, operand, (rows, vectors), tile, MAX_VECTORS, soon);
    }
}

/// Asserts that a tile is of a possible size, and that the operands and the tile have all of it.
#[inline(always)]
fn check(
    left: Left,
    right: Right,
    (rows, vectors): (usize, usize),
    tile: &[Line],
    tile_stride: usize,
    most_rows: usize,
    most_vectors: usize,
) {
    assert!((1..=most_rows).contains(&rows) && (1..=most_vectors).contains(&vectors));
    assert!(vectors <= tile_stride && (rows - 1) * tile_stride + vectors <= tile.len());
    assert!(right.lines.len() >= left.segments.len() * left.steps * vectors);
    let last_row = left.start + (rows - 1) * left.row_stride;
    assert!(left.segments.iter().all(|segment| last_row + segment + left.steps <= left.words.len()));
}

/// See [`multiply`].
struct Tile<'a, P> {
    left: Left<'a>,
    right: Right<'a>,
    rows: usize,
    vectors: usize,
    tile: &'a mut [Line],
    tile_stride: usize,
    product: PhantomData<P>,
}

impl<P: Product> Body for Tile<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { left, right, rows, vectors, tile, tile_stride, .. } = self;
        check(left, right, (rows, vectors), tile, tile_stride, S::TILE_ROWS, S::TILE_VECTORS);
        macro_rules! tiles {
            ($($rows:literal)+) => {
                match (rows, vectors) {
                    $(
                        // SAFETY: the assertions above are what `multiply_of_size` asks for.
                        ($rows, 1) if S::TILE_ROWS >= $rows => unsafe { multiply_of_size::<S, P, $rows, 1>(s, left, right, tile, tile_stride) },
                        // SAFETY: as above.
                        ($rows, 2) if S::TILE_ROWS >= $rows && S::TILE_VECTORS >= 2 => unsafe {
                            multiply_of_size::<S, P, $rows, 2>(s, left, right, tile, tile_stride)
                        },
                    )+
                    _ => unreachable!("a tile has at most {} rows and {} vectors", S::TILE_ROWS, S::TILE_VECTORS),
                }
            };
        }
        tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

/// How many lines of the right matrix ahead of their use they are brought into the first-level cache: a few steps. Some
/// processors do not foresee that they come from the second-level cache, tile after tile.
const AHEAD: usize = 32;

/// # Safety
/// Every row of `left` must lie within its words, `right` must hold `V` lines for every step of every segment, and `tile`
/// `V` lines in each of `R` rows.
#[inline(always)]
unsafe fn multiply_of_size<S: Simd, P: Product, const R: usize, const V: usize>(
    s: S,
    left: Left,
    right: Right,
    tile: &mut [Line],
    tile_stride: usize,
) {
    let mut sums = [[P::zero(s); V]; R];
    let Soon { next: mut ahead, step: ahead_step, .. } = right.soon;
    let mut right = right.lines.as_ptr();
    for &segment in left.segments {
        // SAFETY: the caller promises that what is read lies within the words and the lines.
        unsafe {
            let mut group = left.words.as_ptr().add(left.start + segment);
            let mut steps = left.steps;
            // Steps written out one after the other, so that finding their addresses costs little beside them.
            macro_rules! steps {
                ($($step:literal)+) => {
                    $(
                        let mut columns = [s.splat_bits(0); V];
                        for (v, columns) in columns.iter_mut().enumerate() {
                            *columns = s.load_bits(&(*right.add($step * V + v)).0);
                            s.prefetch(ahead);
                            s.prefetch(right.wrapping_add($step * V + v + AHEAD));
                            ahead = ahead.wrapping_add(ahead_step);
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let left = *group.add(r * left.row_stride + $step);
                            for v in 0..V {
                                sums[v] = P::in_order(s, P::multiply_add(s, sums[v], left, columns[v]));
                            }
                        }
                    )+
                    let count = [$($step),+].len();
                    group = group.add(count);
                    right = right.add(count * V);
                    steps -= count;
                };
            }
            while steps >= 4 {
                steps!(0 1 2 3);
            }
            while steps > 0 {
                steps!(0);
            }
        }
    }
    let mut row = tile.as_mut_ptr();
    for sums in &sums {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises that the tile has these lines.
            P::store(s, *sum, unsafe { &mut *row.add(v) });
        }
        row = row.wrapping_add(tile_stride);
    }
}
