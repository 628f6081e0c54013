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
