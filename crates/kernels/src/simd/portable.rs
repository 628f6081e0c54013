//! Plain Rust: arrays and loops that the compiler turns into whatever vectors the target has.

use half::bf16;

use super::{LANES, MAGIC, Simd, bytes_to_words};
use crate::isa::Body;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map<T: Copy, U, V: Copy>(a: [T; LANES], b: [V; LANES], f: impl Fn(T, V) -> U) -> [U; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Rounds to nearest even without a branch; a NaN stays one.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { (bits >> 16) | 0x40 } else { rounded } as u16)
}

impl Simd for Portable {
    type F32 = [f32; LANES];
    type Bits = [u32; LANES];

    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline(never)]
    fn apart<B: Body>(self, body: B) -> B::Output {
        body.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, xs: &[f32; LANES]) -> Self::F32 {
        *xs
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16; LANES]) -> Self::F32 {
        xs.map(|x| f32::from_bits((x.to_bits() as u32) << 16))
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::F32, to: &mut [bf16; LANES]) {
        *to = v.map(to_bf16);
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| a / b)
    }
    // `f32::mul_add` is a call into the C library on a target without the instruction.
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| if a < b { a } else { b })
    }
    // Adding 1.5·2²³ pushes the fraction out of the mantissa.
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        v.map(|x| (x + MAGIC) - MAGIC)
    }
    // In two steps, since 2ⁿ alone may be out of range.
    #[inline(always)]
    fn scale_by_power(self, v: Self::F32, n: Self::F32) -> Self::F32 {
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        map(v, n, |x, n| {
            let n = n as i32;
            let half = n >> 1;
            x * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn scale_by_shifted(self, v: Self::F32, shifted: Self::F32) -> Self::F32 {
        map(v, shifted, |x, shifted| f32::from_bits(x.to_bits().wrapping_add(shifted.to_bits() << 23)))
    }
    #[inline(always)]
    fn sum(self, v: Self::F32) -> f32 {
        halves(v, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, v: Self::F32) -> f32 {
        halves(v, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::Bits {
        [bits; LANES]
    }
    #[inline(always)]
    fn load_bits(self, bits: &[u32; LANES]) -> Self::Bits {
        *bits
    }
    #[inline(always)]
    fn store_bits(self, v: Self::Bits, to: &mut [u32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn to_f32(self, v: Self::Bits) -> Self::F32 {
        v.map(|x| x as i32 as f32)
    }
    #[inline(always)]
    fn as_f32(self, v: Self::Bits) -> Self::F32 {
        v.map(f32::from_bits)
    }
    #[inline(always)]
    fn as_bits(self, v: Self::F32) -> Self::Bits {
        v.map(f32::to_bits)
    }
    #[inline(always)]
    fn store_bytes(self, v: Self::F32, to: &mut [u32; LANES / 4]) {
        *to = bytes_to_words(self.round(v).map(|x| x as u8));
    }
    #[inline(always)]
    fn split_bf16(self, pairs: Self::Bits) -> [Self::F32; 2] {
        [pairs.map(|pair| f32::from_bits(pair << 16)), pairs.map(|pair| f32::from_bits(pair & 0xffff_0000))]
    }
    #[inline(always)]
    fn dot_u8_i8(self, acc: Self::Bits, a: Self::Bits, b: Self::Bits) -> Self::Bits {
        // Built for a processor with AVX2 or more, LLVM 22 mixes up lanes of what follows. f32 holds these sums, below 2²⁴, as exactly.
        if cfg!(target_feature = "avx2") {
            return std::array::from_fn(|i| {
                let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
                let product = |byte: usize| f32::from(a[byte]) * f32::from(b[byte] as i8);
                acc[i].wrapping_add((product(0) + product(1) + product(2) + product(3)) as i32 as u32)
            });
        }
        let product = |a: u32, b: u32, byte: u32| {
            ((a >> (8 * byte)) & 0xff).wrapping_mul((((b << (24 - 8 * byte)) as i32) >> 24) as u32)
        };
        std::array::from_fn(|i| (0..4).fold(acc[i], |acc, byte| acc.wrapping_add(product(a[i], b[i], byte))))
    }
}

/// Folds sixteen lanes in the order of the vector sets: halves upon halves.
#[inline(always)]
fn halves(v: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut v = v;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            v[i] = f(v[i], v[i + width]);
        }
    }
    v[0]
}
