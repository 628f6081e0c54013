//! Every solver and config against diffusers (fixtures/solvers, made by
//! tools/reference/solvers.py).

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use candle_core::{Device, Tensor};
use pixart_diffusion::{Generator, NoiseSource, SchedulerConfig, SchedulerKind, Solver, Step, StepOptions};
use serde_json::{Map, Value};

type Outcome<T> = Result<T, Box<dyn Error>>;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/solvers");

/// The largest difference of a step's tensor, relative to the tensor's largest value.
const TOLERANCE: f64 = 1e-5;
/// Diffusers computes in single precision where this crate takes double; each case says how far
/// that took it from its own result in double precision.
const ROUNDING: f64 = 3.0;
/// Timesteps that come from noise levels have passed through single-precision logarithms.
const TIMESTEP_TOLERANCE: f64 = 1e-3;

/// Cases that diffusers fails at and this crate does, because nothing but an oversight stands in
/// their way: a slice of three channels, infinity times zero, a missing argument.
const DONE_HERE: [&str; 5] =
    ["dpm.learned_range", "unipc.order1_bh1", "unipc.order2_bh1", "unipc.order3_bh1", "sa.threshold_noise"];

fn read_json(name: &str) -> Outcome<Value> {
    let text = std::fs::read_to_string(Path::new(FOLDER).join(name))?;
    Ok(serde_json::from_str(&text)?)
}

fn read_tensors() -> Outcome<HashMap<String, Tensor>> {
    let path = Path::new(FOLDER).join("cases.safetensors");
    Ok(candle_core::safetensors::load(path, &Device::Cpu)?)
}

fn list<'a>(value: &'a Value, key: &str) -> Outcome<&'a Vec<Value>> {
    Ok(value[key].as_array().ok_or_else(|| format!("no list `{key}`"))?)
}

fn count(value: &Value, key: &str) -> Outcome<usize> {
    Ok(value[key].as_u64().ok_or_else(|| format!("no number `{key}`"))? as usize)
}

fn numbers(tensor: &Tensor) -> Outcome<Vec<f64>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// The largest difference relative to the largest golden value; infinite if the shapes differ or
/// something is not finite.
fn gap(found: &Tensor, golden: &Tensor) -> Outcome<f64> {
    if found.dims() != golden.dims() {
        return Ok(f64::INFINITY);
    }
    let (found, golden) = (numbers(found)?, numbers(golden)?);
    if !found.iter().all(|value| value.is_finite()) {
        return Ok(f64::INFINITY);
    }
    let difference = found.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let size = golden.iter().map(|b| b.abs()).fold(f64::MIN_POSITIVE, f64::max);
    Ok(difference / size)
}

/// The inputs that all cases share.
struct Inputs {
    sample: Tensor,
    /// One model output for each step.
    model_outputs: Tensor,
}

impl Inputs {
    fn new(tensors: &HashMap<String, Tensor>, batch: usize, variance: bool) -> Outcome<Self> {
        let outputs = if variance { "model_outputs_variance" } else { "model_outputs" };
        let tensor = |name: &str| tensors.get(name).ok_or_else(|| format!("no tensor `{name}`"));
        Ok(Self {
            sample: tensor("sample")?.narrow(0, 0, batch)?,
            model_outputs: tensor(outputs)?.narrow(1, 0, batch)?.contiguous()?,
        })
    }
}

/// Runs a solver to its end, and shows each step its index, the scaled input and the result.
fn run(
    solver: &mut dyn Solver,
    inputs: &Inputs,
    seed: u64,
    mut show: impl FnMut(usize, &Tensor, &Step) -> Outcome<()>,
) -> Outcome<()> {
    let mut source = NoiseSource::from(Generator::new(seed));
    let mut sample = (&inputs.sample * solver.init_noise_sigma())?;
    for index in 0..solver.timesteps().len() {
        let scaled = solver.scale_model_input(&sample, index)?;
        let model_output = inputs.model_outputs.get(index)?;
        let step = solver.step(&model_output, index, &sample, &mut source)?;
        show(index, &scaled, &step)?;
        sample = step.prev_sample;
    }
    Ok(())
}

/// What is wrong with one case.
fn check(case: &Value, tensors: &HashMap<String, Tensor>) -> Outcome<Vec<String>> {
    let name = case["name"].as_str().ok_or("a case has no name")?;
    let golden = |key: &str| tensors.get(&format!("{name}.{key}"));
    let config = SchedulerConfig::from_json(&case["config"].to_string())?;
    let given = |key: &str, default: f64| case["step_kwargs"][key].as_f64().unwrap_or(default);
    let options = StepOptions {
        eta: given("eta", 0.0),
        s_churn: given("s_churn", 0.0),
        s_noise: given("s_noise", 1.0),
        ..StepOptions::default()
    };
    let mut solver = config.solver(count(case, "steps")?, &options)?;
    let mut wrong = Vec::new();

    let timesteps = numbers(golden("timesteps").ok_or("no timesteps")?)?;
    let same = solver.timesteps().len() == timesteps.len()
        && solver.timesteps().iter().zip(&timesteps).all(|(a, b)| (a - b).abs() < TIMESTEP_TOLERANCE);
    if !same {
        wrong.push(format!("timesteps {:?}, golden {timesteps:?}", solver.timesteps()));
        return Ok(wrong);
    }
    let init = numbers(golden("init_noise_sigma").ok_or("no init_noise_sigma")?)?[0];
    if (solver.init_noise_sigma() / init - 1.0).abs() > 1e-6 {
        wrong.push(format!("init_noise_sigma {}, golden {init}", solver.init_noise_sigma()));
    }

    let inputs = Inputs::new(tensors, count(case, "batch")?, case["variance"] == true)?;
    let seed = case["seed"].as_u64().ok_or("no seed")?;
    let kept = list(case, "kept")?;
    let tolerance = TOLERANCE + ROUNDING * case["float64_gap"].as_f64().unwrap_or_default();
    run(solver.as_mut(), &inputs, seed, |index, scaled, step| {
        let Some(position) = kept.iter().position(|kept| kept.as_u64() == Some(index as u64)) else {
            return Ok(());
        };
        let original = step.pred_original_sample.as_ref();
        for (key, found) in [
            ("scaled_inputs", Some(scaled)),
            ("prev_samples", Some(&step.prev_sample)),
            ("pred_original_sample", original),
        ] {
            let Some(golden) = golden(key) else { continue };
            let gap = match found {
                Some(found) => gap(found, &golden.get(position)?)?,
                None => f64::INFINITY,
            };
            if gap > tolerance {
                wrong.push(format!("step {index}: {key} off by {gap:.1e} > {tolerance:.1e}"));
            }
        }
        Ok(())
    })?;
    Ok(wrong)
}

#[test]
fn every_run_is_that_of_diffusers() -> Outcome<()> {
    let (cases, tensors) = (read_json("cases.json")?, read_tensors()?);
    let cases = list(&cases, "cases")?;
    assert!(!cases.is_empty());
    let mut failures = Vec::new();
    for case in cases {
        let wrong = check(case, &tensors).unwrap_or_else(|error| vec![format!("error: {error}")]);
        if !wrong.is_empty() {
            failures.push(format!("{}\n    {}", case["name"], wrong.join("\n    ")));
        }
    }
    let (failed, all) = (failures.len(), cases.len());
    assert!(failures.is_empty(), "{failed} of {all} cases fail:\n{}", failures.join("\n"));
    Ok(())
}

#[test]
fn what_diffusers_refuses_is_refused_or_done_well() -> Outcome<()> {
    let (cases, tensors) = (read_json("cases.json")?, read_tensors()?);
    let mut failures = Vec::new();
    for case in list(&cases, "refused")? {
        let name = case["name"].as_str().ok_or("a case has no name")?;
        let mut config = case["config"].as_object().ok_or("a case has no config")?.clone();
        config.insert("_class_name".to_owned(), case["class"].clone());
        let attempt = || -> Outcome<bool> {
            let config = SchedulerConfig::from_json(&Value::Object(config).to_string())?;
            let mut solver = config.solver(count(case, "steps")?, &StepOptions::default())?;
            let inputs = Inputs::new(&tensors, 1, false)?;
            let mut finite = true;
            run(solver.as_mut(), &inputs, 0, |_, _, step| {
                finite &= numbers(&step.prev_sample)?.iter().all(|value| value.is_finite());
                Ok(())
            })?;
            Ok(finite)
        };
        match attempt() {
            Ok(false) => failures.push(format!("{name}: the result is not finite")),
            Ok(true) if !DONE_HERE.contains(&name) => failures.push(format!("{name}: not refused")),
            Err(error) if DONE_HERE.contains(&name) => failures.push(format!("{name}: {error}")),
            Ok(true) | Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Whether two values mean the same; numbers count by their value.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The fields that differ. The fixture leaves out the field that holds a function.
fn differences(found: &Map<String, Value>, golden: &Map<String, Value>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (field, value) in golden {
        let found = found.get(field);
        if !found.is_some_and(|found| same(found, value)) {
            wrong.push(format!("{field} is {found:?}, golden {value}"));
        }
    }
    for field in found.keys() {
        if !golden.contains_key(field) && field != "tau_func" {
            wrong.push(format!("{field} is not in the class"));
        }
    }
    wrong
}

#[test]
fn defaults_are_those_of_diffusers() -> Outcome<()> {
    let golden = read_json("defaults.json")?;
    for kind in SchedulerKind::ALL {
        let fields = golden[kind.class_name()].as_object().ok_or("a class is missing")?;
        let wrong = differences(&SchedulerConfig::new(kind).fields(), fields);
        assert!(wrong.is_empty(), "{kind}: {}", wrong.join("; "));
    }
    Ok(())
}

#[test]
fn configs_convert_as_in_diffusers() -> Outcome<()> {
    let golden = read_json("from_config.json")?;
    let mut failures = Vec::new();
    for swap in list(&golden, "swaps")? {
        let source = swap["source"].as_str().ok_or("a swap has no source")?;
        let kind: SchedulerKind = swap["class"].as_str().ok_or("a swap has no class")?.parse()?;
        let config = SchedulerConfig::from_json(&golden["sources"][source].to_string())?;
        let converted = config.convert(kind);
        let wrong = match swap["config"].as_object() {
            Some(fields) => differences(&converted.fields(), fields),
            // Diffusers stumbles over the algorithm's name, which is translated here.
            None if kind == SchedulerKind::SaSolver => match converted.max_steps() {
                Ok(_) => vec![],
                Err(error) => vec![error.to_string()],
            },
            None => vec!["diffusers refuses this".to_owned()],
        };
        if !wrong.is_empty() {
            failures.push(format!("{source} to {kind}: {}", wrong.join("; ")));
        }
        if let Err(error) = converted.solver(10, &StepOptions::default()) {
            failures.push(format!("{source} to {kind}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
