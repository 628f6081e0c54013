//! The lens: any picture in perceptual colours on a grid of fixed size, without the finest noise.

use crate::lab::Lab;
use crate::palette::Rgb;
use crate::picture::Picture;

/// Cells of the grid on each side.
pub(crate) const SIDE: usize = 128;

/// A value for every cell of the grid, row after row.
pub(crate) struct Plane(Vec<Lab>);

impl Plane {
    /// A picture, resized to the grid and with every channel replaced by its median over 3×3 cells. `None` for an empty
    /// picture.
    pub(crate) fn through_lens(picture: &Picture) -> Option<Self> {
        if picture.width() == 0 || picture.height() == 0 {
            return None;
        }
        let cells = if (picture.width(), picture.height()) == (SIDE, SIDE) {
            picture.pixels().as_chunks().0.to_vec()
        } else {
            resized(picture)
        };
        Some(Self(without_specks(&cells).into_iter().map(Lab::of).collect()))
    }

    pub(crate) fn cells(&self) -> &[Lab] {
        &self.0
    }
}

/// The mean of bilinear samples, enough of them that every pixel counts.
fn resized(picture: &Picture) -> Vec<Rgb> {
    let (width, height) = (picture.width(), picture.height());
    let samples = [width.div_ceil(SIDE), height.div_ceil(SIDE)];
    let pixel = |x: usize, y: usize, channel: usize| f32::from(picture.pixels()[(y * width + x) * 3 + channel]);
    // The two pixels around a sample, and how much the second counts.
    let around = |cell: usize, sample: usize, samples: usize, length: usize| {
        let part = (cell as f32 + (sample as f32 + 0.5) / samples as f32) / SIDE as f32;
        let at = (part * length as f32 - 0.5).clamp(0.0, (length - 1) as f32);
        (at as usize, (at as usize + 1).min(length - 1), at.fract())
    };
    let count = (samples[0] * samples[1]) as f32;
    (0..SIDE * SIDE)
        .map(|cell| {
            let mut sum = [0.0; 3];
            for sample in 0..samples[0] * samples[1] {
                let (left, right, across) = around(cell % SIDE, sample % samples[0], samples[0], width);
                let (above, below, down) = around(cell / SIDE, sample / samples[0], samples[1], height);
                for (channel, sum) in sum.iter_mut().enumerate() {
                    let upper = pixel(left, above, channel) * (1.0 - across) + pixel(right, above, channel) * across;
                    let lower = pixel(left, below, channel) * (1.0 - across) + pixel(right, below, channel) * across;
                    *sum += upper * (1.0 - down) + lower * down;
                }
            }
            sum.map(|sum| (sum / count).round() as u8)
        })
        .collect()
}

fn without_specks(cells: &[Rgb]) -> Vec<Rgb> {
    (0..SIDE * SIDE)
        .map(|cell| {
            let (x, y) = (cell % SIDE, cell / SIDE);
            let columns = [x.saturating_sub(1), x, (x + 1).min(SIDE - 1)];
            let rows = [y.saturating_sub(1), y, (y + 1).min(SIDE - 1)].map(|row| row * SIDE);
            std::array::from_fn(|channel| {
                let mut values = [0; 9];
                for (value, (row, column)) in
                    values.iter_mut().zip(rows.iter().flat_map(|row| columns.map(|column| (row, column))))
                {
                    *value = cells[row + column][channel];
                }
                median(values)
            })
        })
        .collect()
}

/// The median of nine, by the network of Devillard ("Fast median search", 1998).
fn median(mut values: [u8; 9]) -> u8 {
    const ORDER: [(usize, usize); 19] = [
        (1, 2),
        (4, 5),
        (7, 8),
        (0, 1),
        (3, 4),
        (6, 7),
        (1, 2),
        (4, 5),
        (7, 8),
        (0, 3),
        (5, 8),
        (4, 7),
        (3, 6),
        (1, 4),
        (2, 5),
        (4, 7),
        (4, 2),
        (6, 4),
        (4, 2),
    ];
    for (low, high) in ORDER {
        (values[low], values[high]) = (values[low].min(values[high]), values[low].max(values[high]));
    }
    values[4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_sorted_values() {
        let mut state = 1_u32;
        for _ in 0..500 {
            let values: [u8; 9] = std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            });
            let mut sorted = values;
            sorted.sort_unstable();
            assert_eq!(median(values), sorted[4]);
        }
    }
}
