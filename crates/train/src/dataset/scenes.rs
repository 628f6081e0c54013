use image::RgbImage;
use pixart_scenes::{Scene, Split};

use super::{Dataset, Item};

/// Different wordings that a scene is given.
const CAPTIONS: u64 = 4;

/// The world of scenes, as much of it as is wanted.
pub struct ScenesDataset {
    /// How many scenes.
    pub count: usize,
    /// Width and height of a picture in pixels.
    pub size: usize,
}

impl Dataset for ScenesDataset {
    fn description(&self) -> String {
        format!("{} scenes of {} pixels", self.count, self.size)
    }

    fn len(&self) -> usize {
        self.count
    }

    fn name(&self, index: usize) -> String {
        format!("scene {index}")
    }

    fn read(&self, index: usize) -> Result<Item, String> {
        let scene = Scene::random(index as u64, Split::Train);
        let size = self.size as u32;
        let image = RgbImage::from_raw(size, size, scene.draw(size).pixels().to_vec());
        let image = image.ok_or_else(|| format!("a picture of {size} pixels"))?;
        let first = CAPTIONS * index as u64;
        let wordings = first..first + CAPTIONS;
        Ok(Item { image, captions: wordings.map(|wording| scene.caption(wording)).collect() })
    }
}
