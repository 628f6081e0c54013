//! What the inputs of layers look like, for rounding them to 8 bits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device};
use pixart_weights::{Calibration, Inputs, Part, PipelineFolder, Scheme, is_rounded, rounds_inputs};

use crate::{Pipeline, PipelineBuilder, Request, Result, Seeds};

/// How much of the difference between columns of inputs goes to the weights (SmoothQuant, Xiao et al. 2022, equation 4).
const MIGRATION: f32 = 0.5;

/// How many times the median of its columns' largest inputs a column's must be for it to be kept out of the rounding.
const OUTLIER: f32 = 20.0;

/// At most one column in so many is kept out of the rounding.
const COLUMNS_AN_OUTLIER: usize = 64;

/// The largest inputs of layers so far, by the names of the weights that they are multiplied with.
type Maxima = Arc<Mutex<BTreeMap<(&'static str, Vec<String>), Vec<f32>>>>;

/// Draws `prompts`, one image each with its place among them as the seed, and looks at the inputs of the layers of `parts`.
/// `on_image` is told how many are drawn.
///
/// # Errors
/// As [`Pipeline::generate`]; no prompts.
pub fn calibrate(
    builder: PipelineBuilder,
    parts: &[Part],
    prompts: &[String],
    on_image: impl Fn(usize),
) -> Result<Calibration> {
    let maxima = Maxima::default();
    let mut pipeline: Pipeline = builder.device(crate::DeviceChoice::Cpu).keep_loaded(true).open()?;
    pipeline.parts.loader.observer = Some({
        let maxima = maxima.clone();
        Arc::new(move |part: Part, names: &[String], largest: &[f32]| {
            let mut maxima = maxima.lock().unwrap_or_else(PoisonError::into_inner);
            let so_far = maxima.entry((part.name(), names.to_vec())).or_insert_with(|| vec![0.0; largest.len()]);
            so_far.iter_mut().zip(largest).for_each(|(so_far, x)| *so_far = so_far.max(*x));
        })
    });
    for (i, prompt) in prompts.iter().enumerate() {
        let request = Request { prompts: vec![prompt.clone()], seeds: Seeds::Shared(i as u64), ..Request::default() };
        pipeline.generate(&request)?;
        on_image(i + 1);
    }
    let maxima = std::mem::take(&mut *maxima.lock().unwrap_or_else(PoisonError::into_inner));
    let folder = &pipeline.parts.loader.folder;
    let mut calibration = Calibration::default();
    for ((of, names), inputs) in maxima {
        if let Some(part) = parts.iter().find(|part| part.name() == of) {
            insert(&mut calibration, folder, *part, &names, &inputs)?;
        }
    }
    Ok(calibration)
}

/// Decides what is done to the inputs of the layers `names`, which have the same.
fn insert(
    calibration: &mut Calibration,
    folder: &PipelineFolder,
    part: Part,
    names: &[String],
    inputs: &[f32],
) -> Result<()> {
    let stored = folder.weights(part, DType::F32)?;
    let mut weights = vec![0f32; inputs.len()];
    for name in names {
        let Some(tensor) = stored.tensors().get(name) else { return Ok(()) };
        if !is_rounded(part, name, &tensor.shape) || !rounds_inputs(Scheme::Int8, name) {
            return Ok(());
        }
        let columns = stored.tensor(name, DType::F32, &Device::Cpu)?.abs()?.max(0)?.to_vec1::<f32>()?;
        weights.iter_mut().zip(columns).for_each(|(largest, x)| *largest = largest.max(x));
    }
    let found = decide(inputs, &weights);
    names.iter().for_each(|name| calibration.insert(part, name, found.clone()));
    Ok(())
}

/// What is done to inputs whose largest values are `inputs`, column by column, and those of the weights that they are
/// multiplied with `weights`.
fn decide(inputs: &[f32], weights: &[f32]) -> Inputs {
    let mut sorted = inputs.to_vec();
    sorted.sort_by(f32::total_cmp);
    let median = sorted.get(inputs.len() / 2).copied().unwrap_or(0.0);
    let most = sorted.len().checked_sub(inputs.len() / COLUMNS_AN_OUTLIER + 1).map_or(f32::MAX, |place| sorted[place]);
    let bound = most.max(OUTLIER * median);
    let outliers: Vec<_> = (0..inputs.len()).filter(|column| inputs[*column] > bound).collect();
    let factor = |column: usize| match (inputs[column], weights[column]) {
        (input, _) if input > bound => 0.0,
        (input, weight) if input > 0.0 && weight > 0.0 => weight.powf(1.0 - MIGRATION) / input.powf(MIGRATION),
        _ => 1.0,
    };
    Inputs { factors: Some((0..inputs.len()).map(factor).collect()), outliers }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors make the product of a column's largest input and weight the same on both sides, and a huge column is taken out.
    #[test]
    fn columns_become_alike() {
        let mut inputs = vec![1.0; 128];
        let mut weights = vec![0.5; 128];
        (inputs[3], weights[3], inputs[9], inputs[11]) = (8.0, 0.125, 4000.0, 0.0);
        let found = decide(&inputs, &weights);
        assert_eq!(found.outliers, [9]);
        let factors = found.factors.unwrap();
        assert_eq!((factors[9], factors[11]), (0.0, 1.0));
        for column in [0, 3] {
            let (input, weight) = (inputs[column] * factors[column], weights[column] / factors[column]);
            assert!((input - weight).abs() < 1e-6, "{column}: {input} and {weight}");
        }
        // Not more than a few, however large they are.
        let alternating: Vec<f32> = (0..128).map(|i| if i % 3 == 0 { 1000.0 } else { 1.0 }).collect();
        assert!(decide(&alternating, &weights).outliers.len() <= 2);
    }
}
