//! Pictures as bytes.

/// An RGB picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// Why bytes are no picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a picture of {width}×{height} pixels has {expected} bytes of RGB, not {found}", expected = width * height * 3)]
pub struct PictureError {
    width: usize,
    height: usize,
    found: usize,
}

impl Picture {
    /// A picture from sRGB bytes `[height, width, 3]`.
    ///
    /// # Errors
    ///
    /// If the number of bytes is not `height * width * 3`.
    pub fn from_rgb(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, PictureError> {
        if pixels.len() != width * height * 3 {
            return Err(PictureError { width, height, found: pixels.len() });
        }
        Ok(Self { width, height, pixels })
    }

    /// Pixels from left to right.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The sRGB bytes `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The sRGB bytes `[height, width, 3]`, taken out.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}
