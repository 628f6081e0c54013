//! Pictures with captions.

mod folder;
mod pictures;
mod scenes;
mod tar;

pub use folder::FolderDataset;
pub use scenes::ScenesDataset;
pub use tar::TarDataset;

use std::path::PathBuf;

use image::RgbImage;

use crate::{Error, Result};

/// A picture and what may be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The picture, upright, at the size that it comes in.
    pub image: RgbImage,
    /// At least one caption.
    pub captions: Vec<String>,
}

/// What is where in a picture: maps of classes over its cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// How many classes each map has.
    pub classes: Vec<usize>,
    /// The class of each cell, `[maps, side, side]`.
    pub cells: Vec<u8>,
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

    /// What is where in an item, in `side` × `side` cells, where the dataset knows.
    fn layout(&self, _index: usize, _side: usize) -> Option<Layout> {
        None
    }

    /// Reads an item.
    ///
    /// # Errors
    /// Why it cannot be used: it is to be skipped.
    fn read(&self, index: usize) -> Result<Item, String>;
}

/// Opens what a user has: a folder of pictures, a folder of `.tar` shards, or some shards.
///
/// # Errors
/// Nothing there, no pictures in it, or a list of captions that cannot be read.
pub fn open_dataset(paths: &[PathBuf]) -> Result<Box<dyn Dataset>> {
    let is_tar = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tar");
    match paths {
        [folder] if folder.is_dir() => {
            let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
            let mut shards: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_tar).collect();
            shards.sort();
            match shards.is_empty() {
                true => Ok(Box::new(FolderDataset::open(folder)?)),
                false => Ok(Box::new(TarDataset::open(&shards)?)),
            }
        }
        shards if !shards.is_empty() && shards.iter().all(is_tar) => Ok(Box::new(TarDataset::open(shards)?)),
        paths => {
            let other = paths.iter().find(|path| !is_tar(path)).cloned().unwrap_or_default();
            let what = if other.exists() { "is neither a folder nor a .tar shard" } else { "is not there" };
            Err(Error::folder(&other, format!("{what}; give one folder of pictures, or .tar shards")))
        }
    }
}
