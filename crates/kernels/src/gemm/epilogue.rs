use super::{MAX_VECTORS, Packed, load_f32, words::ZERO_POINT};
use crate::activation::Activation;
use crate::memory::{Line, Shared};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

/// What becomes of a product before it is written: `residual + gate · activation(product + bias)`, each where given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a, T> {
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
        if let Some(residual) = &self.residual {
            assert_eq!(residual.xs.len(), rows * columns, "the residual is not {rows}×{columns}");
            if let Some(gate) = &residual.gate {
                let groups = rows.div_ceil(gate.rows.max(1));
                assert_eq!(gate.values.len(), groups * columns, "the gate is not {groups}×{columns}");
            }
        }
    }
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

/// Asks for the lines of `out` that a tile will be written to, before the tile is computed: the rows lie far apart, and a
/// processor does not foresee the way from one to the next.
#[inline(always)]
pub(crate) fn prefetch_tile<S: Simd, T: Element>(s: S, place: Place, right: &Packed, out: &Shared<T>) {
    for r in 0..place.rows {
        let at = (place.row + r * place.row_step) * right.columns + place.column;
        for line in 0..(right.panel_vectors * LANES * size_of::<T>()).div_ceil(64) {
            s.prefetch_to_write(out.address(at + line * (64 / size_of::<T>())));
        }
    }
}

/// Writes a tile, rows of [`MAX_VECTORS`] lines, to `out`, rows of `right.columns` elements. `row_scales` are those of the tile's rows where the product
/// was in int8.
///
/// # Safety
/// No other thread may use this tile's part of `out` meanwhile.
#[inline(always)]
pub(crate) unsafe fn write_tile<S: Simd, T: Element>(
    s: S,
    tile: &[Line],
    place: Place,
    right: &Packed,
    row_scales: Option<&[f32]>,
    epilogue: &Epilogue<T>,
    out: &Shared<T>,
) {
    let width = right.columns;
    let end = width.min(place.column + right.panel_vectors * LANES);
    for (v, column) in (place.column..end).step_by(LANES).enumerate() {
        let columns = LANES.min(end - column);
        let of_columns = |xs: &[f32]| load_up_to(s, &xs[column..column + columns]);
        let bias = epilogue.bias.map_or(s.splat(0.0), of_columns);
        let (offset, scale) = match row_scales {
            Some(_) => (s.mul(of_columns(&right.byte_sums), s.splat(ZERO_POINT)), of_columns(&right.scales)),
            None => (s.splat(0.0), s.splat(1.0)),
        };
        // The gate of the rows before `gate_end`.
        let (mut gate, mut gate_end) = (s.splat(1.0), if has_gate(epilogue) { 0 } else { usize::MAX });
        for (r, lines) in tile.chunks_exact(MAX_VECTORS).enumerate().take(place.rows) {
            let row = place.row + r * place.row_step;
            let line = &lines[v];
            let product = match row_scales {
                None => load_f32(s, line),
                Some(scales) => {
                    let sums = s.sub(s.to_f32(s.load_bits(&line.0)), offset);
                    s.mul(sums, s.mul(scale, s.splat(scales[r])))
                }
            };
            let mut x = epilogue.activation.apply(s, s.add(product, bias));
            let at = row * width + column;
            if let Some(residual) = &epilogue.residual {
                let xs = load_up_to(s, &residual.xs[at..at + columns]);
                if row >= gate_end
                    && let Some(values) = &residual.gate
                {
                    let group = row / values.rows;
                    gate_end = (group + 1) * values.rows;
                    gate = load_up_to(s, &values.values[group * width + column..][..columns]);
                }
                x = s.mul_add(x, gate, xs);
            }
            // SAFETY: this part of the result is this tile's alone, as the caller promises.
            store_up_to(s, x, unsafe { out.part(at, columns) });
        }
    }
}

#[inline(always)]
fn has_gate<T>(epilogue: &Epilogue<T>) -> bool {
    epilogue.residual.as_ref().is_some_and(|residual| residual.gate.is_some())
}
