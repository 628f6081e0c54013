//! Where results go.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Prints a line; a reader that has gone away is no error.
pub fn print(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _closed = writeln!(stdout, "{}", line.trim_end_matches('\n'));
}

/// Names for the pictures of one command.
pub struct Names {
    folder: PathBuf,
    stem: String,
    /// The number of the next picture; none for the only picture of a named file.
    next: Option<usize>,
    /// Numbers that are taken are passed over, where the user named no file.
    keep_existing: bool,
}

impl Names {
    /// Settles where `count` pictures go, and makes sure before any work that they can be written there.
    pub fn new(output: Option<&Path>, count: usize) -> Result<Self> {
        let names = match output {
            None => Self { folder: ".".into(), stem: "pixart".into(), next: Some(1), keep_existing: true },
            Some(path) => Self::named(path, count)?,
        };
        tempfile::tempfile_in(&names.folder)
            .with_context(|| format!("cannot write to the folder {}", names.folder.display()))?;
        Ok(names)
    }

    fn named(path: &Path, count: usize) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let is_folder = path.is_dir() || path.to_string_lossy().ends_with(std::path::MAIN_SEPARATOR);
        match extension.as_deref() {
            Some("png") if !is_folder => {
                let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let next = (count > 1).then_some(1);
                Ok(Self { folder: folder.into(), stem, next, keep_existing: false })
            }
            Some(other) if !is_folder => {
                bail!("{}: pictures are written as .png, not .{other}", path.display())
            }
            _ => {
                std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
                Ok(Self { folder: path.into(), stem: "pixart".into(), next: Some(1), keep_existing: true })
            }
        }
    }

    /// The next picture's file.
    pub fn next(&mut self) -> PathBuf {
        let Some(next) = &mut self.next else { return self.folder.join(format!("{}.png", self.stem)) };
        loop {
            let path = self.folder.join(format!("{}-{next:04}.png", self.stem));
            *next += 1;
            if !(self.keep_existing && path.exists()) {
                return path.strip_prefix(".").map(Into::into).unwrap_or(path);
            }
        }
    }
}

/// Makes sure before any work that a file can be written.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        bail!("{} is a folder, not a file", path.display());
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder).with_context(|| format!("cannot write to the folder {}", folder.display()))?;
    Ok(())
}

/// The peak of memory so far, for the result line.
pub fn peak_memory() -> String {
    match pixart::peak_rss_bytes() {
        Some(bytes) => format!("peak {:.2} GB", bytes as f64 / 1e9),
        None => "peak memory unknown".into(),
    }
}
