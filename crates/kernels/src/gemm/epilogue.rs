use super::{MAX_VECTORS, Packed, load_f32};
use crate::activation::Activation;
use crate::memory::{Line, Shared};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

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
            s.prefetch_to_write(out.address(at));
            if let Some(residual) = &epilogue.residual {
                s.prefetch(residual.xs.as_ptr().wrapping_add(at));
            }
        }
    }
}

/// Writes a tile, rows of [`MAX_VECTORS`] lines, to `out`, rows of `right.columns` elements. `quantised` is there where the
/// product was in int8.
///
/// # Safety
/// No other thread may use this tile's part of `out` meanwhile.
#[inline(always)]
pub(crate) unsafe fn write_tile<S: Simd, T: Element>(
    s: S,
    tile: &[Line],
    place: Place,
    right: &Packed,
    quantised: Option<Quantised>,
    epilogue: &Epilogue<T>,
    out: &Shared<T>,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match right.columns - place.column >= S::TILE_VECTORS * LANES {
            true => write_columns::<S, T, true>(s, tile, place, right, quantised, epilogue, out),
            false => write_columns::<S, T, false>(s, tile, place, right, quantised, epilogue, out),
        }
    }
}

/// As [`write_tile`], of a tile all of whose columns are the result's where `WHOLE`.
///
/// # Safety
/// As for [`write_tile`].
#[inline(always)]
unsafe fn write_columns<S: Simd, T: Element, const WHOLE: bool>(
    s: S,
    tile: &[Line],
    place: Place,
    right: &Packed,
    quantised: Option<Quantised>,
    epilogue: &Epilogue<T>,
    out: &Shared<T>,
) {
    let width = right.columns;
    let count = if WHOLE { S::TILE_VECTORS * LANES } else { width - place.column };
    let vectors = count.div_ceil(LANES);
    let columns = place.column..place.column + count;
    let mut bias = [s.splat(0.0); MAX_VECTORS];
    if let Some(values) = epilogue.bias {
        bias = load_vectors(s, &values[columns.clone()]);
    }
    let (mut zeros, mut scales) = ([s.splat(0.0); MAX_VECTORS], [s.splat(1.0); MAX_VECTORS]);
    let is_scaled = !right.scales.is_empty();
    if is_scaled {
        scales = load_vectors(s, &right.scales[columns.clone()]);
    }
    if let Some(quantised) = &quantised {
        zeros = load_vectors(s, quantised.sums);
        for sum in &mut zeros {
            *sum = s.mul(*sum, s.splat(quantised.zero_point));
        }
    }
    // The gate of the rows before `gate_end`.
    let (mut gate, mut gate_end) = ([s.splat(1.0); MAX_VECTORS], 0);
    for (r, lines) in tile.chunks_exact(MAX_VECTORS).enumerate().take(place.rows) {
        let row = place.row + r * place.row_step;
        let at = row * width + place.column;
        // SAFETY: this part of the result is this tile's alone, as the caller promises.
        let out = unsafe { out.part(at, count) };
        let mut xs = [s.splat(0.0); MAX_VECTORS];
        for v in 0..vectors {
            let product = match &quantised {
                None if is_scaled => s.mul(load_f32(s, &lines[v]), scales[v]),
                None => load_f32(s, &lines[v]),
                Some(quantised) => {
                    let sums = s.sub(s.to_f32(s.load_bits(&lines[v].0)), zeros[v]);
                    let of_row = match quantised.scales {
                        Scales::Rows(scales) => scales[r],
                        Scales::One(scale) => scale,
                    };
                    s.mul(sums, s.mul(scales[v], s.splat(of_row)))
                }
            };
            let product = match &epilogue.addend {
                Some(addend) => s.add(product, load_up_to(s, &addend[at..at + count][v * LANES..])),
                None => product,
            };
            xs[v] = epilogue.activation.apply(s, s.add(product, bias[v]));
        }
        if let Some(residual) = &epilogue.residual {
            if let Some(values) = &residual.gate
                && row >= gate_end
            {
                let group = row / values.rows;
                gate_end = (group + 1) * values.rows;
                gate = load_vectors(s, &values.values[group * width..][columns.clone()]);
            }
            let residual = &residual.xs[at..at + count];
            for v in 0..vectors {
                xs[v] = s.mul_add(xs[v], gate[v], load_up_to(s, &residual[v * LANES..]));
            }
        }
        for v in 0..vectors {
            store_up_to(s, xs[v], &mut out[v * LANES..]);
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
