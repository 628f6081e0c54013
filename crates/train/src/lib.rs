//! Training of PixArt-δ: a [`Recipe`] says what is trained on what, an [`Objective`] gives the loss of a step, [`train`] is
//! the loop.
//!
//! Everything random in step k comes from the recipe's seed and k alone, so that a run that was interrupted goes on as if
//! it had not been.

mod checkpoint;
mod ema;
mod error;
mod events;
mod initialise;
mod objective;
mod optimizer;
mod parameters;
mod recipe;
mod schedule;
mod trainer;

pub use ema::Ema;
pub use error::{Error, Result};
pub use initialise::{Initialise, UniformFanIn};
pub use objective::{AutoencoderObjective, Loss, Objective};
pub use optimizer::{Optimizer, OptimizerSettings};
pub use parameters::Parameters;
pub use recipe::{AutoencoderRecipe, Data, Recipe, Stage};
pub use schedule::Schedule;
pub use trainer::{Outcome, StepReport, train};
