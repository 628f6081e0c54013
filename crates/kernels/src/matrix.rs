use crate::simd::Element;

/// A matrix in a slice, with any distance between rows and between columns.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// `rows` × `columns` elements, row after row.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that start `row_stride` elements after each other, as those of a part of a wider matrix do.
    ///
    /// # Panics
    /// The slice is too short.
    pub fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
        assert!(
            needed <= data.len(),
            "a matrix of {rows}×{columns}, {row_stride} from row to row, needs {needed} elements, not {}",
            data.len()
        );
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns it has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Columns `start .. start + columns` of it.
    ///
    /// # Panics
    /// It has fewer.
    pub fn part(self, start: usize, columns: usize) -> Self {
        assert!(start + columns <= self.columns, "columns {start} to {} of {}", start + columns, self.columns);
        let data = &self.data[(start * self.column_stride).min(self.data.len())..];
        Self { data, columns, ..self }
    }

    /// Rows as columns; nothing moves.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// An element.
    ///
    /// # Panics
    /// It has no such row or column.
    pub fn get(&self, row: usize, column: usize) -> T {
        assert!(row < self.rows && column < self.columns, "element {row}, {column} of {}×{}", self.rows, self.columns);
        self.at(row, column)
    }

    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> T {
        self.data[row * self.row_stride + column * self.column_stride]
    }
}
