//! Event files, which TensorBoard shows: records of serialised `tensorflow.Event` messages, each framed by its length and
//! checksums (tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::{Error, Result};

#[derive(Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<EncodedImage>,
}

#[derive(Message)]
struct EncodedImage {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3 is RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// A run's event file. A run that goes on after an end begins another one, which TensorBoard shows as one with the first.
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new one in the folder `run`.
    pub(crate) fn create(run: &Path) -> Result<Self> {
        std::fs::create_dir_all(run).map_err(Error::io(run))?;
        // Files of one run are read in the order of their names.
        let path = run.join(format!("events.out.tfevents.{:013.2}.{}", now(), std::process::id()));
        let file = File::create(&path).map_err(Error::io(&path))?;
        let mut events = Self { path, file };
        events.write(&Event { file_version: Some("brain.Event:2".into()), ..Event::at(0) })?;
        Ok(events)
    }

    /// Numbers of a step by their names.
    pub(crate) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let value =
            |(tag, value): &(&str, f64)| Value { tag: (*tag).into(), simple_value: Some(*value as f32), image: None };
        let summary = Summary { value: values.iter().map(value).collect() };
        self.write(&Event { summary: Some(summary), ..Event::at(step) })
    }

    /// A PNG file's bytes and its width and height, by a name.
    pub(crate) fn image(&mut self, step: u64, tag: &str, (width, height): (u32, u32), png: Vec<u8>) -> Result<()> {
        let image =
            EncodedImage { height: height as i32, width: width as i32, colorspace: 3, encoded_image_string: png };
        let value = Value { tag: tag.into(), simple_value: None, image: Some(image) };
        self.write(&Event { summary: Some(Summary { value: vec![value] }), ..Event::at(step) })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        self.file.write_all(&record(&event.encode_to_vec())).map_err(Error::io(&self.path))
    }
}

impl Event {
    fn at(step: u64) -> Self {
        Self { wall_time: now(), step: step as i64, file_version: None, summary: None }
    }
}

fn now() -> f64 {
    // A clock before 1970 is no reason not to train.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A message with its length and both checksums.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(message);
    record.extend(masked_checksum(message).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted as record files have it, since a checksum over data that holds its own checksum says little.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first record that TensorFlow itself writes, at time 0.
    #[test]
    fn the_first_record_is_tensorflows() {
        let event = Event { wall_time: 0.0, step: 0, file_version: Some("brain.Event:2".into()), summary: None };
        let mut expected = vec![0x0f, 0, 0, 0, 0, 0, 0, 0];
        expected.extend(masked_checksum(&[0x0f, 0, 0, 0, 0, 0, 0, 0]).to_le_bytes());
        let message = b"\x1a\x0dbrain.Event:2";
        expected.extend(message);
        expected.extend(masked_checksum(message).to_le_bytes());
        assert_eq!(record(&event.encode_to_vec()), expected);
        // The check value of CRC-32C, masked.
        assert_eq!(masked_checksum(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
