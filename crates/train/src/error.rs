use std::path::{Path, PathBuf};

/// What can go wrong in a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe that cannot be read, or that asks for what cannot be.
    #[error("{}: {message}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A folder that a run cannot go on from, or start in.
    #[error("{}: {message}", path.display())]
    Folder {
        /// The folder, or a file in it.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The loss or its gradients were not finite.
    #[error(
        "step {step}: the loss or its gradient is not a finite number; {}",
        match kept { Some(path) => format!("the last good checkpoint is {}", path.display()), None => "no checkpoint was saved before".into() }
    )]
    NotFinite {
        /// The step whose loss it was.
        step: u64,
        /// The last checkpoint before it.
        kept: Option<PathBuf>,
    },
    /// Reading or writing a file.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Making a picture.
    #[error(transparent)]
    Picture(#[from] pixart::Error),
    /// Reading or writing weights.
    #[error(transparent)]
    Weights(#[from] pixart_weights::Error),
    /// A noise schedule.
    #[error(transparent)]
    Diffusion(#[from] pixart_diffusion::Error),
    /// A computation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The result of a step of training.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |cause| Self::Io { path, cause }
    }

    pub(crate) fn recipe(path: &Path, message: impl Into<String>) -> Self {
        Self::Recipe { path: path.into(), message: message.into() }
    }

    pub(crate) fn folder(path: &Path, message: impl Into<String>) -> Self {
        Self::Folder { path: path.into(), message: message.into() }
    }
}
