use crate::Matrix;
use crate::isa::{Body, Isa};
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// The largest absolute value of each column, by which those are found that 8 bits beside the others would not do for.
///
/// # Panics
/// A row's elements do not stand side by side.
pub fn column_maxima<T: Element>(isa: Isa, matrix: Matrix<T>) -> Vec<f32> {
    assert_eq!(matrix.column_stride, 1, "a row's elements stand side by side");
    let mut maxima = vec![0f32; matrix.columns];
    isa.run(Maxima { matrix, maxima: &mut maxima });
    maxima
}

struct Maxima<'a, T> {
    matrix: Matrix<'a, T>,
    maxima: &'a mut [f32],
}

impl<T: Element> Body for Maxima<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Matrix { data, rows, columns, row_stride, .. } = self.matrix;
        for row in 0..rows {
            let xs = &data[row * row_stride..][..columns];
            for_each_vector!(columns, |start, vector| {
                let x = vector::load(s, xs, start);
                let largest = s.max(vector::load(s, self.maxima, start), s.max(x, s.sub(s.splat(0.0), x)));
                vector::store(s, largest, self.maxima, start);
            });
        }
    }
}
