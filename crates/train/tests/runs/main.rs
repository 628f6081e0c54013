//! Runs of training, whole, on networks small enough for a test; and the features they are made on.

mod autoencoder;
mod features;
mod stages;

use std::path::{Path, PathBuf};

use candle_core::Device;
use pixart_train::{Outcome, Recipe, StepReport, train};

/// The golden checkpoint: a whole pipeline of 256 pixels with random weights.
fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints/alpha-256")
}

fn recipe(folder: &Path, text: &str) -> pixart_train::Result<Recipe> {
    let path = folder.join("recipe.toml");
    std::fs::write(&path, text).expect("a temporary folder can be written");
    Recipe::read(&path)
}

fn run(recipe: &Recipe, folder: &Path, stop_after: u64) -> pixart_train::Result<(Outcome, Vec<StepReport>)> {
    let mut reports = Vec::new();
    let outcome = train(recipe, folder, &Device::Cpu, |report| {
        reports.push(report.clone());
        report.step < stop_after
    })?;
    Ok((outcome, reports))
}

/// All files of a folder and of those in it, with what is in them.
fn bytes(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            files.extend(
                bytes(&path)
                    .into_iter()
                    .map(|(name, bytes)| (PathBuf::from(path.file_name().expect("a name")).join(name), bytes)),
            );
        } else {
            files.push((path.file_name().expect("a name").into(), std::fs::read(&path).expect("it can be read")));
        }
    }
    files.sort();
    files
}

/// That a run of `steps` steps is the same if it is stopped after some, in every loss and every byte of the result.
fn assert_goes_on(recipe: &Recipe, folder: &Path, stop_after: u64) -> pixart_train::Result<Vec<StepReport>> {
    let (straight, stopped) = (folder.join("straight"), folder.join("stopped"));
    let (outcome, reports) = run(recipe, &straight, u64::MAX)?;
    assert_eq!(outcome, Outcome::Done(straight.join("network")));
    assert_eq!(reports.len() as u64, recipe.steps);
    let (outcome, mut parts) = run(recipe, &stopped, stop_after)?;
    assert_eq!(outcome, Outcome::Stopped(stopped.join(format!("checkpoints/step-{stop_after:08}"))));
    parts.extend(run(recipe, &stopped, u64::MAX)?.1);
    let losses = |reports: &[StepReport]| reports.iter().map(|r| (r.step, r.loss, r.gradient_norm)).collect::<Vec<_>>();
    assert_eq!(losses(&parts), losses(&reports));
    assert_eq!(bytes(&stopped.join("network")), bytes(&straight.join("network")));
    assert_eq!(bytes(&stopped.join("validation")), bytes(&straight.join("validation")));
    Ok(reports)
}

/// The recipes that come with the project can be read.
#[test]
fn recipes_are_valid() {
    let mut count = 0;
    for folder in ["tiny", "pixart-delta"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(folder);
        for entry in std::fs::read_dir(folder).expect("recipes") {
            let path = entry.expect("a recipe").path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                Recipe::read(&path).unwrap_or_else(|error| panic!("{error}"));
                count += 1;
            }
        }
    }
    assert!(count >= 9, "{count}");
}
