//! What holds for every solver, through the public interface.

use candle_core::{Device, Tensor};
use pixart_diffusion::{
    Error, Generator, NoiseSchedule, NoiseSource, Result, SchedulerConfig, SchedulerKind, Solver, StepOptions,
};

/// The one picture of the data that the networks of these tests have seen: all grey.
const GREY: f64 = 0.3;

/// The noise in a sample, for a network that knows the picture.
fn noise_in(sample: &Tensor, timestep: f64, schedule: &NoiseSchedule) -> Result<Tensor> {
    let alpha = schedule.alphas_cumprod()[timestep as usize];
    let spread = (1.0 - alpha).sqrt();
    Ok(sample.affine(1.0 / spread, -GREY * alpha.sqrt() / spread)?)
}

/// Leads `sample` from step `begin` to the end.
fn finish(
    solver: &mut dyn Solver,
    schedule: &NoiseSchedule,
    mut sample: Tensor,
    begin: usize,
    source: &mut NoiseSource,
) -> Result<Tensor> {
    let timesteps = solver.timesteps().to_vec();
    for (index, timestep) in timesteps.into_iter().enumerate().skip(begin) {
        let input = solver.scale_model_input(&sample, index)?;
        let model_output = noise_in(&input, timestep, schedule)?;
        sample = solver.step(&model_output, index, &sample, source)?.prev_sample;
    }
    Ok(sample)
}

fn start(solver: &dyn Solver, source: &mut NoiseSource) -> Result<Tensor> {
    let noise = source.randn_tensor((2, 4, 4, 4), &Device::Cpu)?;
    Ok((noise * solver.init_noise_sigma())?)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn furthest_from_grey(sample: &Tensor) -> Result<f64> {
    let distances = values(sample)?.into_iter().map(|value| (f64::from(value) - GREY).abs());
    Ok(distances.fold(0.0, f64::max))
}

/// All schedulers at their defaults, and the stochastic DPM-Solver.
fn all_configs() -> Result<Vec<SchedulerConfig>> {
    let mut configs: Vec<_> = SchedulerKind::ALL.into_iter().map(SchedulerConfig::new).collect();
    configs.push(configs[0].named("dpm-solver++-sde")?);
    Ok(configs)
}

/// SA-Solver alone stops at the lowest noise level of the schedule instead of at none.
fn tolerance(kind: SchedulerKind) -> f64 {
    if kind == SchedulerKind::SaSolver { 0.06 } else { 1e-3 }
}

#[test]
fn a_network_that_knows_the_picture_leads_to_it() -> Result<()> {
    for config in all_configs()? {
        let schedule = NoiseSchedule::from_config(&config)?;
        let mut solver = config.solver(4, &StepOptions::default())?;
        let mut source = NoiseSource::from(Generator::new(1));
        let sample = start(solver.as_ref(), &mut source)?;
        let sample = finish(solver.as_mut(), &schedule, sample, 0, &mut source)?;
        let distance = furthest_from_grey(&sample)?;
        assert!(distance < tolerance(config.kind()), "{}: {distance}", config.kind());
    }
    Ok(())
}

#[test]
fn one_may_begin_in_the_middle_from_a_noised_picture() -> Result<()> {
    for config in all_configs()? {
        let schedule = NoiseSchedule::from_config(&config)?;
        let mut solver = config.solver(4, &StepOptions::default())?;
        let mut source = NoiseSource::from(Generator::new(1));
        let noise = source.randn_tensor((2, 4, 4, 4), &Device::Cpu)?;
        let grey = noise.affine(0.0, GREY)?;
        // At the third step of the method, whose index is higher where a step is two calls.
        let begin = 2 * solver.order();
        let sample = solver.add_noise(&grey, &noise, begin)?;
        let found = noise_in(&solver.scale_model_input(&sample, begin)?, solver.timesteps()[begin], &schedule)?;
        for (a, b) in values(&found)?.into_iter().zip(values(&noise)?) {
            assert!((a - b).abs() < 1e-3, "{}: {a}, not {b}", config.kind());
        }
        let sample = finish(solver.as_mut(), &schedule, sample, begin, &mut source)?;
        let distance = furthest_from_grey(&sample)?;
        assert!(distance < tolerance(config.kind()), "{}: {distance}", config.kind());
    }
    Ok(())
}

#[test]
fn a_solver_may_be_used_again() -> Result<()> {
    for config in all_configs()? {
        let schedule = NoiseSchedule::from_config(&config)?;
        let mut solver = config.solver(5, &StepOptions::default())?;
        let mut runs = Vec::new();
        for _ in 0..2 {
            let mut source = NoiseSource::from(Generator::new(3));
            let sample = start(solver.as_ref(), &mut source)?;
            // Left off in the middle, then run to the end.
            finish(solver.as_mut(), &schedule, sample.clone(), 3, &mut Generator::new(0).into())?;
            let sample = finish(solver.as_mut(), &schedule, sample, 0, &mut source)?;
            runs.push(values(&sample)?);
        }
        assert_eq!(runs[0], runs[1], "{}", config.kind());
    }
    Ok(())
}

#[test]
fn numbers_of_steps_have_bounds() -> Result<()> {
    for config in all_configs()? {
        let options = StepOptions::default();
        let max = config.max_steps()?;
        let calls = config.solver(max, &options)?.timesteps().len();
        // Heun's last step is one call.
        let expected = if config.kind() == SchedulerKind::HeunDiscrete { 2 * max - 1 } else { max };
        assert_eq!(calls, expected, "{}", config.kind());
        assert!(matches!(config.solver(0, &options), Err(Error::ZeroSteps { .. })));
        let error = config.solver(max + 1, &options).err().map(|e| e.to_string());
        let message = error.unwrap_or_default();
        assert!(message.contains(&format!("{}", max + 1)), "{message}");
        assert!(message.contains(&format!("at most {max}")), "{message}");
    }
    Ok(())
}

#[test]
fn a_step_beyond_the_end_is_an_error() -> Result<()> {
    for config in all_configs()? {
        let mut solver = config.solver(2, &StepOptions::default())?;
        let mut source = NoiseSource::from(Generator::new(0));
        let sample = source.randn_tensor((1, 4, 2, 2), &Device::Cpu)?;
        let beyond = solver.timesteps().len();
        let outcomes = [
            solver.scale_model_input(&sample, beyond),
            solver.add_noise(&sample, &sample, beyond),
            solver.step(&sample, beyond, &sample, &mut source).map(|step| step.prev_sample),
        ];
        for outcome in outcomes {
            let refused = matches!(outcome, Err(Error::StepOutOfRange { .. }));
            assert!(refused, "{}", config.kind());
        }
    }
    Ok(())
}

#[test]
fn refusals_name_the_field_and_what_is_supported() -> Result<()> {
    for (kind, field, value) in [
        (SchedulerKind::DpmSolverMultistep, "use_flow_sigmas", "true"),
        (SchedulerKind::DpmSolverMultistep, "flow_shift", "3.0"),
        (SchedulerKind::DpmSolverMultistep, "prediction_type", "\"flow_prediction\""),
        (SchedulerKind::DpmSolverMultistep, "solver_order", "4"),
        (SchedulerKind::DpmSolverMultistep, "variance_type", "\"other\""),
        (SchedulerKind::DpmSolverMultistep, "lambda_min_clipped", "Infinity"),
        (SchedulerKind::UniPcMultistep, "solver_p", "{}"),
        (SchedulerKind::UniPcMultistep, "shift_terminal", "0.1"),
        (SchedulerKind::SaSolver, "tau_func", "\"lambda t: 1\""),
        (SchedulerKind::SaSolver, "corrector_order", "5"),
        (SchedulerKind::EulerAncestralDiscrete, "prediction_type", "\"sample\""),
        (SchedulerKind::EulerDiscrete, "timestep_type", "\"other\""),
        (SchedulerKind::HeunDiscrete, "beta_schedule", "\"sigmoid\""),
        (SchedulerKind::Ddpm, "variance_type", "\"fixed_large_log\""),
        (SchedulerKind::Ddim, "timestep_spacing", "\"other\""),
        (SchedulerKind::Lcm, "original_inference_steps", "1001"),
    ] {
        let class = kind.class_name();
        let text = format!("{{\"_class_name\": \"{class}\", \"{field}\": {value}}}");
        let config = SchedulerConfig::from_json(&text)?;
        let error = config.solver(1, &StepOptions::default()).err().map(|e| e.to_string());
        let message = error.unwrap_or_default();
        let named = message.contains(&format!("{kind}: ")) && message.contains(field);
        assert!(named && message.contains("supported"), "{kind} {field}: {message}");
    }
    Ok(())
}
