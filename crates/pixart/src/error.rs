use std::path::PathBuf;

/// What can go wrong. Every message is one line, written for the person who sees it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request that cannot be carried out as it stands: what is wrong, and what would be right.
    #[error("{0}")]
    Request(String),
    /// A device that is not there or that this program was built without.
    #[error("{0}")]
    Device(String),
    /// A file of a checkpoint.
    #[error(transparent)]
    Weights(#[from] pixart_weights::Error),
    /// A scheduler or its config.
    #[error(transparent)]
    Scheduler(pixart_diffusion::Error),
    /// A file that cannot be written or read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A computation that failed, out of memory for example.
    #[error("{0}")]
    Compute(String),
    /// The callback asked to stop.
    #[error("stopped")]
    Cancelled,
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(pixart_weights::plain_message(&error))
    }
}

impl From<pixart_diffusion::Error> for Error {
    fn from(error: pixart_diffusion::Error) -> Self {
        match error {
            pixart_diffusion::Error::Candle(error) => (*error).into(),
            other => Self::Scheduler(other),
        }
    }
}

impl Error {
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Request(message.into())
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }
}
