//! Pictures with captions.

mod scenes;

pub use scenes::ScenesDataset;

use image::RgbImage;

/// A picture and what may be said of it.
pub struct Item {
    /// The picture, at the size that it comes in.
    pub image: RgbImage,
    /// At least one caption.
    pub captions: Vec<String>,
}

/// A list of pictures with captions, in an order of its own.
pub trait Dataset: Sync {
    /// What it is, in words that tell it from others: features are only gone on with from the same one.
    fn description(&self) -> String;

    /// How many items there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to call an item in messages.
    fn name(&self, index: usize) -> String;

    /// Reads an item.
    ///
    /// # Errors
    /// Why it cannot be used: it is to be skipped.
    fn read(&self, index: usize) -> Result<Item, String>;
}
