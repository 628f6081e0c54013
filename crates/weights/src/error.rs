use std::path::{Path, PathBuf};

/// What can be wrong with files. Every message is one line that names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Something that should be there is not.
    #[error("{}: {what}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing and what to do.
        what: String,
    },
    /// A file whose content is broken.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that is in order but asks for something that is not implemented, or holds another kind of model.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// Which file or folder.
        path: PathBuf,
        /// What it holds and what is supported.
        reason: String,
    },
    /// A tensor of another shape than the network has.
    #[error("{}: tensor {key:?} has shape {found:?}, the config asks for {wanted:?}; weights and config do not belong together", path.display())]
    Shape {
        /// The file the tensor is in.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The network's shape.
        wanted: Vec<usize>,
    },
    /// Someone asked to stop.
    #[error("stopped")]
    Cancelled,
    /// A computation that failed.
    #[error("{0}")]
    Tensor(String),
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn missing(path: &Path, what: impl Into<String>) -> Self {
        Self::Missing { path: path.into(), what: what.into() }
    }
}

impl Error {
    /// The same trouble, where a file is told as what it is going to be: `to` in place of the temporary `from`, itself or the folder it is in.
    pub(crate) fn moved(mut self, from: &Path, to: &Path) -> Self {
        if let Self::Io { path, .. }
        | Self::Missing { path, .. }
        | Self::Corrupt { path, .. }
        | Self::Unsupported { path, .. }
        | Self::Shape { path, .. } = &mut self
            && let Ok(rest) = path.strip_prefix(from)
        {
            *path = if rest.as_os_str().is_empty() { to.into() } else { to.join(rest) };
        }
        self
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(plain_message(&error))
    }
}

/// A candle error as one line, without the backtrace that it carries where `RUST_BACKTRACE` is set.
pub fn plain_message(error: &candle_core::Error) -> String {
    use candle_core::Error as E;
    match error {
        E::WithBacktrace { inner, .. } => plain_message(inner),
        E::Context { inner, context } => format!("{context}: {}", plain_message(inner)),
        E::WithPath { inner, path } => format!("{}: {}", path.display(), plain_message(inner)),
        other => other.to_string().replace('\n', " "),
    }
}
