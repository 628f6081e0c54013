use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// A file mapped into memory, read-only.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Asked first: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
            return Err(Error::corrupt(path, "is not a plain file"));
        }
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is only ever read, as bytes, for which every value is valid. Another process that truncates
        // the file while it is mapped ends this one with SIGBUS, as for any program that maps its weights.
        #[allow(unsafe_code, reason = "mapping a file is unsafe by nature")]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(Self { path: path.into(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that these bytes are not needed again soon, so that the pages of a file that was read once do
    /// not count as this process's memory. They are read from the file again if they are.
    #[cfg(unix)]
    pub(crate) fn release(&self, range: Range<usize>) {
        // SAFETY: the mapping is of a file and never written to, so dropping its pages loses nothing.
        #[allow(unsafe_code, reason = "advice that may drop pages is unsafe in general")]
        let advised =
            unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        // Only a hint: where the system does not take it, memory is accounted differently and nothing else changes.
        if let Err(error) = advised {
            tracing::trace!("{}: {error}", self.path.display());
        }
    }

    /// Other systems take pages back by themselves.
    #[cfg(not(unix))]
    pub(crate) fn release(&self, _: Range<usize>) {}
}

/// A part of a mapped file that is kept, and let go of when nobody holds it any more.
pub(crate) struct MappedBytes {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl MappedBytes {
    pub(crate) fn new(file: Arc<MappedFile>, range: Range<usize>) -> Self {
        Self { file, range }
    }
}

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }
}

impl Drop for MappedBytes {
    fn drop(&mut self) {
        self.file.release(self.range.clone());
    }
}
