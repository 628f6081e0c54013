//! The ways in which the program's own model can draw, side by side.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;
use pixart::{Pipeline, Request};
use pixart_bundled::{LCM_LORA, TEACHER};
use pixart_train::{Faithfulness, Share, grid};
use pixart_weights::Part;

use super::{Drawing, save};
use crate::args::{FaithfulnessArgs, ModelArgs};
use crate::open;
use crate::output::print;

/// Which of the model's transformers draws.
#[derive(Clone, Copy)]
enum Network {
    /// The one that was distilled.
    Teacher,
    /// What it was distilled into.
    Distilled,
    /// The teacher with the LoRA that was distilled from it.
    TeacherWithLora,
}

/// A way to draw.
struct Way {
    name: &'static str,
    network: Network,
    scheduler: &'static str,
    steps: usize,
    guidance_scale: f64,
}

const WAYS: [Way; 8] = [
    Way { name: "teacher", network: Network::Teacher, scheduler: "dpm-solver++", steps: 14, guidance_scale: 4.5 },
    Way { name: "teacher", network: Network::Teacher, scheduler: "dpm-solver++", steps: 14, guidance_scale: 3.0 },
    lcm("LCM", Network::Distilled, 1),
    lcm("LCM", Network::Distilled, 2),
    lcm("LCM", Network::Distilled, 4),
    lcm("LCM", Network::Distilled, 8),
    lcm("LCM-LoRA on the teacher", Network::TeacherWithLora, 4),
    lcm("teacher, not distilled", Network::Teacher, 4),
];

const fn lcm(name: &'static str, network: Network, steps: usize) -> Way {
    Way { name, network, scheduler: "lcm", steps, guidance_scale: 0.0 }
}

/// Draws the prompts in every way, and prints a table (Markdown); with a folder, writes a row of pictures for each prompt.
pub(super) fn run(args: &FaithfulnessArgs, drawing: &Drawing) -> Result<()> {
    open::set_threads(&args.model.compute)?;
    let folder = open::model(None)?;
    // The pictures of each prompt.
    let mut rows: Vec<Vec<RgbImage>> = vec![vec![]; drawing.prompts.len()];
    let mut table = vec![HEAD.to_string()];
    for way in &WAYS {
        let mut pipeline = way.open(&args.model, &folder, drawing)?;
        let request =
            Request { steps: Some(way.steps), guidance_scale: Some(way.guidance_scale), ..Request::default() };
        let name = format!("{}, {} steps", way.name, way.steps);
        let found = drawing.measure(&name, &mut pipeline, &request, |first, pictures| {
            if args.output.is_some() {
                rows[first..].iter_mut().zip(pictures).for_each(|(row, picture)| row.push(picture.clone()));
            }
            Ok(())
        })?;
        table.push(way.line(&found));
    }
    if let Some(folder) = &args.output {
        rows.into_iter().enumerate().try_for_each(|(index, row)| save(folder, index, &grid(&[row])))?;
    }
    print(&table.join("\n"))
}

const HEAD: &str = "\
|                         | steps | guidance | one object | two, in a relation | equal ones | three or four | relations | all right | solver  | picture |
| ----------------------- | ----: | -------: | ---------: | -----------------: | ---------: | ------------: | --------: | --------: | ------: | ------: |";

impl Way {
    fn open(&self, args: &ModelArgs, folder: &Path, drawing: &Drawing) -> Result<Pipeline> {
        let builder = open::builder(folder, args, &drawing.progress).keep_loaded(true);
        let builder = match self.network {
            Network::Distilled => builder,
            Network::Teacher => builder.part(Part::Transformer, folder.join(TEACHER)),
            Network::TeacherWithLora => {
                builder.part(Part::Transformer, folder.join(TEACHER)).lora(folder.join(LCM_LORA), 1.0)
            }
        };
        let mut pipeline = builder.open()?;
        pipeline.use_scheduler(self.scheduler)?;
        Ok(pipeline)
    }

    fn line(&self, found: &Faithfulness) -> String {
        let percent = |share: Share| format!("{:.1} %", share.percent());
        let ms = |time: std::time::Duration| format!("{:.0} ms", 1e3 * time.as_secs_f64());
        format!(
            "| {:23} | {:5} | {:8} | {:>10} | {:>18} | {:>10} | {:>13} | {:>9} | {:>9} | {:>7} | {:>7} |",
            self.name,
            self.steps,
            if self.guidance_scale > 1.0 { self.guidance_scale.to_string() } else { "none".into() },
            percent(found.one_object),
            percent(found.two_objects),
            percent(found.counts),
            percent(found.several),
            percent(found.relations),
            percent(found.all_right),
            ms(found.denoise),
            ms(found.time),
        )
    }
}
