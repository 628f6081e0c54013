//! What can go wrong: each error says what was asked and what would have worked.

use crate::kind::SchedulerKind;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of scheduler configs, schedules and solvers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No scheduler has this name.
    #[error("unknown scheduler `{name}`; known are {known}", known = SchedulerKind::known_names())]
    UnknownScheduler {
        /// The name as it was given.
        name: String,
    },

    /// The text of a scheduler config is not JSON.
    #[error("the scheduler config is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),

    /// The JSON of a scheduler config does not say which scheduler it is for.
    #[error("the scheduler config must be a JSON object that names its class in `_class_name`")]
    NoClassName,

    /// A config field that no supported scheduler has.
    #[error("{scheduler}: no scheduler has a config field `{field}`; remove it or correct its name")]
    UnknownField {
        /// The scheduler that the config is for.
        scheduler: SchedulerKind,
        /// The field's name.
        field: String,
    },

    /// A config field whose value has the wrong JSON type.
    #[error("{scheduler}: config field `{field}` is {value}, but must be {expected}")]
    WrongType {
        /// The scheduler that the config is for.
        scheduler: SchedulerKind,
        /// The field's name.
        field: String,
        /// The value found, as JSON.
        value: String,
        /// The type wanted.
        expected: &'static str,
    },

    /// A config field whose value this implementation refuses.
    #[error("{scheduler}: config field `{field}` is {value}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The scheduler that the config is for.
        scheduler: SchedulerKind,
        /// The field's name.
        field: String,
        /// The value found, as JSON.
        value: String,
        /// What would have been accepted.
        supported: String,
    },

    /// Zero inference steps.
    #[error("{scheduler}: 0 inference steps asked; at least 1 is needed")]
    ZeroSteps {
        /// The scheduler asked.
        scheduler: SchedulerKind,
    },

    /// More inference steps than the schedule has distinct timesteps.
    #[error("{scheduler}: {steps} inference steps asked, but its config allows at most {max}")]
    TooManySteps {
        /// The scheduler asked.
        scheduler: SchedulerKind,
        /// The number of steps asked.
        steps: usize,
        /// The largest number possible.
        max: usize,
    },

    /// A step option outside its range.
    #[error("step option `{option}` is {value}; supported: {supported}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: f64,
        /// The range accepted.
        supported: String,
    },

    /// A step index beyond the end of the schedule.
    #[error("step index {index} is out of range: the schedule has {len} steps")]
    StepOutOfRange {
        /// The index asked.
        index: usize,
        /// The number of steps there are.
        len: usize,
    },

    /// A timestep outside the training schedule.
    #[error("timestep {timestep} is out of range: the noise schedule has timesteps 0 to {max}")]
    TimestepOutOfRange {
        /// The timestep asked.
        timestep: f64,
        /// The last timestep there is.
        max: usize,
    },

    /// One timestep per batch element was wanted.
    #[error("{got} timesteps given for a batch of {batch}")]
    BatchMismatch {
        /// The number of timesteps given.
        got: usize,
        /// The batch size of the samples.
        batch: usize,
    },

    /// A model output without the variance channels that the scheduler needs.
    #[error("a learned variance needs a model output of {expected} channels, twice the sample's; this one has {got}")]
    Channels {
        /// The number of channels found.
        got: usize,
        /// The number of channels wanted.
        expected: usize,
    },

    /// Not one generator for each image.
    #[error("{generators} generators were given for a batch of {images} images")]
    Generators {
        /// The number of generators given.
        generators: usize,
        /// The batch size.
        images: usize,
    },

    /// A tensor operation failed: shapes, dtypes or devices disagree, or memory ran out.
    #[error(transparent)]
    Candle(Box<candle_core::Error>),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Box::new(error))
    }
}
