use std::path::{Path, PathBuf};

use serde_json::Value;
use walkdir::WalkDir;

use super::pictures::{decode, is_picture};
use super::{Dataset, Item};
use crate::{Error, Result};

/// A list of captions as Hugging Face's `imagefolder` has it, and one as PixArt's own code has it.
const METADATA: &str = "metadata.jsonl";
const DATA_INFO: &str = "data_info.json";

/// What captions are called in these lists and in `.json` files beside pictures.
pub(super) const CAPTION_FIELDS: [&str; 3] = ["text", "prompt", "caption"];

/// Folders in which PixArt's own layouts keep the pictures of a list.
const PICTURE_FOLDERS: [&str; 3] = ["", "InternImgs", "images"];

/// A folder of pictures, captioned by `metadata.jsonl`, by `data_info.json`, or by a `.txt` file beside each.
pub struct FolderDataset {
    folder: PathBuf,
    items: Vec<Entry>,
}

struct Entry {
    path: PathBuf,
    /// Where no list says it, it is in the `.txt` file.
    caption: Option<String>,
}

impl FolderDataset {
    /// Lists what is in `folder`, and in folders in it.
    ///
    /// # Errors
    /// A list that cannot be read; no pictures.
    pub fn open(folder: &Path) -> Result<Self> {
        let (metadata, data_info) = (folder.join(METADATA), folder.join(DATA_INFO));
        let items = if metadata.exists() {
            let text = std::fs::read_to_string(&metadata).map_err(Error::io(&metadata))?;
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let parsed = lines.map(|(i, line)| {
                let value = serde_json::from_str(line);
                let value: Value =
                    value.map_err(|error| Error::folder(&metadata, format!("line {}: {error}", i + 1)))?;
                listed(folder, &metadata, i + 1, &value, "file_name")
            });
            parsed.collect::<Result<Vec<_>>>()?
        } else if data_info.exists() {
            let list = pixart_weights::read_json(&data_info)?;
            let list = list.as_array().ok_or_else(|| Error::folder(&data_info, "is no list"))?;
            let parsed = list.iter().enumerate();
            parsed.map(|(i, value)| listed(folder, &data_info, i + 1, value, "path")).collect::<Result<Vec<_>>>()?
        } else {
            let mut paths = Vec::new();
            for entry in WalkDir::new(folder).follow_links(true) {
                let entry = entry.map_err(|error| Error::folder(folder, error.to_string()))?;
                if entry.file_type().is_file() && is_picture(entry.path()) {
                    paths.push(entry.into_path());
                }
            }
            paths.sort();
            paths.into_iter().map(|path| Entry { path, caption: None }).collect()
        };
        if let (true, Some(list)) = (items.is_empty(), [&metadata, &data_info].into_iter().find(|list| list.exists())) {
            return Err(Error::folder(list, "lists no pictures"));
        }
        if items.is_empty() {
            return Err(Error::folder(folder, "has no pictures (.png, .jpg, .webp)"));
        }
        if items.iter().all(|item| item.caption.is_none() && !item.path.with_extension("txt").exists()) {
            let message = format!(
                "has pictures but no captions: a {METADATA} or {DATA_INFO} that lists them, or a .txt file beside each"
            );
            return Err(Error::folder(folder, message));
        }
        Ok(Self { folder: folder.into(), items })
    }
}

/// An entry of a list.
fn listed(folder: &Path, list: &Path, number: usize, value: &Value, file_field: &str) -> Result<Entry> {
    let missing = |what: &str| Error::folder(list, format!("entry {number} has no {what}"));
    let file = value.get(file_field).and_then(Value::as_str).ok_or_else(|| missing(&format!("{file_field:?}")))?;
    let caption = caption_in(value).ok_or_else(|| missing("caption (\"text\", \"prompt\" or \"caption\")"))?;
    let places = PICTURE_FOLDERS.iter().map(|place| folder.join(place).join(file));
    let path = places.clone().find(|path| path.exists()).unwrap_or_else(|| folder.join(file));
    Ok(Entry { path, caption: Some(caption) })
}

/// The caption in a JSON object.
pub(super) fn caption_in(value: &Value) -> Option<String> {
    CAPTION_FIELDS.iter().find_map(|field| value.get(field)?.as_str()).map(Into::into)
}

impl Dataset for FolderDataset {
    fn description(&self) -> String {
        self.folder.display().to_string()
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn name(&self, index: usize) -> String {
        self.items[index].path.display().to_string()
    }

    fn read(&self, index: usize) -> Result<Item, String> {
        let Entry { path, caption } = &self.items[index];
        let caption = match caption {
            Some(caption) => caption.clone(),
            None => {
                let text = path.with_extension("txt");
                std::fs::read_to_string(&text).map_err(|error| format!("no caption in {}: {error}", text.display()))?
            }
        };
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        Ok(Item { image: decode(&bytes)?, captions: vec![caption.trim().to_string()] })
    }
}
