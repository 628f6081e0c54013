//! Where all randomness of a run comes from.

use pixart_diffusion::Generator;

/// A random stream of its own for every `purpose` and `numbers`: steps, images, parts. The same on every machine and for
/// every version of this program.
pub(crate) fn generator(seed: u64, purpose: &str, numbers: &[u64]) -> Generator {
    let mut bytes = seed.to_le_bytes().to_vec();
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend_from_slice(purpose.as_bytes());
    // The generator takes 32 bits; a checksum spreads them.
    Generator::new(u64::from(crc32c::crc32c(&bytes)))
}

/// Which of `count` things, at least one, a draw from 0..1 picks.
pub(crate) fn pick(draw: f32, count: usize) -> usize {
    ((draw * count as f32) as usize).min(count - 1)
}

/// Puts `items` in a random order (Fisher & Yates).
pub(crate) fn shuffle<T>(items: &mut [T], generator: &mut Generator) {
    let draws = generator.rand(2 * items.len());
    for (last, draw) in (0..items.len()).rev().zip(draws.chunks(2)) {
        // One draw has 24 bits.
        let uniform = f64::from(draw[0]) + f64::from(draw[1]) / f64::from(1u32 << 24);
        items.swap(last, ((uniform * (last + 1) as f64) as usize).min(last));
    }
}
