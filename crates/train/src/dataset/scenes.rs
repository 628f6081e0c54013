use image::RgbImage;
use pixart_scenes::{Colour, Fill, Kind, Object, Scene, Split};

use super::{Dataset, Item, Layout};

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

    /// Kind, colour and fill of the object in each cell, from 1; 0 where there is none.
    fn layout(&self, index: usize, side: usize) -> Option<Layout> {
        fn place<T: PartialEq>(all: &[T], one: T) -> u8 {
            all.iter().position(|other| *other == one).map_or(0, |place| place as u8 + 1)
        }
        let scene = Scene::random(index as u64, Split::Train);
        let occupants = scene.occupants(side as u32);
        let map = |class: &dyn Fn(&Object) -> u8| -> Vec<u8> {
            occupants.iter().map(|occupant| occupant.map_or(0, |index| class(&scene.objects()[index]))).collect()
        };
        let maps = [
            map(&|object| place(&Kind::ALL, object.kind)),
            map(&|object| place(&Colour::ALL, object.colour)),
            map(&|object| place(&Fill::ALL, object.fill)),
        ];
        let classes = vec![Kind::ALL.len() + 1, Colour::ALL.len() + 1, Fill::ALL.len() + 1];
        Some(Layout { classes, cells: maps.concat() })
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
