//! Draws one image: `cargo run --release --example generate -- MODEL_FOLDER "a prompt"`.

use pixart::{Pipeline, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("name a model folder and a prompt".into());
    };
    let mut pipeline = Pipeline::open(model)?;
    let generated = pipeline.generate(&Request::new(prompt))?;
    Ok(generated.images[0].save("generated.png")?)
}
