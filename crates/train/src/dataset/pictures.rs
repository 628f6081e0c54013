//! Files that are pictures.

use std::path::Path;

use image::{Rgb, RgbImage};

/// Whether a file is a picture by its name.
pub(super) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| matches!(extension.as_str(), "png" | "jpg" | "jpeg" | "webp"))
}

/// Decodes a picture, before white where it is transparent.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    pixart::decode_picture(bytes, Rgb([255; 3])).map_err(|error| format!("is no picture that can be read: {error}"))
}
