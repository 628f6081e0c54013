//! Elements to the words of 32 bits that products are made of.

use super::{Bf16, F32, Int8, Product};
use crate::simd::{Element, LANES, Simd, load_up_to, pair_to_word};
use half::bf16;

/// How the elements of a product's left or right matrix become words.
pub trait Words: Product {
    /// One group of at most [`Product::GROUP`] elements, already scaled to the product's range; zeros fill it up.
    fn word(group: &[f32]) -> u32;

    /// A row of the left matrix: `words` has room for all groups of `row`.
    fn left_row<S: Simd, T: Element>(s: S, row: &[T], scale: f32, words: &mut [u32]);

    /// Writes sixteen elements of a left row as words.
    fn store_words<S: Simd>(s: S, v: S::F32, words: &mut [u32]);

    /// What turns a word of the left matrix into one of the right.
    const LEFT_TO_RIGHT: u32 = 0;

    /// Four signed bytes a lane as the words of the right matrix at as many steps as these are, four divided by
    /// [`Product::GROUP`]; what is behind them is no word.
    fn widen<S: Simd>(s: S, bytes: S::Bits) -> [S::Bits; 4];

    /// The words of sixteen columns at one step of the right matrix, whose elements stand side by side: `rows` are the
    /// up to [`Product::GROUP`] rows of the step, up to sixteen elements each.
    #[inline(always)]
    fn across<T: Element>(rows: &[&[T]]) -> [u32; LANES] {
        let mut words = [0u32; LANES];
        for (lane, word) in words.iter_mut().enumerate() {
            let mut group = [0f32; 4];
            for (x, row) in group.iter_mut().zip(rows) {
                *x = row.get(lane).map_or(0.0, |x| x.to_f32());
            }
            *word = Self::word(&group[..rows.len()]);
        }
        words
    }

    /// What a row of the left matrix is divided by before it is rounded; 1 where nothing is.
    #[inline(always)]
    fn left_scale<S: Simd, T: Element>(_: S, _: &[T]) -> f32 {
        1.0
    }
}

/// Byte `i` of each lane, signed, as a number.
#[inline(always)]
fn byte<S: Simd>(s: S, bytes: S::Bits, i: usize) -> S::F32 {
    s.to_f32(s.dot_u8_i8(s.splat_bits(0), s.splat_bits(1 << (8 * i)), bytes))
}

impl Words for F32 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, bytes: S::Bits) -> [S::Bits; 4] {
        [
            s.as_bits(byte(s, bytes, 0)),
            s.as_bits(byte(s, bytes, 1)),
            s.as_bits(byte(s, bytes, 2)),
            s.as_bits(byte(s, bytes, 3)),
        ]
    }

    #[inline(always)]
    fn across<T: Element>(rows: &[&[T]]) -> [u32; LANES] {
        let mut words = [0u32; LANES];
        for (word, x) in words.iter_mut().zip(rows[0]) {
            *word = x.to_f32().to_bits();
        }
        words
    }

    fn word(group: &[f32]) -> u32 {
        group[0].to_bits()
    }

    #[inline(always)]
    fn left_row<S: Simd, T: Element>(s: S, row: &[T], _: f32, words: &mut [u32]) {
        for (xs, words) in row.chunks(LANES).zip(words.chunks_mut(LANES)) {
            Self::store_words(s, load_up_to(s, xs), words);
        }
    }

    #[inline(always)]
    fn store_words<S: Simd>(s: S, v: S::F32, words: &mut [u32]) {
        match words.first_chunk_mut() {
            Some(whole) => s.store_bits(s.as_bits(v), whole),
            None => s.store_bits_part(s.as_bits(v), words),
        }
    }
}

impl Words for Bf16 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, bytes: S::Bits) -> [S::Bits; 4] {
        let first = s.pair_bf16(byte(s, bytes, 0), byte(s, bytes, 1));
        let second = s.pair_bf16(byte(s, bytes, 2), byte(s, bytes, 3));
        [first, second, second, second]
    }

    #[inline(always)]
    fn across<T: Element>(rows: &[&[T]]) -> [u32; LANES] {
        let mut words = [0u32; LANES];
        for (word, x) in words.iter_mut().zip(rows[0]) {
            *word = x.to_bf16_bits();
        }
        if let Some(row) = rows.get(1) {
            for (word, x) in words.iter_mut().zip(*row) {
                *word |= x.to_bf16_bits() << 16;
            }
        }
        words
    }

    fn word(group: &[f32]) -> u32 {
        let bits = |i: usize| group.get(i).map_or(0, |x| bf16::from_f32(*x).to_bits() as u32);
        bits(0) | (bits(1) << 16)
    }

    #[inline(always)]
    fn left_row<S: Simd, T: Element>(s: S, row: &[T], _: f32, words: &mut [u32]) {
        if let Some(row) = T::as_bf16(row) {
            let (pairs, rest) = row.as_chunks::<2>();
            for (word, pair) in words.iter_mut().zip(pairs) {
                *word = pair_to_word(*pair);
            }
            if let [last] = rest {
                words[pairs.len()] = last.to_bits() as u32;
            }
            return;
        }
        for (xs, words) in row.chunks(LANES).zip(words.chunks_mut(LANES / 2)) {
            Self::store_words(s, load_up_to(s, xs), words);
        }
    }

    #[inline(always)]
    fn store_words<S: Simd>(s: S, v: S::F32, words: &mut [u32]) {
        let mut lanes = [bf16::ZERO; LANES];
        s.store_bf16(v, &mut lanes);
        for (word, pair) in words.iter_mut().zip(lanes.as_chunks::<2>().0) {
            *word = pair_to_word(*pair);
        }
    }
}

/// Added to a signed byte to make an unsigned one, as the left operand of the byte product has to be.
pub(crate) const ZERO_POINT: f32 = 128.0;

/// The largest byte in absolute value, on both sides of zero.
pub(crate) const LARGEST_BYTE: f32 = 127.0;

impl Words for Int8 {
    const LEFT_TO_RIGHT: u32 = 0x8080_8080;

    #[inline(always)]
    fn widen<S: Simd>(_: S, bytes: S::Bits) -> [S::Bits; 4] {
        [bytes; 4]
    }

    /// Signed bytes: the right operand's.
    fn word(group: &[f32]) -> u32 {
        let byte = |i: usize| group.get(i).map_or(0, |x| x.round_ties_even() as i8 as u8 as u32);
        (0..4).fold(0, |word, i| word | (byte(i) << (8 * i)))
    }

    #[inline(always)]
    fn left_scale<S: Simd, T: Element>(s: S, row: &[T]) -> f32 {
        // Four at a time, since each has to wait for the one before.
        let (whole, rest) = row.as_chunks::<{ 4 * LANES }>();
        let absolute = |xs: &[T]| {
            let xs = load_up_to(s, xs);
            s.max(xs, s.sub(s.splat(0.0), xs))
        };
        let [mut a, mut b, mut c, mut d] = [s.splat(0.0); 4];
        for xs in whole {
            a = s.max(a, absolute(&xs[..LANES]));
            b = s.max(b, absolute(&xs[LANES..2 * LANES]));
            c = s.max(c, absolute(&xs[2 * LANES..3 * LANES]));
            d = s.max(d, absolute(&xs[3 * LANES..]));
        }
        for xs in rest.chunks(LANES) {
            a = s.max(a, absolute(xs));
        }
        match s.largest(s.max(s.max(a, b), s.max(c, d))) {
            0.0 => 1.0,
            largest => largest / LARGEST_BYTE,
        }
    }

    /// Unsigned bytes around [`ZERO_POINT`].
    #[inline(always)]
    fn left_row<S: Simd, T: Element>(s: S, row: &[T], scale: f32, words: &mut [u32]) {
        let inverse = s.splat(1.0 / scale);
        let (whole, rest) = row.as_chunks::<LANES>();
        let (words, last) = words.split_at_mut(whole.len() * (LANES / 4));
        for (xs, words) in whole.iter().zip(words.as_chunks_mut::<{ LANES / 4 }>().0) {
            Self::store_words(s, s.mul(T::load(s, xs), inverse), words);
        }
        if !rest.is_empty() {
            Self::store_words(s, s.mul(load_up_to(s, rest), inverse), last);
        }
    }

    #[inline(always)]
    fn store_words<S: Simd>(s: S, v: S::F32, words: &mut [u32]) {
        let bytes = s.add(v, s.splat(ZERO_POINT));
        match words.first_chunk_mut() {
            Some(whole) => s.store_bytes(bytes, whole),
            None => s.store_bytes_part(bytes, words),
        }
    }
}
