//! Small systems of linear equations.

/// The solution of `matrix · x = right`, by Gaussian elimination with partial pivoting. `matrix`
/// is given by its rows and is square; where it is singular the solution is not finite.
pub(crate) fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for column in 0..size {
        let pivot = (column..size)
            .max_by(|a, b| matrix[*a][column].abs().total_cmp(&matrix[*b][column].abs()))
            .unwrap_or(column);
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        let pivot_row = matrix[column].clone();
        for (row, entries) in matrix.iter_mut().enumerate().skip(column + 1) {
            let factor = entries[column] / pivot_row[column];
            for (entry, pivot_entry) in entries.iter_mut().zip(&pivot_row).skip(column) {
                *entry -= factor * pivot_entry;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|entry| matrix[row][entry] * right[entry]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_what_needs_pivoting() {
        let matrix = vec![vec![0.0, 2.0, 1.0], vec![1.0, -1.0, 0.0], vec![3.0, 0.0, 1.0]];
        let found = solve(matrix, vec![7.0, -1.0, 6.0]);
        for (found, x) in found.into_iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - x).abs() < 1e-12);
        }
    }
}
