//! Where a run stands, on disk.
//!
//! A run's folder has `checkpoints/step-00001000/` with the network as diffusers reads it (`network/`), the parameters as they
//! are (`parameters.safetensors`), their average (`ema.safetensors`), the optimiser's moments (`optimizer.safetensors`) and `state.json`.

use std::path::{Path, PathBuf};

use candle_core::DType;
use pixart_weights::{Weights, write_json};
use serde::{Deserialize, Serialize};

use crate::loss_scale::LossScale;
use crate::{Ema, Error, Objective, Optimizer, Recipe, Result};

const PARAMETERS: &str = "parameters.safetensors";
const EMA: &str = "ema.safetensors";
const TARGET: &str = "target.safetensors";

/// What `state.json` holds.
#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    loss_scale: LossScale,
    recipe: Recipe,
}

/// Saves the run after `step` steps, and removes all checkpoints but the newest.
pub(crate) fn save(
    run: &Path,
    step: u64,
    recipe: &Recipe,
    objective: &dyn Objective,
    optimizer: &Optimizer,
    ema: Option<&Ema>,
    loss_scale: LossScale,
) -> Result<PathBuf> {
    let folder = run.join("checkpoints");
    let path = folder.join(format!("step-{step:08}"));
    let part = folder.join(format!(".step-{step:08}.part"));
    // What an interrupted save left.
    if part.exists() {
        std::fs::remove_dir_all(&part).map_err(Error::io(&part))?;
    }
    std::fs::create_dir_all(&part).map_err(Error::io(&part))?;
    let write = || -> Result<()> {
        objective.save(&part.join("network"))?;
        optimizer.save(&part.join("optimizer.safetensors"))?;
        if let Some(ema) = ema {
            ema.save(&part.join(EMA))?;
        }
        if let Some(target) = objective.target_average() {
            target.save(&part.join(TARGET))?;
        }
        objective.parameters().save(&part.join(PARAMETERS))?;
        write_json(&part.join("state.json"), &State { step, loss_scale, recipe: recipe.clone() })?;
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        std::fs::rename(&part, &path).map_err(Error::io(&path))
    };
    if let Err(error) = write() {
        let _the_first_error_counts = std::fs::remove_dir_all(&part);
        return Err(error);
    }
    let all = all(run)?;
    for (_, old) in &all[..all.len().saturating_sub(recipe.keep_checkpoints)] {
        std::fs::remove_dir_all(old).map_err(Error::io(old))?;
    }
    Ok(path)
}

/// Takes the run up where its newest checkpoint has it; returns the steps done and the checkpoint, if there is one.
///
/// # Errors
/// The checkpoint is another recipe's; but a run may be made longer.
pub(crate) fn resume(
    run: &Path,
    recipe: &Recipe,
    objective: &mut dyn Objective,
    optimizer: &mut Optimizer,
    ema: Option<&mut Ema>,
    loss_scale: &mut LossScale,
) -> Result<Option<(u64, PathBuf)>> {
    let Some((_, path)) = all(run)?.pop() else { return Ok(None) };
    let state_path = path.join("state.json");
    let text = std::fs::read_to_string(&state_path).map_err(Error::io(&state_path))?;
    let state: State =
        serde_json::from_str(&text).map_err(|error| Error::folder(&state_path, format!("cannot be read: {error}")))?;
    if (Recipe { steps: recipe.steps, ..state.recipe }) != *recipe {
        return Err(Error::folder(&path, "was made by another recipe; choose another output folder, or that recipe"));
    }
    let weights = Weights::open(path.join(PARAMETERS))?;
    let parameters = objective.parameters();
    parameters.set_part("", |name| Ok(weights.tensor(name, DType::F32, parameters.device())?))?;
    optimizer.load(&path.join("optimizer.safetensors"))?;
    if let Some(ema) = ema {
        ema.load(&path.join(EMA))?;
    }
    if let Some(target) = objective.target_average_mut() {
        target.load(&path.join(TARGET))?;
    }
    *loss_scale = state.loss_scale;
    Ok(Some((state.step, path)))
}

/// All checkpoints of a run, by their steps.
fn all(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join("checkpoints");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
        let entry = entry.map_err(Error::io(&folder))?;
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok()) {
            all.push((step, entry.path()));
        }
    }
    all.sort();
    Ok(all)
}
