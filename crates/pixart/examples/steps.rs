//! Watches the steps and stops when the time is up: `cargo run --release --example steps -- MODEL_FOLDER SECONDS`.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use pixart::{Error, Pipeline, Request, Seeds};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(seconds)) = (arguments.next(), arguments.next()) else {
        return Err("name a model folder and a number of seconds".into());
    };
    let limit = Duration::try_from_secs_f64(seconds.parse()?)?;
    let mut pipeline = Pipeline::open(model)?;
    let request = Request { steps: Some(50), seeds: Seeds::Shared(7), ..Request::new("a red fox in the snow") };
    let start = Instant::now();
    let result = pipeline.generate_with(&request, |step| {
        println!("step {} of {}, timestep {}", step.index + 1, step.total, step.timestep);
        if start.elapsed() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match result {
        Ok(generated) => generated.images[0].save("fox.png")?,
        Err(Error::Cancelled) => println!("stopped after {:.1} s", start.elapsed().as_secs_f64()),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
