//! The autoencoder's.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_scenes::{Scene, Split};
use pixart_train::{Error, StepReport, Trial, reconstruction};
use pixart_weights::{Part, Weights, open_part};

use crate::{assert_goes_on, recipe, run};

const RECIPE: &str = r#"
seed = 3
steps = 20
batch_size = 4
accumulate = 2
warm_up = 3
schedule = "cosine"
ema_decay = 0.9
checkpoint_every = 10
keep_checkpoints = 2
validate_every = 10
optimizer = { lr = 2e-3, max_grad_norm = 1.0, weight_decay = 0.01 }
data.scenes = { size = 32, crop = 16 }

[stage.autoencoder]
kl_weight = 1e-4
edge_weight = 2.0

[stage.autoencoder.network]
block_out_channels = [8, 16]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
norm_num_groups = 4
"#;

/// 20 steps are some steps, an end, and the others: in every loss and in every byte of the result.
#[test]
fn a_run_that_was_stopped_goes_on_as_if_it_had_not_been() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe(folder.path(), RECIPE)?;
    // Half-way, and after a step that saves none by itself.
    assert_goes_on(&recipe, &folder.path().join("half"), 10)?;
    assert_goes_on(&recipe, folder.path(), 7)?;
    let straight = folder.path().join("straight");
    let kept: Vec<_> = std::fs::read_dir(straight.join("checkpoints"))
        .expect("checkpoints")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    Ok(())
}

/// The autoencoder that a run has written.
fn open(network: &Path) -> pixart_train::Result<AutoencoderKl> {
    let (config, weights) = open_part::<VaeConfig>(network, Part::Vae, DType::F32)?;
    Ok(AutoencoderKl::new(&config, weights.named(DType::F32, &Device::Cpu))?)
}

/// It learns, and what it gives is an autoencoder that loads.
#[test]
fn the_loss_falls_and_the_result_loads() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe(folder.path(), &RECIPE.replace("steps = 20", "steps = 150"))?;
    let (_, reports) = run(&recipe, folder.path(), u64::MAX)?;
    let mean = |reports: &[StepReport]| reports.iter().map(|report| report.loss).sum::<f64>() / reports.len() as f64;
    let (first, last) = (mean(&reports[..5]), mean(&reports[145..]));
    assert!(last < 0.6 * first, "from {first} to {last}");

    let vae = open(&folder.path().join("network"))?;
    let config = vae.config();
    let latents = vae.encode(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?)?.mean;
    assert_eq!(latents.dims(), [1, 4, 16, 16]);
    assert!(config.scaling_factor.is_finite() && config.scaling_factor > 0.0);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |from: &str, to: &str, message: &str| {
        let error = recipe(folder.path(), &RECIPE.replace(from, to)).expect_err(to).to_string();
        assert!(error.contains(message) && !error.contains('\n'), "{to}: {error}");
    };
    refused("warm_up = 3", "warmup = 3", "unknown field `warmup`");
    refused("layers_per_block = 1", "layers_per_blok = 1", "unknown field `stage.network.layers_per_blok`");
    refused("steps = 20", "steps = 0", "steps is 0");
    refused("accumulate = 2", "accumulate = 3", "does not divide into 3 parts");
    refused("lr = 2e-3", "lr = -1.0", "optimizer.lr is -1");
    refused("lr = 2e-3", "lr = nan", "optimizer.lr is NaN");
    refused("lr = 2e-3", "lr = 2e-3, lr_factors = { decoder = 0.0 }", "optimizer.lr_factors is 0");
    refused("lr = 2e-3", "lr = 2e-3, lr_factors = { decoder = 2.0, encoder = inf }", "optimizer.lr_factors is inf");
    refused("crop = 16", "crop = 17", "both must divide by 2");
    refused("kl_weight = 1e-4", "kl_weight = -1.0", "kl_weight is -1");
    refused("kl_weight = 1e-4", "kl_weight = 1e-4\nlatent_noise = -0.1", "latent_noise is -0.1");
    refused("kl_weight = 1e-4", "kl_weight = 1e-4\nteacher = 'vae'", "kl_weight must be 0");
    refused("kl_weight = 1e-4", "kl_weight = 0.0\nteacher = 'vae'\nbase = 'vae'\ndecoder_only = true", "decoder_only");
    refused("norm_num_groups = 4", "norm_num_groups = 3", "norm_num_groups 3 does not divide");
    refused("seed = 3", "seed = \"x\"", "line 2");

    let made = recipe(folder.path(), &RECIPE.replace("steps = 20", "steps = 4"))?;
    run(&made, folder.path(), u64::MAX)?;
    let other = recipe(folder.path(), &RECIPE.replace("seed = 3", "seed = 4"))?;
    let error = run(&other, folder.path(), u64::MAX).expect_err("another recipe's run").to_string();
    assert!(error.contains("was made by another recipe"), "{error}");
    Ok(())
}

/// A loss that is not a number ends the run; what was saved stays.
#[test]
fn a_loss_that_is_not_finite_stops_the_run() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = RECIPE.replace("lr = 2e-3, max_grad_norm = 1.0", "lr = 1e30").replace("warm_up = 3", "warm_up = 0");
    let recipe = recipe(folder.path(), &text.replace("checkpoint_every = 10", "checkpoint_every = 1"))?;
    let error = run(&recipe, folder.path(), u64::MAX).expect_err("a learning rate of 1e30");
    let Error::NotFinite { step, kept: Some(kept) } = &error else { panic!("{error}") };
    assert_eq!(*kept, folder.path().join(format!("checkpoints/step-{:08}", step - 1)));
    assert!(kept.join("state.json").exists() && error.to_string().contains("last good checkpoint"), "{error}");
    Ok(())
}

/// A decoder that is trained on alone gets nearer to the pictures, and its encoder stays as it was.
#[test]
fn a_decoder_can_be_trained_alone() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = recipe(folder.path(), &RECIPE.replace("steps = 20", "steps = 80"))?;
    run(&first, &folder.path().join("first"), u64::MAX)?;
    let base = folder.path().join("first/network");
    let second =
        RECIPE.replace("edge_weight = 2.0", &format!("edge_weight = 2.0\ndecoder_only = true\nbase = {base:?}"));
    let (_, reports) = run(&recipe(folder.path(), &second)?, &folder.path().join("second"), u64::MAX)?;
    assert!(reports[19].loss < reports[0].loss, "from {} to {}", reports[0].loss, reports[19].loss);
    let network = |run: &str| folder.path().join(run).join("network");
    let scale = |run: &str| -> serde_json::Value {
        let config = std::fs::read_to_string(network(run).join("config.json")).expect("a config");
        serde_json::from_str::<serde_json::Value>(&config).expect("JSON")["scaling_factor"].clone()
    };
    assert!(scale("first").as_f64() == scale("second").as_f64() && scale("first").is_number());
    let weights = |run: &str| Weights::open(network(run).join("diffusion_pytorch_model.safetensors"));
    let (before, after) = (weights("first")?, weights("second")?);
    for name in before.tensors().keys() {
        let values = |weights: &Weights| -> pixart_train::Result<Vec<f32>> {
            Ok(weights.tensor(name, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        let is_encoder = name.starts_with("encoder.") || name.starts_with("quant_conv.");
        assert_eq!(values(&before)? == values(&after)?, is_encoder, "{name}");
    }
    Ok(())
}

/// A smaller autoencoder comes to have the latents of its teacher: each decodes what the other encodes.
#[test]
fn a_smaller_one_learns_the_latents_of_its_teacher() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = RECIPE.replace("steps = 20", "steps = 150");
    run(&recipe(folder.path(), &text)?, &folder.path().join("teacher"), u64::MAX)?;
    let network = |run: &str| folder.path().join(run).join("network");
    let taught = |channels: &str| {
        let teacher = format!("kl_weight = 0.0\nteacher = {:?}", network("teacher"));
        text.replace("kl_weight = 1e-4", &teacher).replace("[8, 16]", channels)
    };
    let (_, reports) = run(&recipe(folder.path(), &taught("[8, 8]"))?, &folder.path().join("smaller"), u64::MAX)?;
    let latents = |report: &StepReport| report.terms.iter().find(|(name, _)| *name == "latents").expect("a term").1;
    assert!(
        latents(&reports[149]) < 0.3 * latents(&reports[0]),
        "{} to {}",
        latents(&reports[0]),
        latents(&reports[149])
    );

    let (teacher, smaller) = (open(&network("teacher"))?, open(&network("smaller"))?);
    assert_eq!(teacher.config().scaling_factor, smaller.config().scaling_factor);
    let scene = Scene::random(1, Split::Test).draw(32);
    let scene = image::RgbImage::from_raw(32, 32, scene.pixels().to_vec()).expect("32 × 32 pixels");
    let image = pixart::from_pixels(&scene, &Device::Cpu)?;
    let squares = |xs: &Tensor| xs.sqr()?.mean_all()?.to_scalar::<f32>();
    for (encoder, decoder) in [(&teacher, &smaller), (&smaller, &teacher)] {
        let decoded = decoder.decode(&encoder.encode(&image)?.mean)?;
        let (error, signal) = (squares(&(&decoded - &image)?)?, squares(&image)?);
        assert!(error < 0.2 * signal, "{error} of {signal}");
    }

    let other = recipe(
        folder.path(),
        &taught("[8, 8]").replace("norm_num_groups = 4", "norm_num_groups = 4\nlatent_channels = 2"),
    )?;
    let error = run(&other, &folder.path().join("other"), u64::MAX).expect_err("latents of 2 channels").to_string();
    assert!(
        error.contains("latents of 4 channels") && error.contains("has 2 and 2") && !error.contains('\n'),
        "{error}"
    );
    Ok(())
}

/// A decoder that is shown noise in the latents learns to do without it.
#[test]
fn noise_in_the_latents_is_learned_to_be_removed() -> pixart_train::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = recipe(folder.path(), &RECIPE.replace("steps = 20", "steps = 150"))?;
    run(&first, &folder.path().join("first"), u64::MAX)?;
    let base = folder.path().join("first/network");
    let psnr = |noise: f64| -> pixart_train::Result<f64> {
        let weight = format!("edge_weight = 2.0\ndecoder_only = true\nlatent_noise = {noise}\nbase = {base:?}");
        let text = RECIPE.replace("steps = 20", "steps = 150").replace("edge_weight = 2.0", &weight);
        let run_folder = folder.path().join(noise.to_string());
        run(&recipe(folder.path(), &text)?, &run_folder, u64::MAX)?;
        let trial = Trial { scenes: 8, size: 32, latent_noise: 1.0 };
        Ok(reconstruction(&run_folder.join("network"), &trial, &Device::Cpu, |_, _| ControlFlow::Continue(()))?.psnr)
    };
    let (without, with) = (psnr(0.0)?, psnr(2.0)?);
    assert!(with > without + 0.3, "{with} dB after noise was shown, {without} dB without");
    Ok(())
}
