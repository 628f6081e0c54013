//! Image-to-image, inpainting and control by a map, against diffusers' schedulers and what its pipelines for other models compute
//! with them (`tools/reference/edits.py`).

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use pixart::{Control, InitImage, Pipeline, Precision, Request, Seeds};
use pixart_weights::Part;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{LATENTS_TOLERANCE, Result, fixtures, largest, open};

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    model: String,
    scheduler: Option<String>,
    scheduler_kwargs: Map<String, Value>,
    prompt: String,
    negative_prompt: Option<String>,
    image: Option<String>,
    mask: Option<String>,
    steps: usize,
    strength: f64,
    guidance_scale: f64,
    seed: u64,
    control: Option<Follow>,
}

/// How the map is followed.
#[derive(Debug, Deserialize)]
struct Follow {
    scale: f64,
    start: f64,
    end: f64,
}

impl Case {
    fn request(&self) -> Result<Request> {
        let folder = fixtures().join("edits");
        let grey = |file: &str| -> Result<_> { Ok(image::open(folder.join(file))?.into_luma8()) };
        let init = match &self.image {
            Some(image) => Some(InitImage {
                image: image::open(folder.join(image))?.into_rgb8(),
                strength: self.strength,
                mask: self.mask.as_deref().map(grey).transpose()?,
            }),
            None => None,
        };
        let control = match &self.control {
            Some(Follow { scale, start, end }) => {
                Some(Control { map: grey("edges.png")?, scale: *scale, start: *start, end: *end })
            }
            None => None,
        };
        let sizes = [init.as_ref().map(|init| init.image.dimensions()), control.as_ref().map(|it| it.map.dimensions())];
        let (width, height) = sizes.into_iter().flatten().next().ok_or("neither an image nor a map")?;
        Ok(Request {
            negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
            width: Some(width as usize),
            height: Some(height as usize),
            resolution_binning: false,
            init,
            control,
            steps: Some(self.steps),
            guidance_scale: Some(self.guidance_scale),
            seeds: Seeds::Shared(self.seed),
            ..Request::new(self.prompt.clone())
        })
    }

    fn check(&self) -> Result<std::result::Result<(), String>> {
        let path = fixtures().join("edits").join(format!("{}.safetensors", self.name));
        let golden = pixart_weights::read_tensors(&path, &Device::Cpu)?;
        let builder = Pipeline::builder(fixtures().join("checkpoints").join(&self.model)).precision(Precision::F32);
        let controlnet = fixtures().join("edits").join(format!("controlnet-{}", self.model));
        let builder = match self.control {
            Some(_) => builder.part(Part::ControlNet, &controlnet),
            None => builder,
        };
        let mut pipeline = open(builder, self.scheduler.as_deref(), &self.scheduler_kwargs)?;
        let (mut timesteps, mut steps) = (Vec::new(), Vec::new());
        let latents = pipeline
            .generate_with(&self.request()?, |step| {
                timesteps.push(step.timestep as f32);
                steps.push(step.latents.clone());
                ControlFlow::Continue(())
            })?
            .latents;
        let wanted = golden["timesteps"].to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
        if timesteps != wanted {
            return Ok(Err(format!("{}: timesteps {timesteps:?}, not {wanted:?}", self.name)));
        }
        let error =
            |found: &Tensor, wanted: &Tensor| -> Result<f32> { Ok(largest(&(found - wanted)?)? / largest(wanted)?) };
        if let Some(wanted) = golden.get("steps") {
            for (i, found) in steps.iter().enumerate() {
                let error = error(found, &wanted.narrow(0, i, 1)?.reshape(found.shape())?)?;
                if error.is_nan() || error > LATENTS_TOLERANCE {
                    return Ok(Err(format!("{}: step {i} is off by {error:.2e}", self.name)));
                }
            }
        }
        let error = error(&latents, &golden["latents"])?;
        if error.is_nan() || error > LATENTS_TOLERANCE {
            return Ok(Err(format!("{}: latents are off by {error:.2e}", self.name)));
        }
        Ok(Ok(()))
    }
}

#[test]
fn pictures_are_drawn_over_as_by_diffusers() -> Result {
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(fixtures().join("edits/cases.json"))?)?;
    assert!(cases.len() >= 30 && cases.iter().any(|case| case.mask.is_some()));
    assert!(cases.iter().filter(|case| case.control.is_some()).count() >= 6);
    let mut wrong = Vec::new();
    for case in &cases {
        match case.check() {
            Ok(Ok(())) => {}
            Ok(Err(difference)) => wrong.push(difference),
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    Ok(())
}
