//! Training of PixArt-δ: a [`Recipe`] says what is trained on what, an [`Objective`] gives the loss of a step, [`train`] is
//! the loop.
//!
//! Everything random in step k comes from the recipe's seed and k alone, so that a run that was interrupted goes on as if
//! it had not been.

mod checkpoint;
mod dataset;
mod ema;
mod error;
mod estimate;
mod evaluation;
mod events;
mod features;
mod grid;
mod initialise;
mod loss_scale;
mod muon;
mod objective;
mod optimizer;
mod order;
mod parameters;
mod random;
mod recipe;
mod schedule;
mod trainer;
mod vocabulary;

pub use dataset::{Dataset, FolderDataset, Item, Layout, ScenesDataset, TarDataset, open_dataset};
pub use ema::Ema;
pub use error::{Error, Result};
pub use estimate::{Estimate, Footprint};
pub use evaluation::{
    Agreement, Drawn, Faithfulness, Reconstruction, Share, Trial, agreement, faithfulness, reconstruction,
};
pub use features::{
    Batch, Description, Extracted, ExtractionProgress, Extractor, Features, ITEMS_PER_SHARD, SkippedItem,
};
pub use grid::grid;
pub use initialise::{Initialise, PixArtInitialise, UniformFanIn, Zeros};
pub use objective::{
    AutoencoderObjective, ConsistencyInputs, ConsistencyLoss, ConsistencyObjective, ConsistencySettings,
    ConsistencyTerms, DiffusionObjective, HybridLoss, Loss, Losses, Objective, TextEncoderObjective,
};
pub use optimizer::{Optimizer, OptimizerSettings};
pub use parameters::Parameters;
pub use recipe::{
    AdversarialRecipe, AutoencoderRecipe, ConsistencyRecipe, ControlNetRecipe, Data, DiffusionRecipe,
    DistributionMatchingRecipe, LayoutRecipe, LogitNormal, LoraRecipe, NewModelRecipe, Precision, Recipe, Sampling,
    Stage, TextEncoderRecipe, TextEncoderSource,
};
pub use schedule::Schedule;
pub use trainer::{Outcome, StepReport, estimate, train};
