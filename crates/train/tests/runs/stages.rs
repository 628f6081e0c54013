//! Stages on features: diffusion and distillation, whole networks and LoRAs.

use std::path::{Path, PathBuf};

use candle_core::Device;
use pixart::{Control, Detector, Pipeline, Request};
use pixart_train::{ConsistencyObjective, Data, Extractor, Loss, Objective, Outcome, ScenesDataset, Stage};

use pixart_weights::Part;

use crate::{assert_goes_on, checkpoint, recipe, run};

const RUN: &str = r#"
seed = 2
steps = 6
batch_size = 4
accumulate = 2
warm_up = 2
ema_decay = 0.9
checkpoint_every = 4
validate_every = 6
optimizer = { lr = 1e-3, max_grad_norm = 1.0 }
"#;

const VALIDATION: &str = "validation = { prompts = [\"a red circle\"], steps = 2, guidance_scale = 2.0 }";

/// What of a student is trained, how a recipe says so, and the file that it becomes.
const STUDENTS: [(&str, &str, &str); 2] = [
    ("whole", "", "diffusion_pytorch_model.safetensors"),
    ("lora", "lora = { rank = 4 }", "adapter_model.safetensors"),
];

fn base() -> String {
    format!("base = {:?}", checkpoint())
}

/// A run of one step in which nothing moves.
fn resting() -> String {
    RUN.replace("steps = 6", "steps = 1").replace("lr = 1e-3", "lr = 1e-12").replace("warm_up = 2", "")
}

/// A LoRA for the golden checkpoint, as PEFT wrote it.
fn adapter() -> PathBuf {
    checkpoint().with_file_name("../training/lora")
}

/// Features of a few scenes, with embeddings of their captions if `with_text`.
fn features(folder: &Path, with_text: bool) -> pixart_train::Result<String> {
    extract(folder, with_text, false)
}

/// As [`features`]; with their edges if `controlled`.
fn extract(folder: &Path, with_text: bool, controlled: bool) -> pixart_train::Result<String> {
    let text = with_text.then(|| Pipeline::builder(checkpoint()).keep_loaded(true).open()).transpose()?;
    let mut extractor = Extractor::new(&checkpoint(), text, 64, &Device::Cpu)?;
    if controlled {
        extractor = extractor.with_control(Detector::Canny, "canny");
    }
    let path = folder.join("features");
    extractor.extract(&ScenesDataset { count: 12, size: 64 }, &path, |_| true)?;
    Ok(format!("data.features = {path:?}"))
}

fn draws(pipeline: pixart::PipelineBuilder) -> pixart::Result<Vec<u8>> {
    let request = Request { steps: Some(2), ..Request::new("a red circle") };
    Ok(pipeline.open()?.generate(&request)?.images.remove(0).pixels.into_raw())
}

/// Those of a tensor of a file of weights.
fn numbers(file: &Path, name: &str) -> pixart_train::Result<Vec<f32>> {
    let weights = pixart_weights::Weights::open(file)?;
    Ok(weights.tensor(name, candle_core::DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?)
}

/// Whether no step that moves anything lies between them.
fn agree(one: &[f32], other: &[f32]) -> bool {
    one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[test]
fn a_new_model_is_a_pipeline() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), false)?;
    let new = format!(
        r#"
[stage.diffusion]
snr_gamma = 5.0
{VALIDATION}
[stage.diffusion.new]
vae = {:?}
transformer = {{ num_attention_heads = 2, attention_head_dim = 8, in_channels = 4, out_channels = 8, num_layers = 2, cross_attention_dim = 16, sample_size = 8, caption_channels = 16 }}
text_encoder = {{ vocab_size = 160, d_model = 16, d_kv = 8, d_ff = 32, num_heads = 2, num_layers = 2, feed_forward_proj = "gated-gelu" }}
"#,
        checkpoint()
    );
    let recipe_of = |run: &str| recipe(folder.path(), &format!("{run}{data}{new}"));
    assert_goes_on(&recipe_of(&RUN.replace("lr = 1e-3", "lr = 1e-3, muon = 0.95"))?, folder.path(), 3)?;
    let network = folder.path().join("straight/network");
    assert_eq!(draws(Pipeline::builder(&network))?.len(), 3 * 64 * 64);

    let longer = RUN.replace("steps = 6", "steps = 60").replace("validate_every = 6", "").replace("warm_up = 2", "");
    let (_, reports) = run(&recipe_of(&longer)?, &folder.path().join("longer"), u64::MAX)?;
    let mean = |range: std::ops::Range<usize>| reports[range].iter().map(|report| report.loss).sum::<f64>() / 20.0;
    assert!(mean(40..60) < 0.9 * mean(0..20), "from {} to {}", mean(0..20), mean(40..60));
    Ok(())
}

/// A text encoder learns from layouts, and a new model goes on with it.
#[test]
fn a_text_encoder_may_come_first() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), false)?;
    let config = r#"{ vocab_size = 160, d_model = 16, d_kv = 8, d_ff = 32, num_heads = 2, num_layers = 2, feed_forward_proj = "gated-gelu" }"#;
    let stage = format!("{data}\n[stage.text-encoder]\nnetwork = {config}");
    assert_goes_on(&recipe(folder.path(), &format!("{RUN}{stage}"))?, folder.path(), 3)?;
    let longer = RUN.replace("steps = 6", "steps = 80").replace("lr = 1e-3", "lr = 3e-3");
    let longer = recipe(folder.path(), &format!("{longer}{stage}"))?;
    let output = folder.path().join("longer");
    let (_, reports) = run(&longer, &output, u64::MAX)?;
    let mean = |range: std::ops::Range<usize>| reports[range].iter().map(|report| report.loss).sum::<f64>() / 20.0;
    assert!(mean(60..80) < 0.7 * mean(0..20), "from {} to {}", mean(0..20), mean(60..80));

    // A step that moves nothing leaves it as it is.
    let network = output.join("network");
    let new = |channels: usize| {
        let run = RUN.replace("steps = 6", "steps = 1").replace("lr = 1e-3", "lr = 1e-12").replace("warm_up = 2", "");
        let transformer = format!(
            "{{ num_attention_heads = 2, attention_head_dim = 8, in_channels = 4, out_channels = 8, num_layers = 2, cross_attention_dim = 16, sample_size = 8, caption_channels = {channels} }}"
        );
        let new = format!("vae = {:?}\ntransformer = {transformer}\ntext_encoder = {network:?}", checkpoint());
        recipe(folder.path(), &format!("{run}{data}\n[stage.diffusion]\n{VALIDATION}\n[stage.diffusion.new]\n{new}"))
    };
    run(&new(16)?, &folder.path().join("model"), u64::MAX)?;
    let weights = |folder: &Path| {
        numbers(&folder.join("text_encoder/model.safetensors"), "encoder.block.1.layer.0.SelfAttention.q.weight")
    };
    assert!(agree(&weights(&network)?, &weights(&folder.path().join("model/network"))?));
    let tokens = |folder: &Path| std::fs::read(folder.join("tokenizer/tokenizer.json")).expect("a tokenizer");
    assert_eq!(tokens(&network), tokens(&folder.path().join("model/network")));
    let error = run(&new(24)?, &folder.path().join("wide"), u64::MAX).expect_err("it does not fit").to_string();
    assert!(error.contains("caption_channels is 24, the text encoder's d_model 16"), "{error}");
    Ok(())
}

#[test]
fn a_base_can_be_trained_on_and_adapted() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let plain = draws(Pipeline::builder(checkpoint()))?;
    for (name, stage) in [("diffusion", "diffusion"), ("consistency", "consistency")] {
        for (kind, lora) in [("whole", ""), ("lora", "lora = { rank = 4, alpha = 8.0 }")] {
            let run = folder.path().join(format!("{name}-{kind}"));
            std::fs::create_dir(&run).expect("a folder");
            let text = format!("{RUN}{data}\n[stage.{stage}]\n{}\n{lora}\n{VALIDATION}", base());
            assert_goes_on(&recipe(folder.path(), &text)?, &run, 3)?;
            let network = run.join("straight/network");
            let builder = Pipeline::builder(checkpoint());
            let drawn = draws(match kind {
                "lora" => builder.lora(&network, 1.0),
                _ => builder.part(Part::Transformer, &network),
            })?;
            assert_ne!(drawn, plain, "{name}, {kind}");
            if kind == "lora" {
                assert_eq!(draws(Pipeline::builder(checkpoint()).lora(&network, 0.0))?, plain);
            }
        }
    }
    Ok(())
}

/// A student that starts as another one, and does not move, stays that one.
#[test]
fn a_student_may_start_as_another() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let student = |run: &str, more: &str| {
        recipe(folder.path(), &format!("{run}{data}\n[stage.consistency]\n{}\n{more}\n{VALIDATION}", base()))
    };
    let weights = |transformer: &Path| {
        numbers(&transformer.join("diffusion_pytorch_model.safetensors"), "transformer_blocks.0.attn1.to_q.weight")
    };

    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    run(&student(RUN, "")?, &first, u64::MAX)?;
    let first = first.join("network");
    run(&student(&resting(), &format!("start = {first:?}"))?, &second, u64::MAX)?;
    let (first_weights, second_weights) = (weights(&first)?, weights(&second.join("network"))?);
    assert!(agree(&first_weights, &second_weights));
    assert!(!agree(&first_weights, &weights(&checkpoint().join("transformer"))?));
    Ok(())
}

/// At the same timestep a student has nothing to learn from a target that is like it, and something from another, which it then nears.
#[test]
fn a_student_may_be_held_to_another() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let losses = |output: &str, target: &Path| -> pixart_train::Result<Vec<f64>> {
        // One timestep: at others a difference counts much less.
        let settings = "settings = { solver_steps = 1, skip = 0 }";
        let stage = format!("[stage.consistency]\n{}\ntarget = {target:?}\n{settings}\n{VALIDATION}", base());
        let longer = RUN.replace("steps = 6", "steps = 20");
        let recipe = recipe(folder.path(), &format!("{longer}{data}\n{stage}"))?;
        Ok(run(&recipe, &folder.path().join(output), u64::MAX)?.1.iter().map(|report| report.loss).collect())
    };
    let same = losses("same", &checkpoint().join("transformer"))?;
    assert!(same[0] < 1e-6, "{same:?}");
    let moved = folder.path().join("moved");
    let stage = format!("{RUN}{data}\n[stage.consistency]\n{}\n{VALIDATION}", base());
    run(&recipe(folder.path(), &stage)?, &moved, u64::MAX)?;
    let other = losses("other", &moved.join("network"))?;
    assert!(other[0] > 1e-3, "{other:?}");
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&other[15..]) < 0.8 * mean(&other[..3]), "{other:?}");
    Ok(())
}

/// A LoRA may start as another too.
#[test]
fn a_lora_may_start_as_another() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let lora = format!("lora = {{ rank = 8, start = {:?} }}", adapter());
    let stage = format!("{}{data}\n[stage.diffusion]\n{}\n{lora}\n{VALIDATION}", resting(), base());
    let output = folder.path().join("run");
    run(&recipe(folder.path(), &stage)?, &output, u64::MAX)?;
    for half in ["A", "B"] {
        let name = format!("base_model.model.transformer_blocks.0.attn1.to_q.lora_{half}.weight");
        let (first, second) = (adapter(), output.join("network"));
        let weights = |folder: &Path| numbers(&folder.join("adapter_model.safetensors"), &name);
        assert!(agree(&weights(&first)?, &weights(&second)?), "{name}");
    }
    Ok(())
}

/// All of a student, or a LoRA, goes on from pictures that it draws itself; which images' turn it is is the same each time.
#[test]
fn a_student_goes_on_from_its_own_pictures() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    for lora in ["", "lora = { rank = 4 }"] {
        let losses = |own: f64| -> pixart_train::Result<Vec<f64>> {
            let settings = format!("settings = {{ solver_steps = 4, teacher_steps = 2, own_pictures = {own:.1} }}");
            let stage = format!("{RUN}{data}\n[stage.consistency]\n{}\n{lora}\n{settings}\n{VALIDATION}", base());
            let output = tempfile::tempdir().expect("a temporary folder");
            let (_, reports) = run(&recipe(folder.path(), &stage)?, output.path(), u64::MAX)?;
            Ok(reports.iter().map(|report| report.loss).collect())
        };
        let (data, half, own) = (losses(0.0)?, losses(0.5)?, losses(1.0)?);
        assert!(data != half && half != own && data != own, "{data:?} {half:?} {own:?}");
        assert_eq!(losses(0.5)?, half);
    }
    Ok(())
}

/// A student and a discriminator learn against each other: where one of them rests, the other gets the better of it. Of the discriminator
/// nothing is left in the result, and a run that was stopped goes on with it.
#[test]
fn a_student_may_be_told_sharp_from_blurred() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let stage = |run: &str, lora: &str, more: &str| {
        let adversarial = format!("adversarial = {{ block = 0, {more} }}");
        let settings = "settings = { solver_steps = 4, teacher_steps = 2, own_pictures = 0.5 }";
        let stage = format!("[stage.consistency]\n{}\n{lora}\n{adversarial}\n{settings}\n{VALIDATION}", base());
        recipe(folder.path(), &format!("{run}{data}\n{stage}"))
    };
    for (kind, lora, file) in STUDENTS {
        let output = folder.path().join(kind);
        std::fs::create_dir(&output).expect("a folder");
        let all = "weight = 1.0, noise_below = 500, mismatched_captions = true, feature_matching = 2.0";
        assert_goes_on(&stage(RUN, lora, all)?, &output, 3)?;
        let weights = pixart_weights::Weights::open(output.join("straight/network").join(file))?;
        assert!(weights.tensors().keys().all(|name| !name.contains("discriminator")), "{kind}");
    }

    let bf16 = stage(&format!("precision = \"bf16\"{RUN}"), "", "weight = 1.0, feature_matching = 2.0")?;
    let (_, reports) = run(&bf16, &folder.path().join("bf16"), u64::MAX)?;
    for report in &reports {
        let names: Vec<_> = report.terms.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["consistency", "adversarial", "discriminator", "feature matching"]);
        let terms: Vec<_> = report.terms.iter().map(|(_, value)| value).collect();
        let total = terms[0] + terms[1] + terms[2] + 2.0 * terms[3];
        assert!((report.loss - total).abs() < 1e-4 * report.loss.abs().max(1.0), "{reports:?}");
    }

    let at_rates = |name: &str, lr: &str, factor: &str| -> pixart_train::Result<(f64, f64)> {
        let run_of = RUN
            .replace("steps = 6", "steps = 60")
            .replace("validate_every = 6", "")
            .replace("lr = 1e-3", &format!("lr = {lr}, lr_factors = {{ \"discriminator.\" = {factor} }}"));
        // Nothing else counts.
        let (_, reports) =
            run(&stage(&run_of, "", "weight = 100.0, noise_below = 1")?, &folder.path().join(name), u64::MAX)?;
        let mean = |name: &str, range: std::ops::Range<usize>| {
            let terms = reports[range].iter().flat_map(|report| &report.terms);
            terms.filter(|(term, _)| *term == name).map(|(_, value)| value).sum::<f64>() / 20.0
        };
        let gain = |name| mean(name, 0..20) - mean(name, 40..60);
        Ok((gain("adversarial"), gain("discriminator")))
    };
    let (_, discriminator) = at_rates("resting-student", "1e-9", "1e6")?;
    assert!(discriminator > 0.1, "{discriminator}");
    let (student, _) = at_rates("resting-discriminator", "1e-3", "1e-6")?;
    assert!(student > 0.1, "{student}");
    Ok(())
}

/// A student learns from the score of its own pictures, which learns along: of that nothing is left in the result, a run that was stopped goes
/// on with it, and blocks that are computed again change nothing.
#[test]
fn a_student_may_be_moved_to_what_is_likely() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let stage = |run: &str, lora: &str, more: &str| {
        let matching = "distribution_matching = { weight = 0.5, guidance_scale = 1.5, noise_below = 600 }";
        let settings = "settings = { solver_steps = 4, teacher_steps = 2, own_pictures = 0.5 }";
        let stage = format!("[stage.consistency]\n{}\n{lora}\n{matching}\n{more}\n{settings}\n{VALIDATION}", base());
        recipe(folder.path(), &format!("{run}{data}\n{stage}"))
    };
    for (kind, lora, file) in STUDENTS {
        let output = folder.path().join(kind);
        std::fs::create_dir(&output).expect("a folder");
        assert_goes_on(&stage(RUN, lora, "weight = 0.0\nstudent_after = 2")?, &output, 3)?;
        let result = output.join("straight/network").join(file);
        let weights = pixart_weights::Weights::open(&result)?;
        assert!(weights.tensors().keys().all(|name| !name.contains("fake_score")), "{kind}");
        let mut moved = 0;
        for name in weights.tensors().keys() {
            let before = match lora {
                "" => numbers(&checkpoint().join("transformer").join(file), name)?,
                // The second of its halves is zero at first.
                _ if name.contains("lora_B") => vec![0.0; weights.tensors()[name].shape.iter().product()],
                _ => continue,
            };
            moved += usize::from(!agree(&before, &numbers(&result, name)?));
        }
        assert!(moved >= 10, "{kind}: {moved} have changed");
    }
    let bf16 = stage(&format!("precision = \"bf16\"{RUN}"), "", "weight = 0.0")?;
    assert!(run(&bf16, &folder.path().join("bf16"), u64::MAX)?.1.iter().all(|report| report.loss.is_finite()));

    let all = "weight = 3.0\nstudent_after = 2\nadversarial = { weight = 0.7, block = 0 }";
    let mut reports = Vec::new();
    for checkpointing in [false, true] {
        let run_of = format!("gradient_checkpointing = {checkpointing}{RUN}");
        reports.push(run(&stage(&run_of, "", all)?, &folder.path().join(checkpointing.to_string()), u64::MAX)?.1);
    }
    for (report, again) in reports[0].iter().zip(&reports[1]) {
        let expected = match report.step {
            1 | 2 => vec![("discriminator", 1.0), ("score", 1.0)],
            _ => vec![
                ("consistency", 3.0),
                ("adversarial", 0.7),
                ("discriminator", 1.0),
                ("distribution matching", 0.5),
                ("score", 1.0),
            ],
        };
        let names = |terms: &[(&'static str, f64)]| terms.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(&report.terms), names(&expected));
        let total: f64 = report.terms.iter().zip(&expected).map(|((_, value), (_, weight))| value * weight).sum();
        assert!((report.loss - total).abs() < 1e-5 * report.loss.abs().max(1.0), "{report:?}");
        assert!((report.loss - again.loss).abs() < 1e-4 * report.loss.abs().max(1.0), "{report:?} {again:?}");
        assert!(
            (report.gradient_norm - again.gradient_norm).abs() < 1e-3 * report.gradient_norm,
            "{report:?} {again:?}"
        );
    }

    // A student that is to stay as it is does so while the score learns.
    let resting = RUN.replace("steps = 6", "steps = 60").replace("validate_every = 6", "");
    let output = folder.path().join("resting");
    let (_, reports) = run(&stage(&resting, "", "weight = 0.0\nstudent_after = 60")?, &output, u64::MAX)?;
    let mean = |range: std::ops::Range<usize>| reports[range].iter().map(|report| report.loss).sum::<f64>() / 20.0;
    assert!(mean(40..60) < 0.95 * mean(0..20), "{} {}", mean(0..20), mean(40..60));
    let file = "diffusion_pytorch_model.safetensors";
    let (before, after) = (checkpoint().join("transformer").join(file), output.join("network").join(file));
    for name in pixart_weights::Weights::open(&after)?.tensors().keys() {
        assert_eq!(numbers(&before, name)?, numbers(&after, name)?, "{name}");
    }
    Ok(())
}

/// Each of the networks that learn along with a student gets the gradients of its own loss alone, and the student those of all others.
#[test]
fn losses_reach_whom_they_are_for() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let critics = "adversarial = { weight = 1.0, block = 0, mismatched_captions = true, feature_matching = 1.0 }
                   distribution_matching = { weight = 1.0, guidance_scale = 1.5 }";
    let recipe = recipe(folder.path(), &format!("{RUN}{data}\n[stage.consistency]\n{}\n{critics}", base()))?;
    let (Stage::Consistency(stage), Data::Features(features)) = (&recipe.stage, &recipe.data) else {
        panic!("{recipe:?}");
    };
    let objective = ConsistencyObjective::new(&recipe, stage, features, &Device::Cpu)?;
    let Loss { terms, .. } = objective.loss(1, 0, 2)?;
    assert_eq!(terms.len(), 6);
    for (term, loss) in terms {
        let gradients = loss.backward()?;
        let all = objective.parameters().all();
        let reached = all.iter().filter(|(_, variable)| gradients.get(variable).is_some());
        let reached: Vec<_> = reached.map(|(name, _)| name.as_str()).collect();
        let whose = |name: &str| match name.split_once('.') {
            Some((critic @ ("discriminator" | "fake_score"), _)) => critic.to_string(),
            _ => "student".into(),
        };
        let expected = match term {
            "discriminator" => "discriminator",
            "score" => "fake_score",
            _ => "student",
        };
        assert!(reached.len() >= 4 && reached.iter().all(|name| whose(name) == expected), "{term}: {reached:?}");
    }
    Ok(())
}

/// Features whose captions are words are as good as ones with embeddings: the base's text encoder makes them.
#[test]
fn captions_may_stay_words() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut losses = Vec::new();
    for with_text in [true, false] {
        let folder = folder.path().join(with_text.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let data = features(&folder, with_text)?;
        // Nothing but the empty text, which is the same one.
        let text = format!("{RUN}{data}\n[stage.diffusion]\n{}\ntext_dropout = 1.0\n{VALIDATION}", base());
        losses.push(run(&recipe(&folder, &text)?, &folder.join("empty"), u64::MAX)?.1);
        let text = format!("{RUN}{data}\n[stage.consistency]\n{}\n{VALIDATION}", base());
        std::fs::create_dir(folder.join("run")).expect("a folder");
        assert_goes_on(&recipe(&folder, &text)?, &folder.join("run"), 3)?;
    }
    // Embeddings on disk are f16.
    for (stored, made) in losses[0].iter().zip(&losses[1]) {
        assert!((stored.loss / made.loss - 1.0).abs() < 1e-2, "{} and {}", stored.loss, made.loss);
    }
    Ok(())
}

#[test]
fn a_controlnet_is_trained_and_followed() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = extract(folder.path(), true, true)?;
    let stage = |more: &str| {
        let stage = format!("[stage.controlnet]\n{}\nnum_layers = 1\n{more}\n{VALIDATION}", base());
        recipe(folder.path(), &format!("{RUN}{data}\n{stage}"))
    };
    assert_goes_on(&stage("")?, folder.path(), 3)?;
    let network = folder.path().join("straight/network");
    let weights = pixart_weights::Weights::open(network.join("diffusion_pytorch_model.safetensors"))?;
    assert!(weights.tensors().keys().all(|name| name.starts_with("controlnet_blocks.0.")), "{weights:?}");

    // It says something, and its edges matter.
    let map =
        |shift: u32| image::GrayImage::from_fn(64, 64, |x, y| image::Luma([255 * u8::from((x + y) % 16 == shift)]));
    let draw = |control: Option<Control>| -> pixart_train::Result<Vec<u8>> {
        let mut pipeline = Pipeline::builder(checkpoint()).part(Part::ControlNet, &network).open()?;
        let size = Some(64);
        let request = Request {
            steps: Some(2),
            control,
            width: size,
            height: size,
            resolution_binning: false,
            ..Request::new("x")
        };
        Ok(pipeline.generate(&request)?.images.remove(0).pixels.into_raw())
    };
    let (plain, one, other) = (draw(None)?, draw(Some(Control::new(map(0))))?, draw(Some(Control::new(map(5))))?);
    assert!(plain != one && one != other);
    assert!(draw(Some(Control { scale: 0.0, ..Control::new(map(0)) }))? == plain);

    // It can be trained on.
    let folder_of = |run: &str| folder.path().join(run);
    run(&stage(&format!("start = {network:?}"))?, &folder_of("more"), u64::MAX)?;
    let message = |outcome: pixart_train::Result<(Outcome, Vec<pixart_train::StepReport>)>| match outcome {
        Ok(_) => panic!("it was trained"),
        Err(error) => error.to_string(),
    };
    let deep = stage("")?;
    let pixart_train::Stage::ControlNet(control) = deep.stage.clone() else { panic!("another stage") };
    let control = pixart_train::ControlNetRecipe { num_layers: 2, ..control };
    let deep = pixart_train::Recipe { stage: pixart_train::Stage::ControlNet(control), ..deep };
    let error = message(run(&deep, &folder_of("deep"), u64::MAX));
    assert!(error.contains("2 copied blocks"), "{error}");
    std::fs::remove_dir_all(folder.path().join("features")).expect("a folder");
    let data = extract(folder.path(), true, false)?;
    let plain = recipe(folder.path(), &format!("{RUN}{data}\n[stage.controlnet]\n{}\nnum_layers = 1", base()))?;
    let error = message(run(&plain, &folder_of("plain"), u64::MAX));
    assert!(error.contains("has no conditions"), "{error}");
    Ok(())
}

#[test]
fn what_does_not_belong_together_is_refused() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let refused = |stage: &str, message: &str| {
        let outcome = recipe(folder.path(), &format!("{RUN}{data}\n{stage}"))
            .and_then(|recipe| run(&recipe, &folder.path().join("run"), u64::MAX));
        let error = match outcome {
            Ok((Outcome::Done(_) | Outcome::Stopped(_), _)) => panic!("{stage} was trained"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(message) && !error.contains('\n'), "{stage}: {error}");
    };
    refused("[stage.diffusion]", "either `new` or `base`");
    refused(&format!("[stage.diffusion]\n{}\ntext_dropout = 2.0", base()), "text_dropout is 2");
    refused(&format!("[stage.diffusion]\n{}\nlora = {{ rank = 0 }}", base()), "rank is 0");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ ddim_steps = 7 }}", base()), "ddim_steps is 7");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ skip = 51 }}", base()), "skip is 51");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ teacher_steps = 20 }}", base()), "from 1 to 19");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ solver_steps = 51 }}", base()), "solver_steps is 51");
    let few = "settings = { solver_steps = 4, teacher_steps = 241 }";
    refused(&format!("[stage.consistency]\n{}\n{few}", base()), "from 1 to 240");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ own_pictures = 1.5 }}", base()), "own_pictures is 1.5");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ snr_power = 2.0 }}", base()), "snr_power is 2");
    let shares = |settings: &str| {
        format!("[stage.consistency]\n{}\nsettings = {{ solver_steps = 2, timestep_shares = {settings} }}", base())
    };
    refused(&shares("[1.0]"), "timestep_shares has 1 numbers; 2 timesteps are learned");
    refused(&shares("[1.0, -1.0]"), "none is below 0");
    refused(&shares("[0.0, 0.0]"), "one is above");
    refused(&shares("[0.3, 0.7], snr_power = 0.5"), "stands in place of snr_power");
    refused(&format!("[stage.consistency]\n{}\ntarget_ema_decay = 1.5", base()), "target_ema_decay is 1.5");
    refused("[stage.consistency]\nbase = \"nothing\"", "no such folder");
    let other = checkpoint().with_file_name("sigma-512");
    refused(&format!("[stage.consistency]\nbase = {other:?}"), "another autoencoder");
    let start =
        |more: &str| format!("[stage.consistency]\n{}\nstart = {:?}\n{more}", base(), other.join("transformer"));
    refused(&start(""), "is another transformer than the base's");
    let target = other.join("transformer");
    refused(&format!("[stage.consistency]\n{}\ntarget = {target:?}", base()), "is another transformer than the base's");
    refused(&format!("[stage.consistency]\n{}\nsettings = {{ skip = 0 }}", base()), "skip is 0, which needs a target");
    let adversarial = |settings: &str| format!("[stage.consistency]\n{}\nadversarial = {{ {settings} }}", base());
    refused(&adversarial("weight = 0.0, block = 0"), "adversarial.weight is 0");
    refused(&adversarial("weight = 1.0, block = 2"), "adversarial.block is 2; the base has blocks 0 to 1");
    refused(&adversarial("weight = 1.0, block = 0, noise_below = 1001"), "noise_below is 1001; it is from 1 to 1000");
    refused(&adversarial("weight = 1.0, block = 0, feature_matching = -1.0"), "feature_matching is -1");
    refused(&adversarial("weight = 1.0"), "missing field `block`");
    let of = |settings: &str| format!("[stage.consistency]\n{}\n{settings}", base());
    let matching = |settings: &str| of(&format!("distribution_matching = {{ {settings} }}"));
    refused(&matching("weight = 0.0, guidance_scale = 1.0"), "distribution_matching.weight is 0");
    refused(&matching("weight = 1.0, guidance_scale = nan"), "distribution_matching.guidance_scale is NaN");
    let noise = "weight = 1.0, guidance_scale = 1.0, noise_below = 20";
    refused(&matching(noise), "noise_below is 20; it is from 21 to 1000");
    refused(&matching("weight = 1.0"), "missing field `guidance_scale`");
    refused(&of("weight = -1.0"), "stage.consistency.weight is -1");
    refused(&of("weight = 0.0"), "weight is 0, which needs adversarial or distribution_matching");
    refused(&of("student_after = 5"), "student_after is given, which needs adversarial or distribution_matching");
    let other = checkpoint().join("transformer");
    let both = "weight = 0.0\ndistribution_matching = { weight = 1.0, guidance_scale = 1.0 }";
    refused(&of(&format!("{both}\ntarget = {other:?}")), "weight is 0, and a target is given");
    refused(
        &adversarial("weight = 1.0, block = 0, feature_matching = 1.0 }\nweight = 0.0\nsettings = { skip = 1"),
        "there is no target for feature_matching",
    );
    let alone = adversarial("weight = 1.0, block = 0, mismatched_captions = true");
    refused(&format!("workers = 2\n{alone}"), "mismatched_captions takes two pictures or more in a part");
    refused(&start("lora = { rank = 4 }"), "start is of a whole transformer");
    let lora = |more: &str| format!("[stage.consistency]\n{}\nlora = {{ start = {:?}, {more} }}", base(), adapter());
    refused(&lora("rank = 3"), "has rank 8 and alpha 8, not 3 and 3");
    refused(&lora("rank = 8, target_modules = [\"to_q\"]"), "which target_modules leave out");
    Ok(())
}

/// In every precision, and with blocks computed again in the backward pass, a run goes nearly the same way.
#[test]
fn precisions_and_recomputation_agree() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = features(folder.path(), true)?;
    let losses = |more: &str| -> pixart_train::Result<Vec<f64>> {
        let text = format!("{more}\n{RUN}{data}\n[stage.diffusion]\n{}\n{VALIDATION}", base());
        let output = tempfile::tempdir().expect("a temporary folder");
        Ok(run(&recipe(folder.path(), &text)?, output.path(), u64::MAX)?.1.iter().map(|report| report.loss).collect())
    };
    let plain = losses("")?;
    let near = |others: &[f64], tolerance: f64| plain.iter().zip(others).all(|(a, b)| (a / b - 1.0).abs() < tolerance);
    let recomputed = losses("gradient_checkpointing = true")?;
    assert!(near(&recomputed, 1e-5), "{plain:?} {recomputed:?}");
    for precision in ["bf16", "f16"] {
        let found = losses(&format!("precision = {precision:?}"))?;
        assert!(near(&found, 0.03) && found != plain, "{precision}: {plain:?} {found:?}");
    }
    Ok(())
}
