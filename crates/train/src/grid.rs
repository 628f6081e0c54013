//! Pictures beside each other.

use image::RgbImage;
use image::imageops::replace;

/// Rows of pictures as one; all get the place of the largest.
pub fn grid(rows: &[Vec<RgbImage>]) -> RgbImage {
    let sizes = || rows.iter().flatten().map(RgbImage::dimensions);
    let (width, height) =
        (sizes().map(|size| size.0).max().unwrap_or(0), sizes().map(|size| size.1).max().unwrap_or(0));
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut grid = RgbImage::new(width * columns as u32, height * rows.len() as u32);
    for (row, pictures) in rows.iter().enumerate() {
        for (column, picture) in pictures.iter().enumerate() {
            replace(&mut grid, picture, i64::from(width) * column as i64, i64::from(height) * row as i64);
        }
    }
    grid
}
