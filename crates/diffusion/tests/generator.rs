//! The random generator against draws of torch (fixtures/generator, made by
//! tools/reference/generator.py).

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use candle_core::{Device, Tensor};
use pixart_diffusion::Generator;
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn Error>>;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/generator");

struct Draws {
    index: Value,
    tensors: HashMap<String, Tensor>,
}

impl Draws {
    fn read() -> Outcome<Self> {
        let folder = Path::new(FOLDER);
        let index = serde_json::from_str(&std::fs::read_to_string(folder.join("draws.json"))?)?;
        let tensors = candle_core::safetensors::load(folder.join("draws.safetensors"), &Device::Cpu)?;
        Ok(Self { index, tensors })
    }

    /// The entries of a list, each with its seed and its golden numbers.
    fn list(&self, name: &str) -> Outcome<Vec<(&Value, u64, Vec<f32>)>> {
        let entries = self.index[name].as_array().ok_or("a list is missing")?;
        let mut found = Vec::new();
        for entry in entries {
            let key = entry["key"].as_str().ok_or("an entry has no key")?;
            let seed = entry["seed"].as_u64().ok_or("an entry has no seed")?;
            let tensor = self.tensors.get(key).ok_or("a tensor is missing")?;
            found.push((entry, seed, tensor.to_vec1::<f32>()?));
        }
        Ok(found)
    }
}

/// The largest difference; infinite if the lengths differ.
fn gap(found: &[f32], golden: &[f32]) -> f32 {
    if found.len() != golden.len() {
        return f32::INFINITY;
    }
    found.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn uniform_numbers_are_torchs() -> Outcome<()> {
    for (entry, seed, golden) in Draws::read()?.list("uniform")? {
        assert_eq!(Generator::new(seed).rand(golden.len()), golden, "{entry}");
    }
    Ok(())
}

#[test]
fn normal_numbers_are_torchs() -> Outcome<()> {
    let draws = Draws::read()?;
    let mut failures = Vec::new();
    for (entry, seed, golden) in draws.list("single")? {
        let gap = gap(&Generator::new(seed).randn(golden.len()), &golden);
        if gap > 1e-6 {
            failures.push(format!("{entry}: {gap:e}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn draws_in_a_row_are_torchs() -> Outcome<()> {
    let draws = Draws::read()?;
    let mut failures = Vec::new();
    for (entry, seed, golden) in draws.list("sequences")? {
        let mut generator = Generator::new(seed);
        let mut found = Vec::new();
        let mut doubles = false;
        for draw in entry["draws"].as_array().ok_or("a sequence has no draws")? {
            let count = draw[1].as_u64().ok_or("a draw has no size")? as usize;
            match draw[0].as_str() {
                Some("rand") => found.extend(generator.rand(count)),
                Some("randn") => found.extend(generator.randn(count)),
                // Draws of float64, which the engine never makes.
                _ => doubles = true,
            }
        }
        let gap = gap(&found, &golden);
        if !doubles && gap > 1e-6 {
            failures.push(format!("{entry}: {gap:e}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
