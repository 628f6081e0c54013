//! Losses and steps of training against PyTorch's, on the golden checkpoint (`tools/reference/training.py`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use pixart_diffusion::{Generator, NoiseSource, SchedulerConfig, SchedulerKind, StepOptions};
use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};
use pixart_train::{
    ConsistencyInputs, ConsistencyLoss, ConsistencySettings, ConsistencyTerms, Ema, HybridLoss, Optimizer,
    OptimizerSettings, Parameters,
};
use pixart_weights::{Lora, LoraConfig, Part, PipelineFolder, Weights, read_json, write_tensors};

use crate::{Result, STRIDE, assert_close, assert_within, check, check_all, fixtures, golden, values};

/// AdamW divides by the size of gradients: where they are next to nothing, rounding decides where a weight moves. PyTorch's
/// own f32 is within 1e-4 of its f64.
const UPDATE_TOLERANCE: f64 = 1e-3;

fn folder() -> Result<PipelineFolder> {
    Ok(PipelineFolder::open(fixtures().join("checkpoints/alpha-256"))?)
}

fn weights() -> Result<Weights> {
    Ok(folder()?.weights(Part::Transformer, DType::F32)?)
}

fn config() -> Result<TransformerConfig> {
    Ok(folder()?.config(Part::Transformer)?)
}

fn indices(tensor: &Tensor) -> Result<Vec<usize>> {
    Ok(values(tensor)?.into_iter().map(|value| value as usize).collect())
}

/// The noise that a network predicts, or with `whole` also what it says of the variance.
fn predict(
    network: &PixArtTransformer,
    latents: &Tensor,
    ts: &[usize],
    text: (&Tensor, &Tensor),
    whole: bool,
) -> pixart_train::Result<Tensor> {
    let ts = Tensor::from_vec(ts.iter().map(|t| *t as f32).collect(), latents.dim(0)?, &Device::Cpu)?;
    let text = network.project_text(text.0, Some(text.1))?;
    let output = network.forward(latents, &ts, &text, None)?;
    Ok(if whole { output } else { output.narrow(1, 0, latents.dim(1)?)? })
}

#[test]
fn diffusion_with_a_learned_variance() -> Result {
    let golden = golden("training/diffusion")?;
    let (x0, noise) = (&golden["latents"], &golden["noise"]);
    let ts = indices(&golden["timestep"])?;
    let losses = HybridLoss::new();
    let x_t = losses.add_noise(x0, noise, &ts)?;
    check(&golden, "x_t", &x_t, 0.0)?;

    let parameters = Parameters::stored(weights()?, &Device::Cpu);
    let network = PixArtTransformer::new(&config()?, parameters.builder(DType::F32))?;
    let text = (&golden["prompt_embeds"], &golden["prompt_attention_mask"]);
    let output = predict(&network, &x_t, &ts, text, true)?;
    check(&golden, "output", &output, 0.0)?;

    let of_output = Var::from_tensor(&output.detach())?;
    let found = losses.losses(&of_output, &x_t, x0, noise, &ts)?;
    check(&golden, "mse", &found.mse, 0.0)?;
    check(&golden, "vb", &found.vb, 0.0)?;
    let gradients = (found.mse + found.vb)?.sum_all()?.backward()?;
    check(&golden, "output_gradient", gradients.get(&of_output).ok_or("no gradient")?, 0.0)?;

    let found = losses.losses(&output, &x_t, x0, noise, &ts)?;
    let loss = (found.mse + found.vb)?;
    for (place, t) in ts.iter().enumerate() {
        check_all(&golden, &format!("t_{t}.gradient."), &parameters, &loss.get(place)?.backward()?)?;
    }
    Ok(())
}

/// Every weight of the checkpoint times `1 + share` at even places and `1 - share` at odd ones.
fn alternating(share: f64) -> Result<BTreeMap<String, Tensor>> {
    let weights = weights()?;
    let mut changed = BTreeMap::new();
    for name in weights.tensors().keys().filter(|name| *name != "pos_embed.pos_embed") {
        let weight = weights.tensor(name, DType::F32, &Device::Cpu)?;
        let factors: Vec<f32> = (0..weight.elem_count())
            .map(|i| if i % 2 == 0 { 1.0 + share as f32 } else { 1.0 - share as f32 })
            .collect();
        let factors = Tensor::from_vec(factors, weight.shape(), &Device::Cpu)?;
        changed.insert(name.clone(), (weight * factors)?);
    }
    Ok(changed)
}

fn saved(tensors: &BTreeMap<String, Tensor>) -> Result<(tempfile::TempDir, std::path::PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tensors.safetensors");
    write_tensors(&path, &tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>())?;
    Ok((folder, path))
}

/// What the golden steps were optimised with.
fn optimizer(parameters: &Parameters) -> Result<Optimizer> {
    let settings = OptimizerSettings { lr: 1e-3, eps: 1e-10, max_grad_norm: Some(0.01), ..Default::default() };
    Ok(Optimizer::new(settings, parameters)?)
}

/// One golden step's terms, as these networks have them.
fn terms(
    golden: &BTreeMap<String, Tensor>,
    step: usize,
    student: &PixArtTransformer,
    target: &PixArtTransformer,
) -> Result<ConsistencyTerms> {
    let get = |name: &str| &golden[&format!("step_{step}.{name}")];
    let latents = get("latents");
    let indices = indices(get("indices"))?;
    let teacher = PixArtTransformer::new(&config()?, weights()?.named(DType::F32, &Device::Cpu))?;
    let text = (get("prompt_embeds"), get("prompt_attention_mask"));
    let batch = latents.dim(0)?;
    let null = (get("null_embeds").repeat((batch, 1, 1))?, get("null_attention_mask").repeat((batch, 1))?);
    let loss = ConsistencyLoss::new(ConsistencySettings::default())?;
    Ok(loss.terms(
        &ConsistencyInputs { latents, noise: get("noise"), indices: &indices },
        |z, ts| predict(student, z, ts, text, false),
        |z, ts| predict(target, z, ts, text, false),
        |z, ts| Ok([predict(&teacher, z, ts, text, false)?, predict(&teacher, z, ts, (&null.0, &null.1), false)?]),
    )?)
}

/// Holds a step's terms to the golden ones, takes the optimiser's step, and holds the gradient to the golden one.
fn check_step(
    golden: &BTreeMap<String, Tensor>,
    step: usize,
    terms: &ConsistencyTerms,
    parameters: &Parameters,
    optimizer: &mut Optimizer,
) -> Result {
    let name = |name: &str| format!("step_{step}.{name}");
    check(golden, &name("target"), &terms.target, 0.0)?;
    check(golden, &name("prediction"), &terms.prediction, 0.0)?;
    check(golden, &name("loss"), &terms.loss, 0.0)?;
    let gradients = terms.loss.backward()?;
    if step == 0 {
        check_all(golden, "step_0.gradient.", parameters, &gradients)?;
    }
    let norm = optimizer.step(&gradients, 1.0, 1.0)?;
    assert_close(&name("gradient_norm"), &[norm], &values(&golden[&name("gradient_norm")])?, 0.0);
    Ok(())
}

/// Holds what training added to each weight to what it added in PyTorch, but for those that have no gradient but rounding.
fn check_updates(
    golden: &BTreeMap<String, Tensor>,
    prefix: &str,
    start: &BTreeMap<String, Tensor>,
    after: impl IntoIterator<Item = (String, Tensor)>,
) -> Result {
    let mut compared = 0;
    for (name, after) in after {
        if name.ends_with("to_k.bias") {
            continue;
        }
        let whole = golden.get(&format!("{prefix}{name}"));
        let thinned = golden.get(&format!("{prefix}{name}.every_{STRIDE}"));
        let (expected, stride) = match (whole, thinned) {
            (Some(whole), _) => (whole, 1),
            (None, thinned) => (thinned.ok_or(format!("no golden {name}"))?, STRIDE),
        };
        let thin = |tensor: &Tensor| -> Result<Vec<f64>> { Ok(values(tensor)?.into_iter().step_by(stride).collect()) };
        let start = thin(&start[&name])?;
        let update =
            |after: Vec<f64>| -> Vec<f64> { after.iter().zip(&start).map(|(after, start)| after - start).collect() };
        assert_within(&name, &update(thin(&after)?), &update(values(expected)?), 0.0, UPDATE_TOLERANCE);
        compared += 1;
    }
    assert!(compared > 20, "only {compared} weights were compared");
    Ok(())
}

#[test]
fn latent_consistency_distillation() -> Result {
    let golden = golden("training/consistency")?;
    let schedule = ConsistencyLoss::new(ConsistencySettings::default())?;
    let grid = schedule.timesteps();
    assert_eq!((grid[0], grid[1], grid[49], grid.len()), (19, 39, 999, 50));

    let (student_start, target_start) = (alternating(0.02)?, alternating(-0.01)?);
    let (_student_folder, student_path) = saved(&student_start)?;
    let (_target_folder, target_path) = saved(&target_start)?;
    let parameters = Parameters::stored(Weights::open(&student_path)?, &Device::Cpu);
    let student = PixArtTransformer::new(&config()?, parameters.builder(DType::F32))?;
    let mut target = Ema::new(&parameters)?;
    target.load(&target_path)?;
    let mut optimizer = optimizer(&parameters)?;
    for step in 0..3 {
        let held_to = PixArtTransformer::new(&config()?, target.builder(DType::F32))?;
        let terms = terms(&golden, step, &student, &held_to)?;
        check(&golden, &format!("step_{step}.z_s"), &terms.z_s, 0.0)?;
        check_step(&golden, step, &terms, &parameters, &mut optimizer)?;
        target.update(0.95)?;
    }
    let all = parameters.all().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor()));
    check_updates(&golden, "student.", &student_start, all)?;
    let (_folder, target_after) = {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("target.safetensors");
        target.save(&path)?;
        (folder, pixart_weights::read_tensors(&path, &Device::Cpu)?)
    };
    check_updates(&golden, "target.", &target_start, target_after)
}

/// Numbers of one image.
fn wave(frequency: f64) -> Result<Tensor> {
    let wave: Vec<f32> = (0..64).map(|i| (f64::from(i) * frequency).sin() as f32).collect();
    Ok(Tensor::from_vec(wave, (1, 4, 4, 4), &Device::Cpu)?)
}

/// The signal's part of the variance at a timestep, from the betas.
fn signal(t: usize) -> f64 {
    (0..=t).map(|i| 1.0 - (1e-4 + (0.02 - 1e-4) * f64::from(i as u32) / 999.0)).product()
}

/// A teacher that knows the noise is asked at evenly spaced timesteps, and leads to the same picture with less of that noise.
#[test]
fn latent_consistency_goes_a_longer_way() -> Result {
    let (latents, noise) = (wave(0.7)?, wave(1.3)?);
    for (index, asked, arrived) in [(24, [499, 453, 406], 359), (6, [139, 93, 47], 0), (0, [19, 13, 7], 0)] {
        let settings = ConsistencySettings { skip: 7, teacher_steps: 3, ..ConsistencySettings::default() };
        let loss = ConsistencyLoss::new(settings)?;
        let inputs = ConsistencyInputs { latents: &latents, noise: &noise, indices: &[index] };
        let (seen, target_at) = (RefCell::new(vec![]), RefCell::new(vec![]));
        let terms = loss.terms(
            &inputs,
            |z, _| Ok((z * 0.9)?),
            |z, ts| {
                target_at.borrow_mut().extend_from_slice(ts);
                Ok((z * 0.8)?)
            },
            |_, ts| {
                seen.borrow_mut().extend_from_slice(ts);
                Ok([noise.clone(), noise.clone()])
            },
        )?;
        assert_eq!((seen.into_inner(), target_at.into_inner()), (asked.to_vec(), vec![arrived]));
        let signal = signal(arrived);
        let expected = ((&latents * signal.sqrt())? + (&noise * (1.0 - signal).sqrt())?)?;
        assert_within("z_s", &values(&terms.z_s)?, &values(&expected)?, 0.0, 1e-4);
    }
    Ok(())
}

/// Only the timesteps of few steps are learned, as diffusers' `LCMScheduler` chooses them.
#[test]
fn latent_consistency_of_few_steps() -> Result {
    for (steps, expected) in [
        (1, vec![999]),
        (2, vec![499, 999]),
        (3, vec![339, 679, 999]),
        (4, vec![259, 499, 759, 999]),
        (8, vec![139, 259, 379, 499, 639, 759, 879, 999]),
    ] {
        let settings = ConsistencySettings { solver_steps: Some(steps), ..ConsistencySettings::default() };
        assert_eq!(ConsistencyLoss::new(settings)?.timesteps(), expected);
    }
    Ok(())
}

/// What the student draws on its way is what the LCM solver draws with the same noise, in steps of which any may be left out.
#[test]
fn latent_consistency_goes_on_from_pictures_of_its_own() -> Result {
    let loss = ConsistencyLoss::new(ConsistencySettings { solver_steps: Some(4), ..ConsistencySettings::default() })?;
    assert_eq!(loss.way_to(3, || 0.5), [0; 0]);
    assert_eq!(loss.way_to(0, || 0.0), [3], "straight there");
    assert_eq!(loss.way_to(0, || 0.999), [3, 2, 1], "by every timestep");
    assert_eq!(loss.way_to(1, || 0.999), [3, 2]);

    let student = |z: &Tensor, t: f64| -> Result<Tensor> { Ok(((z * (t / 1e3))? + 0.1)?) };
    let config = SchedulerConfig::new(SchedulerKind::Lcm)
        .with("beta_start", 1e-4)?
        .with("beta_end", 0.02)?
        .with("beta_schedule", "linear")?;
    let drawn = |steps: usize, done: usize, seed: u64| -> Result<Tensor> {
        let mut solver = config.solver(steps, &StepOptions::default())?;
        let mut source = NoiseSource::from(Generator::new(seed));
        let mut z = source.randn_tensor((1, 4, 4, 4), &Device::Cpu)?;
        let mut picture = z.clone();
        for index in 0..done {
            let output = student(&z, solver.timesteps()[index])?;
            let step = solver.step(&output, index, &z, &mut source)?;
            picture = step.pred_original_sample.expect("LCM predicts a picture");
            z = step.prev_sample;
        }
        Ok(picture)
    };
    // By all three timesteps before the last; in two steps, 999 and 499; one step; and a picture of the data.
    let ways = [vec![3, 2, 1], vec![3, 1], vec![3], vec![]];
    let mut sources: Vec<_> = (0..4).map(|seed| NoiseSource::from(Generator::new(seed))).collect();
    let data = wave(0.7)?.repeat((4, 1, 1, 1))?;
    let pictures = loss.own_pictures(
        &data,
        &ways,
        || {
            let noise = sources.iter_mut().map(|source| source.randn_tensor((1, 4, 4, 4), &Device::Cpu));
            Ok(Tensor::cat(&noise.collect::<std::result::Result<Vec<_>, _>>()?, 0)?)
        },
        |z, ts| {
            let images = (0..ts.len()).map(|row| Ok(((z.narrow(0, row, 1)? * (ts[row] as f64 / 1e3))? + 0.1)?));
            Ok(Tensor::cat(&images.collect::<pixart_train::Result<Vec<_>>>()?, 0)?)
        },
    )?;
    for (row, expected) in [drawn(4, 3, 0)?, drawn(2, 2, 1)?, drawn(1, 1, 2)?, wave(0.7)?].iter().enumerate() {
        let found = values(&pictures.narrow(0, row, 1)?)?;
        assert_within(&format!("way {:?}", ways[row]), &found, &values(expected)?, 0.0, 1e-5);
    }
    Ok(())
}

/// How often each of the timesteps that are learned is drawn, from the last to the first.
fn shares_of_timesteps(loss: &ConsistencyLoss) -> Vec<f64> {
    let draws = 100_000;
    let mut found = vec![0; loss.timesteps().len()];
    for draw in 0..draws {
        found[loss.index(draw as f32 / draws as f32)] += 1;
    }
    found.into_iter().map(|found| f64::from(found) / f64::from(draws)).collect()
}

/// Timesteps are drawn equally often, or in proportion to a power of their signal-to-noise ratio, which is computed here from the betas.
#[test]
fn latent_consistency_draws_by_a_power_of_the_ratio() -> Result {
    for (power, solver_steps) in [(0.0, None), (0.25, Some(4)), (0.5, Some(2)), (1.0, None)] {
        let settings = ConsistencySettings { solver_steps, snr_power: power, ..ConsistencySettings::default() };
        let loss = ConsistencyLoss::new(settings)?;
        let ratio = |t: &usize| (signal(*t) / (1.0 - signal(*t))).powf(power);
        let all: f64 = loss.timesteps().iter().map(ratio).sum();
        for (t, found) in loss.timesteps().iter().zip(shares_of_timesteps(&loss)) {
            let expected = ratio(t) / all;
            assert!((found - expected).abs() < 1e-4, "timestep {t}, power {power}: {found}, not {expected}");
        }
        assert_eq!(loss.index(f32::from_bits(1.0f32.to_bits() - 1)), loss.timesteps().len() - 1);
    }
    Ok(())
}

/// Shares are told from the first timestep to the last, as the solver goes, and one that is 0 is never drawn.
#[test]
fn latent_consistency_draws_by_shares() -> Result {
    let timestep_shares = Some(vec![1.0, 0.0, 6.0, 3.0]);
    let settings = ConsistencySettings { solver_steps: Some(4), timestep_shares, ..ConsistencySettings::default() };
    let loss = ConsistencyLoss::new(settings)?;
    assert_eq!(loss.timesteps(), [259, 499, 759, 999]);
    assert_within("shares", &shares_of_timesteps(&loss), &[0.3, 0.6, 0.0, 0.1], 0.0, 1e-4);
    Ok(())
}

#[test]
fn latent_consistency_lora() -> Result {
    let inputs = golden("training/consistency")?;
    let golden = golden("training/consistency-lora")?;
    let adapter = fixtures().join("training/lora");
    let lora: LoraConfig = serde_json::from_value(read_json(&adapter.join("adapter_config.json"))?)?;
    let start = Weights::open(adapter.join("adapter_model.safetensors"))?;
    let parameters = Parameters::adapted(weights()?, lora, Some(start.clone()), 0, &Device::Cpu);
    let student = PixArtTransformer::new(&config()?, parameters.builder(DType::F32))?;
    assert_eq!(parameters.all().len(), start.tensors().len(), "the same layers are adapted");
    let mut optimizer = optimizer(&parameters)?;
    for step in 0..3 {
        // Corrected weights are made anew from the corrections as they are now.
        let student = if step == 0 {
            student.clone()
        } else {
            PixArtTransformer::new(&config()?, parameters.builder(DType::F32))?
        };
        let target = PixArtTransformer::new(&config()?, parameters.detached(DType::F32))?;
        let terms = terms(&inputs, step, &student, &target)?;
        check_step(&golden, step, &terms, &parameters, &mut optimizer)?;
    }
    let start: BTreeMap<_, _> = start
        .tensors()
        .keys()
        .map(|name| Ok((name.clone(), start.tensor(name, DType::F32, &Device::Cpu)?)))
        .collect::<Result<_>>()?;
    let all = parameters.all().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor()));
    check_updates(&golden, "lora.", &start, all)
}

/// A transformer with an adapter draws what it draws in PEFT.
#[test]
fn an_adapter_is_peft_s() -> Result {
    let golden = golden("training/consistency-lora")?;
    let inputs = crate::golden("networks/transformer-alpha-256")?;
    let input = |name: &str| &inputs[&format!("wide.{name}")];
    let output = |weights: Weights| -> Result<Tensor> {
        let network = PixArtTransformer::new(&config()?, weights.named(DType::F32, &Device::Cpu))?;
        let ts = indices(input("timestep"))?;
        let text = (input("encoder_hidden_states"), input("encoder_attention_mask"));
        Ok(predict(&network, input("hidden_states"), &ts, text, true)?)
    };
    let lora = Lora::open(&fixtures().join("training/lora"))?;
    check(&golden, "adapted_output", &output(weights()?.with_lora(lora.clone())?)?, 0.0)?;
    check(&golden, "merged_output", &output(weights()?.with_lora(lora.clone())?)?, 0.0)?;
    // Without any strength it changes nothing, and together with its opposite neither.
    let plain = values(&output(weights()?)?)?;
    assert_close("no strength", &values(&output(weights()?.with_lora(lora.clone().scaled(0.0))?)?)?, &plain, 0.0);
    let both = weights()?.with_lora(lora.clone())?.with_lora(lora.scaled(-1.0))?;
    assert_close("its opposite", &values(&output(both)?)?, &plain, 0.0);
    Ok(())
}
