//! What happens to pictures on their way through a model: blur and noise; and prompts with one thing changed.

use pixart_scenes::{Claims, Colour, Kind, Picture, Relation};

/// Splitmix64.
#[derive(Default)]
pub struct Random(pub u64);

impl Random {
    /// A random number of 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Very nearly normal, with mean 0 and deviation 1: a sum of twelve uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits: [u64; 3] = std::array::from_fn(|_| self.next());
        let uniform =
            bits.iter().flat_map(|bits| (0..4).map(move |part| (bits >> (16 * part) & 0xffff) as f32 / 65_536.0));
        uniform.sum::<f32>() - 6.0
    }
}

/// A picture with Gaussian blur of `blur` pixels, then normal noise of `noise` levels on every channel.
pub fn distorted(picture: &Picture, blur: f32, noise: f32, random: &mut Random) -> Picture {
    let (width, height) = (picture.width(), picture.height());
    let mut values: Vec<f32> = picture.pixels().iter().map(|byte| f32::from(*byte)).collect();
    if blur > 0.0 {
        let weights: Vec<f32> = (-4..=4).map(|at| (-((at * at) as f32) / (2.0 * blur * blur)).exp()).collect();
        let sum: f32 = weights.iter().sum();
        for (step, length) in [(3, width), (3 * width, height)] {
            let along = |index: usize| {
                let at = index / step % length;
                let start = index - at * step;
                let value = |(offset, weight): (usize, &f32)| {
                    let place = (at + offset).saturating_sub(4).min(length - 1);
                    weight / sum * values[start + place * step]
                };
                weights.iter().enumerate().map(value).sum()
            };
            values = (0..values.len()).map(along).collect();
        }
    }
    let pixels = values.iter().map(|value| (value + noise * random.normal()).round().clamp(0.0, 255.0) as u8).collect();
    Picture::from_rgb(width, height, pixels).expect("the picture has kept its size")
}

/// A picture whose shapes wobble by up to `pixels`, and whose channels are each lighter or darker by up to `levels`.
pub fn bent(picture: &Picture, pixels: f32, levels: i32, random: &mut Random) -> Picture {
    let (width, height) = (picture.width(), picture.height());
    let tint: [i32; 3] = std::array::from_fn(|_| random.below(2 * levels as usize + 1) as i32 - levels);
    let phases: [f32; 4] = std::array::from_fn(|_| random.below(1000) as f32 / 159.0);
    // Waves of about a quarter of the picture.
    let wave = |at: usize, length: usize, phase: f32| (at as f32 / length as f32 * 25.0 + phase).sin() * pixels / 2.0;
    let mut bytes = Vec::with_capacity(picture.pixels().len());
    for pixel in 0..width * height {
        let (x, y) = (pixel % width, pixel / width);
        let right = wave(x, width, phases[0]) + wave(y, height, phases[1]);
        let down = wave(x, width, phases[2]) + wave(y, height, phases[3]);
        let moved =
            |at: usize, by: f32, length: usize| (at as f32 + by).round().clamp(0.0, (length - 1) as f32) as usize;
        let from = (moved(y, down, height) * width + moved(x, right, width)) * 3;
        bytes.extend(
            (0..3).map(|channel| (i32::from(picture.pixels()[from + channel]) + tint[channel]).clamp(0, 255) as u8),
        );
    }
    Picture::from_rgb(width, height, bytes).expect("the picture has kept its size")
}

/// Claims with one thing changed: a kind, a colour, the number of objects, or the relation.
pub fn with_a_mistake(claims: &Claims, random: &mut Random) -> Claims {
    let mut claims = claims.clone();
    let index = random.below(claims.objects.len());
    match random.below(4) {
        0 => claims.objects[index].kind = Kind::ALL[random.below(Kind::ALL.len())],
        1 => claims.objects[index].colour = Some(Colour::ALL[random.below(Colour::ALL.len())]),
        2 if claims.relations.is_empty() => claims.objects.push(claims.objects[index]),
        2 => claims.relations[0].relation = Relation::ALL[random.below(Relation::ALL.len())],
        _ if claims.relations.is_empty() && claims.objects.len() > 1 => drop(claims.objects.remove(index)),
        _ => claims.objects.push(claims.objects[index]),
    }
    claims
}
