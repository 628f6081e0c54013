//! The lens: any picture in perceptual colours on a grid of fixed size, without the finest noise.

use crate::lab::Lab;
use crate::palette::Rgb;
use crate::picture::Picture;

/// Cells of the grid on each side.
pub(crate) const SIDE: usize = 128;

/// Bytes whose medians are found together; the bytes of a row can be divided by it.
const LANES: usize = 32;

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
    // Rows as bytes, with the outermost cells repeated, so that every byte has its eight neighbours of the same channel
    // at fixed distances.
    let rows: Vec<Vec<u8>> =
        cells.chunks_exact(SIDE).map(|row| [&row[..1], row, &row[SIDE - 1..]].concat().into_flattened()).collect();
    let mut bytes = vec![0; SIDE * SIDE * 3];
    for (index, row) in bytes.chunks_exact_mut(SIDE * 3).enumerate() {
        let three = [index.saturating_sub(1), index, (index + 1).min(SIDE - 1)].map(|row| rows[row].as_slice());
        for (chunk, bytes) in row.as_chunks_mut().0.iter_mut().enumerate() {
            let at = |neighbour: usize| {
                let start = chunk * LANES + neighbour % 3 * 3;
                three[neighbour / 3][start..].first_chunk().copied().unwrap_or_default()
            };
            *bytes = medians(std::array::from_fn(at));
        }
    }
    bytes.as_chunks().0.to_vec()
}

/// The medians of nine in every lane, by the network of Devillard ("Fast median search", 1998).
fn medians(mut values: [[u8; LANES]; 9]) -> [u8; LANES] {
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
        let (a, b) = (values[low], values[high]);
        values[low] = std::array::from_fn(|lane| a[lane].min(b[lane]));
        values[high] = std::array::from_fn(|lane| a[lane].max(b[lane]));
    }
    values[4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_sorted_values() {
        let mut state = 1_u32;
        for _ in 0..50 {
            let values: [[u8; LANES]; 9] = std::array::from_fn(|_| {
                std::array::from_fn(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
            });
            let found = medians(values);
            for lane in 0..LANES {
                let mut sorted = values.map(|lanes| lanes[lane]);
                sorted.sort_unstable();
                assert_eq!(found[lane], sorted[4]);
            }
        }
    }
}
