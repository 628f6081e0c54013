//! Writes a sheet of scenes, and prints their captions.
//!
//! `cargo run --release -p pixart-scenes --example contact_sheet -- OUT.png [FIRST_SEED]`

use pixart_scenes::{Scene, Split};

/// Pixels of a scene's side.
const SIDE: u32 = 128;

/// Scenes in a row and in a column.
const COUNT: u32 = 8;

/// Pixels between two scenes.
const GAP: u32 = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name the PNG file to write")?;
    let first: u64 = arguments.next().map_or(Ok(0), |seed| seed.parse())?;

    let side = COUNT * (SIDE + GAP) + GAP;
    let mut sheet = image::RgbImage::from_pixel(side, side, image::Rgb([255; 3]));
    for index in 0..COUNT * COUNT {
        let scene = Scene::random(first + u64::from(index), Split::Train);
        println!("{index:2} {}", scene.caption(u64::from(index)));
        let picture = image::RgbImage::from_raw(SIDE, SIDE, scene.draw(SIDE).into_pixels()).ok_or("too few pixels")?;
        let (x, y) = (GAP + index % COUNT * (SIDE + GAP), GAP + index / COUNT * (SIDE + GAP));
        image::imageops::replace(&mut sheet, &picture, i64::from(x), i64::from(y));
    }
    sheet.save(path)?;
    Ok(())
}
