//! Images from text with PixArt-α, -δ and -Σ.
//!
//! ```no_run
//! use pixart::{Pipeline, Request};
//!
//! fn main() -> pixart::Result<()> {
//!     let mut pipeline = Pipeline::open("PixArt-LCM-XL-2-1024-MS")?;
//!     let generated = pipeline.generate(&Request::new("a small cactus with a happy face"))?;
//!     generated.images[0].save("cactus.png")
//! }
//! ```
//!
//! A [`Pipeline`] is opened from a diffusers folder; [`PipelineBuilder`] chooses device, precision and parts from
//! elsewhere. A [`Request`] says what to draw and has a field for every setting. The same folder, prompt and seed give
//! the image that diffusers gives.

mod bench;
mod bins;
mod builder;
mod calibrate;
mod caption;
mod control;
mod decode;
mod device;
mod embeddings;
mod error;
mod image;
mod limit;
mod memory;
mod parts;
mod pipeline;
mod plan;
mod precision;
mod predictor;
mod prompt;
mod request;
mod start;

pub use bench::{BenchOptions, BenchReport, bench};
pub use bins::nearest_bin;
pub use builder::{PipelineBuilder, read_scheduler};
pub use calibrate::calibrate;
pub use caption::{clean_caption, plain_caption};
pub use control::{Control, ControlType, Detector, HedDetector, InitImage};
pub use decode::decode_picture;
pub use device::{DeviceChoice, Precision, device_name, dtype_name};
pub use embeddings::PromptEmbeds;
pub use error::{Error, Result};
pub use image::{
    ControlParameters, Image, LoraParameters, Parameters, cover, from_pixels, pixels_to_png, save_pixels, to_pixels,
};
pub use memory::{MemoryEstimate, peak_rss_bytes};
pub use parts::LoadProgress;
pub use pipeline::{Generated, Pipeline, StepInfo, Timings};
pub use precision::PrecisionErrors;
pub use prompt::{Tokens, tokenize};
pub use request::{Request, Seeds};
