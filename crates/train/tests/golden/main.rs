//! Gradients, losses and steps of training against golden values from PyTorch.

mod gradients;
mod objectives;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use pixart_train::Parameters;
use pixart_weights::read_tensors;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// PyTorch's own f32 is within 6e-6 of its f64.
const TOLERANCE: f64 = 3e-5;

/// Of a tensor of more than some thousand elements the golden files have every eleventh, and sums over all.
const STRIDE: usize = 11;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn golden(name: &str) -> Result<BTreeMap<String, Tensor>> {
    Ok(read_tensors(&fixtures().join(format!("{name}.safetensors")), &Device::Cpu)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(values)
}

/// Root of the sum of squared differences, relative to that of the golden values, or to `scale` where they are next to 0.
#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], scale: f64) {
    assert_within(what, found, expected, scale, TOLERANCE);
}

/// As [`assert_close`], with another tolerance.
#[track_caller]
fn assert_within(what: &str, found: &[f64], expected: &[f64], scale: f64, tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let error = difference / norm(&mut expected.iter().copied()).max(scale);
    assert!(error < tolerance, "{what}: a relative error of {error:.1e}");
}

/// Holds a gradient to the golden one of that name, whole or thinned.
fn check(golden: &BTreeMap<String, Tensor>, name: &str, found: &Tensor, scale: f64) -> Result {
    let found = values(found)?;
    if let Some(expected) = golden.get(name) {
        assert_close(name, &found, &values(expected)?, scale);
        return Ok(());
    }
    let get = |part: &str| golden.get(&format!("{name}.{part}")).ok_or(format!("no {name} among the golden values"));
    let thinned: Vec<_> = found.iter().copied().step_by(STRIDE).collect();
    assert_close(name, &thinned, &values(get("every_11")?)?, scale);
    let sum_of_squares = found.iter().map(|x| x * x).sum::<f64>();
    assert_close(name, &[sum_of_squares], &values(get("sums")?)?[1..], scale * scale);
    Ok(())
}

/// Holds the gradients of all parameters to the golden ones, whose names begin with `prefix` and of which none may be left over.
fn check_all(
    golden: &BTreeMap<String, Tensor>,
    prefix: &str,
    parameters: &Parameters,
    gradients: &GradStore,
) -> Result {
    let all = parameters.all();
    let largest = all.iter().filter_map(|(_, variable)| gradients.get(variable));
    let norms = largest.map(|gradient| Ok(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt()));
    let largest = norms.collect::<Result<Vec<_>>>()?.into_iter().fold(0f32, f32::max);
    for (name, variable) in &all {
        let gradient = gradients.get(variable).ok_or(format!("{name} has no gradient"))?;
        // A bias of keys shifts all scores of a query alike: its gradient is rounding, in PyTorch as here.
        check(golden, &format!("{prefix}{name}"), gradient, 1e-3 * f64::from(largest))?;
    }
    let names = golden.keys().filter_map(|name| name.strip_prefix(prefix));
    for name in names.map(|name| name.trim_end_matches(".every_11").trim_end_matches(".sums")) {
        assert!(all.iter().any(|(found, _)| found == name), "{name} is no parameter here");
    }
    Ok(())
}

fn check_inputs(golden: &BTreeMap<String, Tensor>, gradients: &GradStore, inputs: &[(&str, &Var)]) -> Result {
    for (name, variable) in inputs {
        let gradient = gradients.get(variable).ok_or("an input without a gradient")?;
        check(golden, &format!("input_gradient.{name}"), gradient, 0.0)?;
    }
    Ok(())
}

fn check_loss(golden: &BTreeMap<String, Tensor>, loss: &Tensor) -> Result {
    assert_close("loss", &values(loss)?, &values(&golden["loss"])?, 0.0);
    Ok(())
}
