//! Following edges together with what else a pipeline can do.

use candle_core::Tensor;
use image::GrayImage;
use pixart::{Control, Detector, DeviceChoice, Pipeline, PipelineBuilder, Precision, Request, Seeds};
use pixart_weights::{Lora, Part, PipelineFolder, convert_pipeline};

use crate::{Result, fixtures, largest, small};

fn builder() -> PipelineBuilder {
    Pipeline::builder(fixtures().join("checkpoints/alpha-256"))
        .part(Part::ControlNet, fixtures().join("edits/controlnet-alpha-256"))
        .device(DeviceChoice::Cpu)
}

fn edges() -> Result<GrayImage> {
    Ok(image::open(fixtures().join("edits/edges.png"))?.into_luma8())
}

fn controlled() -> Result<Request> {
    Ok(Request { control: Some(Control::new(edges()?)), ..small() })
}

fn distance(xs: &Tensor, ys: &Tensor) -> Result<f32> {
    Ok(largest(&(xs - ys)?)? / largest(ys)?)
}

/// Every picture of a batch is the one that its prompt and seed give alone, along the same edges.
#[test]
fn several_pictures_follow_one_map() -> Result {
    let mut pipeline = builder().precision(Precision::F32).open()?;
    let prompts: Vec<String> = ["two blue circles", "a red square below a tree"].map(String::from).to_vec();
    let request = Request { guidance_scale: Some(3.0), ..controlled()? };
    let seeds = [4, 5, 6, 7];
    let batch = pipeline.generate(&Request {
        prompts: prompts.clone(),
        num_images_per_prompt: 2,
        seeds: Seeds::PerImage(seeds.to_vec()),
        ..request.clone()
    })?;
    for (i, seed) in seeds.into_iter().enumerate() {
        let prompts = vec![prompts[i / 2].clone()];
        let alone = pipeline.generate(&Request { prompts, seeds: Seeds::PerImage(vec![seed]), ..request.clone() })?;
        let error = distance(&batch.latents.narrow(0, i, 1)?, &alone.latents)?;
        assert!(error < 1e-5, "picture {i}: {error}");
    }
    let free = pipeline.generate(&Request { control: None, prompts, seeds: Seeds::PerImage(vec![4, 6]), ..request })?;
    assert!(distance(&free.latents.narrow(0, 0, 1)?, &batch.latents.narrow(0, 0, 1)?)? > 0.1);
    Ok(())
}

/// A LoRA that is told of draws what one draws that has been merged into the weights.
#[test]
fn a_lora_corrects_the_transformer_that_is_steered() -> Result {
    let lora = fixtures().join("training/lora");
    let request = controlled()?;
    let plain = builder().precision(Precision::F32).open()?.generate(&request)?.latents;
    let corrected = builder().precision(Precision::F32).lora(&lora, 1.0).open()?.generate(&request)?.latents;
    let folder = tempfile::tempdir()?;
    let merged = folder.path().join("merged");
    let base = PipelineFolder::open(fixtures().join("checkpoints/alpha-256"))?.with_lora(Lora::open(&lora)?);
    convert_pipeline(&base, None, None, &merged)?;
    let merged = Pipeline::builder(merged)
        .part(Part::ControlNet, fixtures().join("edits/controlnet-alpha-256"))
        .device(DeviceChoice::Cpu)
        .precision(Precision::F32)
        .open()?
        .generate(&request)?
        .latents;
    assert!(distance(&corrected, &merged)? < 1e-4);
    assert!(distance(&corrected, &plain)? > 1e-3);
    Ok(())
}

/// In 8 bits the edges are followed as in f32, to a small part of what following them changes.
#[test]
fn control_in_8_bits_is_near_f32() -> Result {
    let request = controlled()?;
    let mut exact = builder().precision(Precision::F32).open()?;
    let wanted = exact.generate(&request)?.latents;
    let free = exact.generate(&Request { control: None, ..request.clone() })?.latents;
    let followed = distance(&free, &wanted)?;
    for precision in [Precision::Int8, Precision::Int8Weights] {
        let mut rounded = builder().precision(precision).open()?;
        let error = distance(&rounded.generate(&request)?.latents, &wanted)?;
        assert!(error > 0.0 && error < 0.2 * followed, "{precision:?}: {error}, control changes {followed}");
    }
    Ok(())
}

#[test]
fn control_that_applies_to_no_step_is_refused() -> Result {
    let mut pipeline = builder().open()?;
    let between = Control { start: 0.6, end: 0.9, ..Control::new(edges()?) };
    let request = Request { control: Some(between), ..small() };
    let message = pipeline.generate(&request).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("from 0.6 to 0.9 of 2 steps") && !message.contains('\n'), "{message}");
    pipeline.generate(&Request { steps: Some(10), ..request })?;
    Ok(())
}

/// Edges that a limit of memory does not allow to be found are not looked for.
#[test]
fn edges_are_found_within_the_limit() -> Result {
    let picture = image::RgbImage::from_fn(64, 64, |x, _| image::Rgb([if x < 32 { 200 } else { 40 }; 3]));
    let request = Request { width: Some(1024), height: Some(1024), ..small() };
    let edges = |limit| builder().memory_limit(Some(limit)).open()?.edges(&request, &picture, &Detector::Canny);
    let message = edges(120_000_000).unwrap_err().to_string();
    assert!(message.contains("finding edges at 1024x1024 takes about 142 MB"), "{message}");
    assert_eq!(edges(200_000_000)?.dimensions(), (1024, 1024));
    Ok(())
}
