use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::folder::caption_in;
use super::pictures::{decode, is_picture};
use super::{Dataset, Item};
use crate::{Error, Result};

/// WebDataset shards: `.tar` files in which the files of one item have one name up to the first dot, a picture and a
/// `.txt` or `.json` with its caption.
pub struct TarDataset {
    shards: Vec<PathBuf>,
    items: Vec<Entry>,
}

/// Where in its shard each file of an item is.
#[derive(Default)]
struct Entry {
    shard: usize,
    name: String,
    picture: Option<Span>,
    text: Option<Span>,
    json: Option<Span>,
}

#[derive(Clone, Copy)]
struct Span {
    start: u64,
    len: u64,
}

impl TarDataset {
    /// Lists what is in the shards, without reading it.
    ///
    /// # Errors
    /// A shard that is no `.tar` file; no pictures in any.
    pub fn open(shards: &[PathBuf]) -> Result<Self> {
        let mut items = Vec::new();
        for (shard, path) in shards.iter().enumerate() {
            let listed = list(path, shard).map_err(|error| {
                let message = format!("cannot be read as a .tar file: {error}");
                if path.exists() { Error::folder(path, message) } else { Error::io(path)(error) }
            })?;
            items.extend(listed.into_values().filter(|entry| entry.picture.is_some()));
        }
        if items.is_empty() {
            let path = shards.first().cloned().unwrap_or_default();
            return Err(Error::folder(&path, "has no pictures (.png, .jpg, .webp), nor has another shard"));
        }
        Ok(Self { shards: shards.to_vec(), items })
    }

    fn bytes(&self, entry: &Entry, span: Span) -> Result<Vec<u8>, String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.shards[entry.shard])?;
            file.seek(SeekFrom::Start(span.start))?;
            let mut bytes = Vec::new();
            file.take(span.len).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| error.to_string())
    }
}

fn list(path: &Path, shard: usize) -> std::io::Result<BTreeMap<String, Entry>> {
    let mut items: BTreeMap<String, Entry> = BTreeMap::new();
    for entry in tar::Archive::new(File::open(path)?).entries_with_seek()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let file = entry.path()?.into_owned();
        let span = Span { start: entry.raw_file_position(), len: entry.size() };
        let full = file.to_string_lossy();
        // Up to the first dot of the file's name, whatever dots its folder has.
        let name_start = full.rfind('/').map_or(0, |slash| slash + 1);
        let key = full[name_start..].find('.').map_or(&full[..], |dot| &full[..name_start + dot]);
        let item = items.entry(key.to_string()).or_default();
        (item.shard, item.name) = (shard, format!("{}/{key}", path.display()));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("txt") => item.text = Some(span),
            Some("json") => item.json = Some(span),
            _ if is_picture(&file) => item.picture = Some(span),
            _ => {}
        }
    }
    Ok(items)
}

impl Dataset for TarDataset {
    fn description(&self) -> String {
        let names: Vec<_> = self.shards.iter().map(|shard| shard.display().to_string()).collect();
        names.join(" ")
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn name(&self, index: usize) -> String {
        self.items[index].name.clone()
    }

    fn read(&self, index: usize) -> Result<Item, String> {
        let entry = &self.items[index];
        let caption = match (entry.text, entry.json) {
            (Some(text), _) => String::from_utf8_lossy(&self.bytes(entry, text)?).into_owned(),
            (None, Some(json)) => {
                let json = serde_json::from_slice(&self.bytes(entry, json)?);
                let json = json.map_err(|error| format!("its .json is broken: {error}"))?;
                caption_in(&json).ok_or("its .json has no \"text\", \"prompt\" or \"caption\"")?
            }
            (None, None) => return Err("has no caption (.txt or .json)".into()),
        };
        let picture = entry.picture.ok_or("has no picture")?;
        Ok(Item { image: decode(&self.bytes(entry, picture)?)?, captions: vec![caption.trim().to_string()] })
    }
}
