//! Sixteen 32-bit lanes, and what can be done with them: the same for every instruction set, so that each kernel is
//! written once.
//!
//! A value of a type that implements [`Simd`] is the proof that its instructions are there: [`crate::Isa::run`] alone
//! makes one, after looking. That is why the methods are safe.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod element;
mod portable;

pub use element::Element;
pub(crate) use element::{load_up_to, store_up_to};
pub(crate) use portable::Portable;

use half::bf16;

use crate::gemm::Left;
use crate::isa::Body;
use crate::memory::Line;

/// Lanes of a vector, whatever the instructions: one register of AVX-512, two of AVX2, four of SSE or NEON.
pub const LANES: usize = 16;

/// Rows of a tile where there are instructions for whole matrices.
pub(crate) const MATRIX_ROWS: usize = 2 * LANES;

/// 1.5 · 2²³: added to a number within ±2²², it leaves the nearest integer in the low bits of the sum.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// Operations on sixteen lanes.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F32: Copy;
    /// Sixteen times 32 bits: an i32, two bf16 (the first in the low half), or four bytes.
    type Bits: Copy;

    /// Rows of a tile of a matrix product that fill this set's registers, two vectors wide or [`Simd::TILE_VECTORS`].
    const TILE_ROWS: usize;
    /// Vectors across a tile of a matrix product.
    const TILE_VECTORS: usize;

    /// Whether products of words of more than one element are made by instructions for whole matrices.
    #[inline(always)]
    fn has_matrices(self) -> bool {
        false
    }

    /// Rows of a tile of a product whose words have `group` elements.
    #[inline(always)]
    fn tile_rows(self, group: usize) -> usize {
        if group > 1 && self.has_matrices() { MATRIX_ROWS } else { Self::TILE_ROWS }
    }

    /// A tile of `rows` × `vectors` by these instructions, of words of `group` elements: the right operand's rows are
    /// `right_stride` words apart. `soon` is memory to bring nearer, and how many bytes of it a step.
    ///
    /// # Safety
    /// [`Simd::has_matrices`]; 1 to [`MATRIX_ROWS`] rows and 1 or 2 vectors, which the operands and the tile have.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "one operation, whose operands these are")]
    unsafe fn multiply_matrices(
        self,
        _group: usize,
        _left: Left,
        _right: (*const u32, usize),
        _size: (usize, usize),
        _tile: *mut Line,
        _tile_stride: usize,
        _soon: (*const u8, usize),
    ) {
        unreachable!("there are no such instructions");
    }

    /// Operations a second of these instructions on words of `_group` elements, measured for about `_seconds`.
    ///
    /// # Safety
    /// [`Simd::has_matrices`].
    #[inline(always)]
    unsafe fn matrix_rate(self, _group: usize, _seconds: f64) -> f64 {
        unreachable!("there are no such instructions");
    }

    /// Runs `body` with these instructions as a function of its own, which is compiled once however many call it. The call
    /// costs a few nanoseconds.
    fn apart<B: Body>(self, body: B) -> B::Output;

    fn splat(self, x: f32) -> Self::F32;
    fn load(self, xs: &[f32; LANES]) -> Self::F32;
    fn store(self, v: Self::F32, to: &mut [f32; LANES]);
    fn load_bf16(self, xs: &[bf16; LANES]) -> Self::F32;
    /// Rounds to nearest, ties to even.
    fn store_bf16(self, v: Self::F32, to: &mut [bf16; LANES]);

    /// Fewer than sixteen numbers, and zeros after them.
    #[inline(always)]
    fn load_part(self, xs: &[f32]) -> Self::F32 {
        self.load(&filled_up(xs))
    }
    /// Fewer than sixteen numbers, and zeros after them.
    #[inline(always)]
    fn load_bf16_part(self, xs: &[bf16]) -> Self::F32 {
        self.load_bf16(&filled_up(xs))
    }
    /// The first lanes, fewer than sixteen.
    #[inline(always)]
    fn store_part(self, v: Self::F32, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
    /// The first lanes, fewer than sixteen, rounded as by [`Simd::store_bf16`].
    #[inline(always)]
    fn store_bf16_part(self, v: Self::F32, to: &mut [bf16]) {
        let mut lanes = [bf16::ZERO; LANES];
        self.store_bf16(v, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// The nearest bf16 of two numbers in each lane, `low` in the low half.
    #[inline(always)]
    fn pair_bf16(self, low: Self::F32, high: Self::F32) -> Self::Bits {
        let (mut lows, mut highs) = ([bf16::ZERO; LANES], [bf16::ZERO; LANES]);
        self.store_bf16(low, &mut lows);
        self.store_bf16(high, &mut highs);
        let mut pairs = [0u32; LANES];
        for ((pair, low), high) in pairs.iter_mut().zip(lows).zip(highs) {
            *pair = pair_to_word([low, high]);
        }
        self.load_bits(&pairs)
    }

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b` to a unit or two in the last place, for `b` within 2⁻¹²⁶ and 2¹²⁶: where it can, without a division, which keeps the
    /// machine from multiplying.
    #[inline(always)]
    fn quotient(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.div(a, b)
    }
    /// `a · b + c`, in one rounding where the machine can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even; `v` within ±2²².
    fn round(self, v: Self::F32) -> Self::F32;
    /// `v · 2ⁿ` for integral `n` within ±250.
    fn scale_by_power(self, v: Self::F32, n: Self::F32) -> Self::F32;
    /// `v · 2ⁿ` where `shifted` is [`MAGIC`]` + n`; both `v` and the result must be normal numbers. Less work than
    /// [`Simd::scale_by_power`].
    fn scale_by_shifted(self, v: Self::F32, shifted: Self::F32) -> Self::F32;
    fn sum(self, v: Self::F32) -> f32;
    fn largest(self, v: Self::F32) -> f32;

    /// A hint that the line of cache around `at` will be read; nothing where there is no such hint.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
    /// A hint that the line of cache around `at` will be written; nothing where there is no such hint.
    #[inline(always)]
    fn prefetch_to_write<T>(self, _at: *const T) {}

    fn splat_bits(self, bits: u32) -> Self::Bits;
    fn load_bits(self, bits: &[u32; LANES]) -> Self::Bits;
    fn store_bits(self, v: Self::Bits, to: &mut [u32; LANES]);
    /// The first lanes, fewer than sixteen.
    #[inline(always)]
    fn store_bits_part(self, v: Self::Bits, to: &mut [u32]) {
        let mut lanes = [0; LANES];
        self.store_bits(v, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
    /// Four bytes a lane, the first in the lowest bits.
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 4 * LANES]) -> Self::Bits {
        let mut words = [0; LANES];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        self.load_bits(&words)
    }
    /// Rows become columns, of sixteen words by sixteen.
    #[inline(always)]
    fn transpose(self, rows: [Self::Bits; LANES]) -> [Self::Bits; LANES] {
        let mut words = [[0u32; LANES]; LANES];
        for (row, words) in rows.into_iter().zip(&mut words) {
            self.store_bits(row, words);
        }
        std::array::from_fn(|column| self.load_bits(&std::array::from_fn(|row| words[row][column])))
    }
    /// The lanes read as i32, as numbers.
    fn to_f32(self, v: Self::Bits) -> Self::F32;
    /// The lanes read as f32.
    fn as_f32(self, v: Self::Bits) -> Self::F32;
    /// The bits of the lanes.
    fn as_bits(self, v: Self::F32) -> Self::Bits;
    /// Nearest integers of `v`, 0 to 255, one byte a lane, four in a word.
    fn store_bytes(self, v: Self::F32, to: &mut [u32; LANES / 4]);
    /// As [`Simd::store_bytes`], the first words of four.
    #[inline(always)]
    fn store_bytes_part(self, v: Self::F32, to: &mut [u32]) {
        let mut words = [0; LANES / 4];
        self.store_bytes(v, &mut words);
        to.copy_from_slice(&words[..to.len()]);
    }
    /// Sixteen numbers as bf16, and sixteen more after them.
    #[inline(always)]
    fn join_bf16(self, first: Self::F32, second: Self::F32) -> Self::Bits {
        let mut halves = [[bf16::ZERO; LANES]; 2];
        self.store_bf16(first, &mut halves[0]);
        self.store_bf16(second, &mut halves[1]);
        let pairs = halves.as_flattened().as_chunks::<2>().0;
        self.load_bits(&std::array::from_fn(|i| pair_to_word(pairs[i])))
    }
    /// Writes a line, past the caches where there is an instruction for it: a line that is read again only when the caches
    /// have forgotten it need not be brought there first. [`Simd::finish_lines`] goes before anybody else reads it.
    #[inline(always)]
    fn write_line(self, bits: Self::Bits, to: &mut Line) {
        self.store_bits(bits, &mut to.0);
    }
    /// Waits for lines that were written.
    #[inline(always)]
    fn finish_lines(self) {}
    /// `v`, which is computed before anything that is read from memory after it. Left to itself the compiler reads ahead
    /// more than there are registers for.
    #[inline(always)]
    fn in_order(self, v: Self::Bits) -> Self::Bits {
        v
    }
    /// The first bf16 of each lane, and the second.
    fn split_bf16(self, pairs: Self::Bits) -> [Self::F32; 2];
    /// Adds to each lane of `acc` the product of two pairs of bf16. Where there is no instruction for it, products are computed in f32
    /// instead ([`Isa::has_fast_bf16`](crate::Isa::has_fast_bf16)), and only tests come here.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F32, a: Self::Bits, b: Self::Bits) -> Self::F32 {
        dot_bf16_in_f32(self, acc, a, b)
    }
    /// Adds to each lane of `acc` the product of four unsigned and four signed bytes.
    fn dot_u8_i8(self, acc: Self::Bits, a: Self::Bits, b: Self::Bits) -> Self::Bits;
}

/// Fewer than sixteen elements, and zeros after them.
#[inline(always)]
fn filled_up<T: Copy + Default>(xs: &[T]) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes[..xs.len()].copy_from_slice(xs);
    lanes
}

/// [`Simd::dot_bf16`] where there is no instruction for it.
#[inline(always)]
fn dot_bf16_in_f32<S: Simd>(s: S, acc: S::F32, a: S::Bits, b: S::Bits) -> S::F32 {
    let ([a_first, a_second], [b_first, b_second]) = (s.split_bf16(a), s.split_bf16(b));
    s.mul_add(a_second, b_second, s.mul_add(a_first, b_first, acc))
}

/// Two bf16 in a word, the first one lowest.
#[inline(always)]
pub(crate) fn pair_to_word([low, high]: [bf16; 2]) -> u32 {
    low.to_bits() as u32 | ((high.to_bits() as u32) << 16)
}

/// Four bytes in a word, the first one lowest.
#[inline(always)]
fn bytes_to_words(bytes: [u8; LANES]) -> [u32; LANES / 4] {
    let quads = bytes.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_le_bytes(quads[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Body, Isa};

    /// Every operation of a set, on numbers that show signs, rounding and order of lanes.
    struct Everything;

    impl Body for Everything {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7);
            let b: [f32; LANES] = std::array::from_fn(|i| 0.37 * (i as f32) + 0.51);
            let (va, vb) = (simd.load(&a), simd.load(&b));
            let mut all = vec![simd.sum(va), simd.largest(va), simd.largest(simd.sub(va, simd.splat(100.0)))];
            let mut push = |v: S::F32| {
                let mut lanes = [0f32; LANES];
                simd.store(v, &mut lanes);
                all.extend(lanes);
            };
            push(simd.add(va, vb));
            push(simd.mul(va, vb));
            push(simd.div(va, vb));
            push(simd.mul_add(va, vb, va));
            push(simd.max(va, vb));
            push(simd.min(va, vb));
            push(simd.round(va));
            push(simd.scale_by_power(vb, simd.round(va)));
            push(simd.scale_by_shifted(vb, simd.add(va, simd.splat(MAGIC))));
            let rows = std::array::from_fn(|i| simd.load_bits(&std::array::from_fn(|j| (16 * i + j) as u32)));
            for (i, row) in simd.transpose(rows).into_iter().enumerate() {
                let mut words = [0; LANES];
                simd.store_bits(row, &mut words);
                assert_eq!(words, std::array::from_fn(|j| (16 * j + i) as u32));
            }
            let mut halves = [bf16::ZERO; LANES];
            simd.store_bf16(va, &mut halves);
            assert_eq!(halves, a.map(bf16::from_f32), "bf16 is rounded to nearest even");
            push(simd.load_bf16(&halves));
            let mut pairs = [0; LANES];
            simd.store_bits(simd.pair_bf16(va, vb), &mut pairs);
            let bits = |x: f32| bf16::from_f32(x).to_bits() as u32;
            assert_eq!(pairs, std::array::from_fn(|i| bits(a[i]) | (bits(b[i]) << 16)));
            let bits: [u32; LANES] = std::array::from_fn(|i| 0x8001_ff7f_u32.wrapping_mul(i as u32 + 3));
            let (bytes, pairs) = (simd.load_bits(&bits), simd.splat_bits(0x3f80_4000));
            push(simd.to_f32(bytes));
            push(simd.to_f32(simd.dot_u8_i8(simd.splat_bits(5), bytes, simd.splat_bits(0xff80_7f01))));
            push(simd.to_f32(simd.dot_u8_i8(simd.splat_bits(0), simd.splat_bits(0xffff_ffff), bytes)));
            let ones: [u32; LANES] = std::array::from_fn(|i| (0x3f80 + i as u32) | ((0xc000 + 2 * i as u32) << 16));
            push(simd.dot_bf16(va, simd.load_bits(&ones), pairs));
            for of_pair in simd.split_bf16(simd.load_bits(&ones)) {
                push(of_pair);
            }
            push(simd.as_f32(simd.load_bits(&ones)));
            let in_order: Vec<u8> = bits.iter().flat_map(|word| word.to_le_bytes()).collect();
            let in_order = in_order.first_chunk().map(|bytes| simd.load_bytes(bytes));
            let mut stored = [0u32; LANES];
            simd.store_bits(in_order.unwrap_or(pairs), &mut stored);
            assert_eq!(stored, bits);
            simd.store_bits(bytes, &mut stored);
            assert_eq!(stored, bits);
            let mut line = crate::memory::ZERO;
            simd.write_line(simd.join_bf16(va, vb), &mut line);
            simd.finish_lines();
            let halves = a.iter().chain(&b).map(|x| portable::to_bf16(*x).to_bits());
            let words = line.0.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]);
            assert!(halves.eq(words), "{line:?}");
            let mut narrow = [0u32; LANES / 4];
            simd.store_bytes(simd.mul(simd.splat(12.5), vb), &mut narrow);
            assert_eq!(*narrow.map(u32::to_le_bytes).as_flattened(), b.map(|x| (12.5 * x).round_ties_even() as u8));
            let halves = a.map(bf16::from_f32);
            for count in 0..LANES {
                push(simd.load_part(&a[..count]));
                push(simd.load_bf16_part(&halves[..count]));
                // What is behind the part stays.
                let (mut numbers, mut short) = ([7.0; LANES], [bf16::ONE; LANES]);
                simd.store_part(va, &mut numbers[..count]);
                simd.store_bf16_part(va, &mut short[..count]);
                assert!(numbers.iter().enumerate().all(|(i, x)| *x == if i < count { a[i] } else { 7.0 }));
                let mut bits = [7; LANES];
                simd.store_bits_part(simd.as_bits(va), &mut bits[..count]);
                assert!(bits.iter().enumerate().all(|(i, x)| *x == if i < count { a[i].to_bits() } else { 7 }));
                assert!(short.iter().enumerate().all(|(i, x)| *x == if i < count { halves[i] } else { bf16::ONE }));
                let (mut words, part) = ([7; LANES / 4], count / 4);
                simd.store_bytes_part(simd.mul(simd.splat(12.5), vb), &mut words[..part]);
                assert!(words[..part] == narrow[..part] && words[part..].iter().all(|word| *word == 7));
            }
            all
        }
    }

    #[test]
    fn every_set_agrees_with_the_portable_one() {
        let expected = Isa::Portable.run(Everything);
        for isa in Isa::available() {
            for (i, (found, expected)) in isa.run(Everything).into_iter().zip(&expected).enumerate() {
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{isa:?}, {i}: {found}, not {expected}");
            }
        }
    }

    /// The portable set against the definition.
    #[test]
    fn portable_products_are_the_definition() {
        let simd = Portable;
        let (a, b) = (0x80ff_017f_u32, 0x7f80_ff02_u32);
        let mut out = [0u32; LANES];
        simd.store_bits(simd.dot_u8_i8(simd.splat_bits(1), simd.splat_bits(a), simd.splat_bits(b)), &mut out);
        assert_eq!(out[3] as i32, 1 + 0x7f * 2 - 0x01 - 0xff * 128 + 0x80 * 127);
        let pair = |low: f32, high: f32| {
            bf16::from_f32(low).to_bits() as u32 | ((bf16::from_f32(high).to_bits() as u32) << 16)
        };
        let mut out = [0f32; LANES];
        simd.store(
            simd.dot_bf16(simd.splat(1.0), simd.splat_bits(pair(2.0, -3.0)), simd.splat_bits(pair(0.5, 4.0))),
            &mut out,
        );
        assert_eq!(out[9], 1.0 + 1.0 - 12.0);
    }
}
