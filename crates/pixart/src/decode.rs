//! Files that are pictures.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, ImageResult, Rgb, RgbImage};

/// Decodes a picture of any of the usual formats, turned as its camera says, before `background` where it is transparent.
///
/// # Errors
/// Bytes that are no picture.
pub fn decode_picture(bytes: &[u8], background: Rgb<u8>) -> ImageResult<RgbImage> {
    let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    if !picture.color().has_alpha() {
        return Ok(picture.into_rgb8());
    }
    let picture = picture.into_rgba8();
    Ok(RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0;
        let over = |(colour, behind): (u8, u8)| {
            let (alpha, rest) = (u32::from(alpha), 255 - u32::from(alpha));
            ((u32::from(colour) * alpha + u32::from(behind) * rest + 127) / 255) as u8
        };
        let [red, green, blue] = background.0;
        Rgb([(r, red), (g, green), (b, blue)].map(over))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_transparent_shows_the_background() -> ImageResult<()> {
        let picture = image::RgbaImage::from_fn(2, 1, |x, _| image::Rgba([10, 20, 30, if x == 0 { 0 } else { 255 }]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png)?;
        for background in [0, 255] {
            let decoded = decode_picture(bytes.get_ref(), Rgb([background; 3]))?;
            assert_eq!(decoded.into_raw(), [background, background, background, 10, 20, 30]);
        }
        assert!(decode_picture(b"no picture", Rgb([0; 3])).is_err());
        Ok(())
    }
}
