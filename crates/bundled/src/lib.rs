//! The model that travels with the program: small, trained by this project on pictures that it draws itself
//! (`docs/tiny-model.md`). It lies in the program's own file; models are opened from folders, so [`folder`] writes it to
//! the user's cache once and says where it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use include_dir::{Dir, DirEntry, include_dir};

/// `assets/tiny`: a diffusers folder, and beside its parts `teacher/` and `lcm-lora/`; `controlnet/` is a part.
static MODEL: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../assets/tiny");

/// The transformer, in the model's folder, that the model was distilled from: a part in diffusers' layout.
pub const TEACHER: &str = "teacher";

/// The LoRA, in the model's folder, that makes the teacher draw in few steps: a folder in PEFT's layout.
pub const LCM_LORA: &str = "lcm-lora";

/// The model's folder, which is written if it is not there yet or not as it was written: below the user's folder for
/// caches, else below the one for temporary files.
///
/// # Errors
/// `assets/tiny` held no model when the program was built. Neither folder can be written to; it tells why the first could
/// not.
pub fn folder() -> io::Result<PathBuf> {
    if MODEL.get_file("model_index.json").is_none() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "this program was built without a model of its own"));
    }
    let caches = dirs::cache_dir().into_iter().chain([std::env::temp_dir()]);
    let mut failure = None;
    for cache in caches {
        match folder_in(&cache.join("pixart")) {
            Ok(folder) => return Ok(folder),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// As [`folder`], below `cache`.
///
/// # Errors
/// It cannot be written there.
pub fn folder_in(cache: &Path) -> io::Result<PathBuf> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", cache.display()));
    let folder = cache.join(format!("tiny-{:08x}", checksum(&MODEL, 0)));
    if is_whole(&folder) {
        return Ok(folder);
    }
    fs::create_dir_all(cache).map_err(about)?;
    // Written beside and renamed, so that nobody ever opens half a model.
    let beside = tempfile::Builder::new().prefix("tiny-").tempdir_in(cache).map_err(about)?;
    let whole = beside.path().join("tiny");
    fs::create_dir(&whole).and_then(|()| MODEL.extract(&whole)).map_err(about)?;
    // Another program may have been faster, which is as good; what is there and is not the model gives way.
    if folder.exists() && !is_whole(&folder) {
        fs::rename(&folder, beside.path().join("broken")).map_err(about)?;
    }
    match fs::rename(&whole, &folder) {
        Err(error) if !is_whole(&folder) => Err(about(error)),
        _ => Ok(folder),
    }
}

/// Of all names and contents, so that each version of the model has a folder of its own.
fn checksum(dir: &Dir, start: u32) -> u32 {
    dir.entries().iter().fold(start, |sum, entry| {
        let sum = crc32c::crc32c_append(sum, entry.path().to_string_lossy().as_bytes());
        match entry {
            DirEntry::Dir(dir) => checksum(dir, sum),
            DirEntry::File(file) => crc32c::crc32c_append(sum, file.contents()),
        }
    })
}

/// Whether every file is in `folder` as it is in the program.
fn is_whole(folder: &Path) -> bool {
    fn holds(folder: &Path, dir: &Dir) -> bool {
        dir.entries().iter().all(|entry| match entry {
            DirEntry::Dir(dir) => holds(folder, dir),
            DirEntry::File(file) => {
                fs::read(folder.join(file.path())).is_ok_and(|contents| contents == file.contents())
            }
        })
    }
    holds(folder, &MODEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_written_once_and_mended() -> io::Result<()> {
        let cache = tempfile::tempdir()?;
        let folder = folder_in(&cache.path().join("a/b"))?;
        let index = folder.join("vae/config.json");
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny/vae/config.json");
        assert_eq!(fs::read(&index)?, fs::read(assets)?);

        let written = fs::metadata(&index)?.modified()?;
        assert_eq!(folder_in(&cache.path().join("a/b"))?, folder);
        assert_eq!(fs::metadata(&index)?.modified()?, written);

        fs::write(&index, "{")?;
        assert_eq!(folder_in(&cache.path().join("a/b"))?, folder);
        assert!(is_whole(&folder));
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(cache.path().join("a/b"))?.count(), 1);
        Ok(())
    }

    #[test]
    fn the_model_is_small() {
        fn bytes(dir: &Dir) -> usize {
            let of = |entry: &DirEntry| match entry {
                DirEntry::Dir(dir) => bytes(dir),
                DirEntry::File(file) => file.contents().len(),
            };
            dir.entries().iter().map(of).sum()
        }
        assert!((1_000_000..=24_000_000).contains(&bytes(&MODEL)), "{}", bytes(&MODEL));
    }

    #[test]
    fn many_at_once_agree() {
        let cache = tempfile::tempdir().expect("a folder");
        let folders = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| folder_in(cache.path()))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<io::Result<Vec<_>>>()
        });
        let folders = folders.expect("a folder each");
        assert!(folders.iter().all(|folder| *folder == folders[0] && is_whole(folder)));
        assert_eq!(fs::read_dir(cache.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_cache_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = folder_in(file.path()).expect_err("a file is no folder");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
