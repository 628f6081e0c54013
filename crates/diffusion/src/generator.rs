//! Random numbers that come out as `torch.Generator("cpu")` gives them, so that a seed means the same picture here
//! and in the Python libraries.
//!
//! The source is the 32-bit Mersenne Twister MT19937 (Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1),
//! 1998); the normal numbers are made by the Box–Muller transform, in the two layouts that torch uses for long and
//! for short draws.

use std::f64::consts::TAU;

use candle_core::{Device, Shape, Tensor};

use crate::error::Result;

/// Words of state in the twister.
const WORDS: usize = 624;
/// Distance between the words that one step of the twister mixes.
const MIDDLE: usize = 397;
/// Normal numbers are made in groups of this many, once a draw has so many.
const GROUP: usize = 16;

/// The random stream of `torch.Generator("cpu").manual_seed(seed)`.
///
/// Uniform numbers are equal to torch's bit for bit. Normal numbers may differ in the last bits (by
/// less than 1e-6), because torch has its own vectorised logarithm, sine and cosine.
///
/// ```
/// let mut generator = pixart_diffusion::Generator::new(0);
/// assert!((generator.randn(1)[0] - 1.540_996_1).abs() < 1e-6);
/// ```
#[derive(Debug, Clone)]
pub struct Generator {
    state: Box<[u32; WORDS]>,
    /// How many words of `state` have been handed out.
    used: usize,
    /// The second number of the last pair that a short normal draw made.
    spare: Option<f64>,
}

impl Generator {
    /// A generator at the start of the stream of `seed`, of which torch uses the low 32 bits.
    pub fn new(seed: u64) -> Self {
        let mut state = Box::new([0; WORDS]);
        state[0] = seed as u32;
        for i in 1..WORDS {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, used: WORDS, spare: None }
    }

    /// `count` uniform numbers from `[0, 1)`, as `torch.rand(count)`.
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform_f32()).collect()
    }

    /// `count` standard normal numbers, as `torch.randn(count)`.
    ///
    /// Two draws in a row are the same numbers as one long draw only where every length is a multiple of 16.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < GROUP {
            return (0..count).map(|_| self.normal_f64() as f32).collect();
        }
        let mut values = self.rand(count);
        let whole = count - count % GROUP;
        values[..whole].chunks_exact_mut(GROUP).for_each(box_muller);
        if whole < count {
            // The last 16 are drawn again, over some that were finished.
            let last = &mut values[count - GROUP..];
            last.fill_with(|| self.uniform_f32());
            box_muller(last);
        }
        values
    }

    /// A float32 tensor of standard normal numbers, as `torch.randn(shape)`: drawn on the CPU, then moved to
    /// `device`, so that the numbers are the same on every device.
    ///
    /// # Errors
    /// If the device has no room for the tensor.
    pub fn randn_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let values = self.randn(shape.elem_count());
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    fn next_u32(&mut self) -> u32 {
        if self.used == WORDS {
            self.twist();
        }
        let mut word = self.state[self.used];
        self.used += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let mask = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % WORDS] ^ (joined >> 1) ^ mask;
        }
        self.used = 0;
    }

    /// 24 random bits as a number in `[0, 1)`.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1u32 << 24) as f32
    }

    /// 53 random bits, of two words, as a number in `[0, 1)`.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// A normal number of a short draw: pairs are made in double precision, and the second of a pair waits for the
    /// next call.
    fn normal_f64(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Turns 16 uniform numbers into 16 normal ones: value j and value j + 8 give the pair of the same places.
///
/// The intermediate values are rounded to single precision where torch rounds them.
fn box_muller(group: &mut [f32]) {
    let (first, second) = group.split_at_mut(GROUP / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let logarithm = f64::from(1.0 - *a).ln() as f32;
        let radius = (-2.0 * logarithm).sqrt();
        let angle = f64::from(TAU as f32 * *b);
        *a = radius * angle.cos() as f32;
        *b = radius * angle.sin() as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words_are_those_of_the_published_algorithm() {
        // Seed 5489 is the reference implementation's own; its 1st and 10 000th words are well known.
        let mut generator = Generator::new(5489);
        let words: Vec<u32> = (0..10_000).map(|_| generator.next_u32()).collect();
        assert_eq!((words[0], words[9_999]), (3_499_211_612, 4_123_659_995));
    }

    #[test]
    fn draws_of_whole_groups_may_be_split() {
        let (mut whole, mut parts) = (Generator::new(7), Generator::new(7));
        let mut joined = parts.randn(16);
        joined.extend(parts.randn(48));
        assert_eq!(whole.randn(64), joined);
    }

    #[test]
    fn short_draws_use_both_numbers_of_a_pair() {
        let (mut whole, mut parts) = (Generator::new(42), Generator::new(42));
        let joined: Vec<f32> = (0..6).flat_map(|_| parts.randn(1)).collect();
        assert_eq!(whole.randn(6), joined);
    }

    #[test]
    fn only_the_low_half_of_the_seed_counts() {
        assert_eq!(Generator::new(5).randn(20), Generator::new((1 << 32) + 5).randn(20));
    }

    #[test]
    fn a_long_draw_is_normal() {
        let values = Generator::new(3).randn(100_001);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "mean {mean}, mean square {square}");
        assert!(values.iter().all(|v| v.is_finite()));
    }
}
