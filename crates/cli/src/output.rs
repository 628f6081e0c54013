//! Where results go.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Prints a line; a reader that has gone away is no error.
pub fn print(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", line.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print the result"),
        _ => Ok(()),
    }
}

/// Prints a line to the error output; where that is closed, nobody is there to be told.
pub fn complain(line: &str) {
    let _closed = writeln!(std::io::stderr(), "{line}");
}

/// Names for the pictures of one command.
#[derive(Clone)]
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
        // A folder for pictures is made where it is missing; the folder of a named file must be there.
        check_folder(&names.folder, names.keep_existing)?;
        if names.next.is_none() {
            check_replaceable(&names.folder.join(format!("{}.png", names.stem)))?;
        }
        Ok(names)
    }

    /// Makes the folder, when there is something to put into it.
    pub fn make_folder(&self) -> Result<()> {
        make_folder(&self.folder)
    }

    fn named(path: &Path, count: usize) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let is_folder = path.is_dir() || path.to_string_lossy().ends_with(std::path::MAIN_SEPARATOR);
        match extension.as_deref() {
            Some("png") if !is_folder => {
                let folder = folder_of(path);
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let next = (count > 1).then_some(1);
                Ok(Self { folder: folder.into(), stem, next, keep_existing: false })
            }
            Some(other) if !is_folder => {
                bail!("{}: pictures are written as .png, not .{other} (a folder's name ends in /)", path.display())
            }
            _ => Ok(Self { folder: path.into(), stem: "pixart".into(), next: Some(1), keep_existing: true }),
        }
    }

    /// Whether one of the `count` pictures will be written to `path`.
    pub fn include(&self, path: &Path, count: usize) -> bool {
        let mut names = self.clone();
        (0..count).any(|_| is_same_file(&names.next(), path))
    }

    /// The next picture's file.
    pub fn next(&mut self) -> PathBuf {
        let Some(next) = &mut self.next else { return in_folder(&self.folder, &format!("{}.png", self.stem)) };
        loop {
            let path = in_folder(&self.folder, &format!("{}-{next:04}.png", self.stem));
            *next += 1;
            if !(self.keep_existing && path.exists()) {
                return path;
            }
        }
    }
}

/// Makes a folder, and those that it is in.
pub fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file's path as a user would write it, without a leading `./`.
fn in_folder(folder: &Path, name: &str) -> PathBuf {
    if folder == Path::new(".") { name.into() } else { folder.join(name) }
}

/// Makes sure before any work that a file can be written.
pub fn check_writable(path: &Path) -> Result<()> {
    check_replaceable(path)?;
    check_folder(folder_of(path), false)
}

/// Makes sure before any work that a PNG can be written.
pub fn check_png(path: &Path) -> Result<()> {
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        bail!("{}: pictures are written as .png", path.display());
    }
    check_writable(path)
}

/// Whether two paths lead to one file, which need not be there yet.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let of = |path: &Path| match path.canonicalize() {
        Ok(path) => Some(path),
        Err(_) => Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?)),
    };
    a == b || of(a).is_some_and(|a| of(b) == Some(a))
}

/// Refuses what is there and is no file: a folder, a device.
fn check_replaceable(path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        bail!("{} is not a plain file, and nothing else is written over", path.display());
    }
    Ok(())
}

/// Makes sure that a folder can be written or, if it `may_be_missing`, that it can be made where it will be.
fn check_folder(folder: &Path, may_be_missing: bool) -> Result<()> {
    let is_there = |folder: &&Path| folder.exists() || folder.as_os_str().is_empty();
    let existing = if may_be_missing { folder.ancestors().find(is_there) } else { Some(folder) };
    let existing = existing.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(existing).with_context(|| format!("cannot write to the folder {}", folder.display()))?;
    Ok(())
}

/// The peak of memory so far, for the result line.
pub fn peak_memory() -> String {
    match pixart::peak_rss_bytes() {
        Some(bytes) => format!("peak {:.2} GB", bytes as f64 / 1e9),
        None => "peak memory unknown".into(),
    }
}
