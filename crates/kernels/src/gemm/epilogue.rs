use super::{MAX_VECTORS, Packed, Product, load_f32};
use crate::activation::Activation;
use crate::memory::{Line, Shared};
use crate::simd::{Element, LANES, MATRIX_ROWS, Simd, load_up_to, store_up_to};

/// What becomes of a product before it is written: `residual + gate · activation(product + addend + bias)`, each where
/// given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a, T> {
    /// `[rows, columns]`: another product, of which this one is a part.
    pub addend: Option<&'a [f32]>,
    /// `[columns]`.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last.
    pub residual: Option<Residual<'a, T>>,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a, T> {
    /// Of the shape of the result.
    pub xs: &'a [T],
    /// What the product is multiplied with first.
    pub gate: Option<Gate<'a>>,
}

/// A factor for each column, the same for `rows` rows after each other.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a> {
    /// `[groups, columns]`.
    pub values: &'a [f32],
    /// Rows of a group.
    pub rows: usize,
}

impl<T: Element> Epilogue<'_, T> {
    /// # Panics
    /// Something has another shape than a result of `rows` × `columns`.
    pub(crate) fn check(&self, rows: usize, columns: usize) {
        assert!(self.bias.is_none_or(|bias| bias.len() == columns), "the bias has not {columns} elements");
        assert!(self.addend.is_none_or(|addend| addend.len() == rows * columns), "the addend is not {rows}×{columns}");
        if let Some(residual) = &self.residual {
            assert_eq!(residual.xs.len(), rows * columns, "the residual is not {rows}×{columns}");
            if let Some(gate) = &residual.gate {
                let groups = rows.div_ceil(gate.rows.max(1));
                assert_eq!(gate.values.len(), groups * columns, "the gate is not {groups}×{columns}");
            }
        }
    }
}

/// How the sums of bytes that a tile of a product in int8 holds become numbers.
#[derive(Clone, Copy)]
pub(crate) struct Quantised<'a> {
    pub scales: Scales<'a>,
    /// What was added to the bytes of the left matrix.
    pub zero_point: f32,
    /// Of each column, the sum of the right matrix's bytes.
    pub sums: &'a [f32; MAX_VECTORS * LANES],
}

/// What the left matrix was divided by.
#[derive(Clone, Copy)]
pub(crate) enum Scales<'a> {
    /// Each row of the tile by its own.
    Rows(&'a [f32]),
    /// All by the same.
    One(f32),
}

/// Where the rows of a tile belong in the result.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The row of the result that the tile's first row is, and from each to the next.
    pub row: usize,
    pub row_step: usize,
    pub rows: usize,
    /// The first column.
    pub column: usize,
    /// Whether whole lines go past the caches; see [`goes_past_caches`].
    pub past_caches: bool,
}

/// Whether a result of rows of `columns` elements, made by tiles of so many rows, is best written past the caches. Instructions for
/// whole matrices make it faster than a large one finds its way through the caches, where each line is read before
/// it is written, and rows that lie far apart push each other out. Whoever writes so calls [`Simd::finish_lines`] in the end.
pub(crate) fn goes_past_caches<T>(tile_rows: usize, columns: usize, out: &Shared<T>) -> bool {
    /// More than the second-level caches of the threads hold.
    const LARGE: usize = 16 << 20;
    let is_whole_lines = |bytes: usize| bytes.is_multiple_of(size_of::<Line>());
    let is_in_lines = is_whole_lines(out.address(0) as usize) && is_whole_lines(columns * size_of::<T>());
    tile_rows == MATRIX_ROWS && is_in_lines && out.size_in_bytes() >= LARGE
}

/// Asks for what a tile will be written to, and for what is added to it, before the tile is computed: the rows lie far
/// apart, and a processor does not foresee the way from one to the next.
#[inline(always)]
pub(crate) fn prefetch_tile<S: Simd, T: Element>(
    s: S,
    place: Place,
    right: &Packed,
    epilogue: &Epilogue<T>,
    out: &Shared<T>,
) {
    let in_line = 64 / size_of::<T>();
    for r in 0..place.rows {
        let at = (place.row + r * place.row_step) * right.columns + place.column;
        for at in (at..at + right.panel_vectors * LANES).step_by(in_line) {
            if !place.past_caches {
                s.prefetch_to_write(out.address(at));
            }
            if let Some(residual) = &epilogue.residual {
                s.prefetch(residual.xs.as_ptr().wrapping_add(at));
            }
        }
    }
}

/// Writes a tile of a product `P`, rows of [`MAX_VECTORS`] lines, to `out`, rows of `right.columns` elements. `quantised` is there
/// where the product is in int8.
///
/// # Safety
/// No other thread may use this tile's part of `out` meanwhile.
#[inline(always)]
pub(crate) unsafe fn write_tile<S: Simd, P: Product, T: Element>(
    s: S,
    tile: &[Line],
    place: Place,
    right: &Packed,
    quantised: Option<Quantised>,
    epilogue: &Epilogue<T>,
    out: &Shared<T>,
) {
    let columns = Columns::new(s, place, right, quantised, epilogue);
    let is_whole = columns.count == S::TILE_VECTORS * LANES;
    // One loop for each activation, and for tiles that are whole and not, so that nothing is decided again for each number.
    macro_rules! write_with {
        ($($activation:ident)+) => {
            match (epilogue.activation, is_whole) {
                $(
                    (activation @ Activation::$activation, true) =>
                        columns.write::<P, T, true>(s, tile, place, activation, epilogue, out),
                    (activation @ Activation::$activation, false) =>
                        columns.write::<P, T, false>(s, tile, place, activation, epilogue, out),
                )+
            }
        };
    }
    // SAFETY: as the caller promises.
    unsafe { write_with!(None Silu GeluTanh) }
}

/// What a tile's columns have in common in all rows.
struct Columns<'a, S: Simd> {
    /// Elements from row to row of the result.
    width: usize,
    count: usize,
    bias: [S::F32; MAX_VECTORS],
    scales: [S::F32; MAX_VECTORS],
    zeros: [S::F32; MAX_VECTORS],
    left_scales: Scales<'a>,
}

impl<'a, S: Simd> Columns<'a, S> {
    #[inline(always)]
    fn new<T>(s: S, place: Place, right: &Packed, quantised: Option<Quantised<'a>>, epilogue: &Epilogue<T>) -> Self {
        let count = (right.columns - place.column).min(S::TILE_VECTORS * LANES);
        let columns = place.column..place.column + count;
        let mut new = Self {
            width: right.columns,
            count,
            bias: [s.splat(0.0); MAX_VECTORS],
            scales: [s.splat(1.0); MAX_VECTORS],
            zeros: [s.splat(0.0); MAX_VECTORS],
            left_scales: Scales::One(1.0),
        };
        if let Some(bias) = epilogue.bias {
            new.bias = load_vectors(s, &bias[columns.clone()]);
        }
        if !right.scales.is_empty() {
            new.scales = load_vectors(s, &right.scales[columns]);
        }
        if let Some(quantised) = quantised {
            new.left_scales = quantised.scales;
            new.zeros = load_vectors(s, quantised.sums);
            for sum in &mut new.zeros {
                *sum = s.mul(*sum, s.splat(quantised.zero_point));
            }
        }
        new
    }

    /// Writes all rows.
    ///
    /// # Safety
    /// As for [`write_tile`]; all of the tile's columns are the result's where `WHOLE`.
    #[inline(always)]
    unsafe fn write<P: Product, T: Element, const WHOLE: bool>(
        &self,
        s: S,
        tile: &[Line],
        place: Place,
        activation: Activation,
        epilogue: &Epilogue<T>,
        out: &Shared<T>,
    ) {
        let count = if WHOLE { S::TILE_VECTORS * LANES } else { self.count };
        let vectors = count.div_ceil(LANES);
        // The gate of the rows before `gate_end`.
        let (mut gate, mut gate_end) = ([s.splat(1.0); MAX_VECTORS], 0);
        for (r, lines) in tile.as_chunks::<MAX_VECTORS>().0.iter().enumerate().take(place.rows) {
            let row = place.row + r * place.row_step;
            let at = row * self.width + place.column;
            // SAFETY: this part of the result is this tile's alone, as the caller promises.
            let out = unsafe { out.part(at, count) };
            let of_row = match self.left_scales {
                Scales::Rows(scales) => s.splat(scales[r]),
                Scales::One(scale) => s.splat(scale),
            };
            let mut xs = [s.splat(0.0); MAX_VECTORS];
            for v in 0..vectors {
                let product = match P::GROUP {
                    4 => {
                        let sums = s.sub(s.to_f32(s.load_bits(&lines[v].0)), self.zeros[v]);
                        s.mul(sums, s.mul(self.scales[v], of_row))
                    }
                    _ => s.mul(load_f32(s, &lines[v]), self.scales[v]),
                };
                let product = match &epilogue.addend {
                    Some(addend) => s.add(product, load_up_to(s, &addend[at..at + count][v * LANES..])),
                    None => product,
                };
                xs[v] = activation.apply(s, s.add(product, self.bias[v]));
            }
            if let Some(residual) = &epilogue.residual {
                if let Some(values) = &residual.gate
                    && row >= gate_end
                {
                    let group = row / values.rows;
                    gate_end = (group + 1) * values.rows;
                    gate = load_vectors(s, &values.values[group * self.width + place.column..][..count]);
                }
                let residual = &residual.xs[at..at + count];
                for v in 0..vectors {
                    xs[v] = s.mul_add(xs[v], gate[v], load_up_to(s, &residual[v * LANES..]));
                }
            }
            if WHOLE && place.past_caches {
                // SAFETY: as `past_caches` says, a line starts here, and two vectors fill one or two; any bits are a line and numbers.
                let lines = unsafe {
                    std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), size_of_val(out) / size_of::<Line>())
                };
                T::write_lines(s, xs, lines);
            } else {
                for v in 0..vectors {
                    store_up_to(s, xs[v], &mut out[v * LANES..]);
                }
            }
        }
    }
}

/// A tile's columns of a row; zeros beyond them.
#[inline(always)]
fn load_vectors<S: Simd>(s: S, xs: &[f32]) -> [S::F32; MAX_VECTORS] {
    let mut vectors = [s.splat(0.0); MAX_VECTORS];
    for (vector, xs) in vectors.iter_mut().zip(xs.chunks(LANES)) {
        *vector = load_up_to(s, xs);
    }
    vectors
}
