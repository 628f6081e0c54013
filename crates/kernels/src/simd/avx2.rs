//! AVX2 and FMA: a vector is two registers.

use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, Simd, bytes_to_words};
use crate::isa::Body;

/// Proof that AVX2 and FMA are there.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs `body` with these instructions.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn run<B: Body>(body: B) -> B::Output {
    body.run(Avx2(()))
}

/// As [`run`], and never part of its caller.
///
/// # Safety
/// The machine must have them.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_apart<B: Body>(body: B) -> B::Output {
    body.run(Avx2(()))
}

/// The same intrinsics on both halves.
macro_rules! halves {
    (|$($name:ident),+| $body:expr) => {{
        // SAFETY: `self` proves that the instructions are there, and they touch no memory.
        let first = { $(let $name = $name[0];)+ unsafe { $body } };
        // SAFETY: as above.
        let second = { $(let $name = $name[1];)+ unsafe { $body } };
        [first, second]
    }};
}

/// An intrinsic on registers.
macro_rules! registers {
    ($intrinsic:expr) => {
        // SAFETY: `self` proves that the instruction is there, and it touches no memory.
        unsafe { $intrinsic }
    };
}

/// An intrinsic that reads or writes one half of an array of sixteen elements.
macro_rules! memory {
    ($intrinsic:expr) => {
        // SAFETY: `self` proves that the instruction is there; the array has room for two halves, and the instruction asks
        // for no alignment.
        unsafe { $intrinsic }
    };
}

const HALF: usize = LANES / 2;

impl Simd for Avx2 {
    type F32 = [__m256; 2];
    type Bits = [__m256i; 2];

    // 5 × 2 accumulators, two registers of the right matrix and one of the left, and room for the halves of products of bytes.
    const TILE_ROWS: usize = 5;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn apart<B: Body>(self, body: B) -> B::Output {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { run_apart(body) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [registers!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn load(self, xs: &[f32; LANES]) -> Self::F32 {
        memory!([_mm256_loadu_ps(xs.as_ptr()), _mm256_loadu_ps(xs.as_ptr().add(HALF))])
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        memory!({
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(HALF), v[1]);
        })
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16; LANES]) -> Self::F32 {
        let halves = memory!([_mm_loadu_si128(xs.as_ptr().cast()), _mm_loadu_si128(xs.as_ptr().add(HALF).cast())]);
        halves!(|halves| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))))
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::F32, to: &mut [bf16; LANES]) {
        let mut lanes = [0f32; LANES];
        self.store(v, &mut lanes);
        *to = lanes.map(super::portable::to_bf16);
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(|a, b| _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(|a, b| _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(|a, b| _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(|a, b| _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        halves!(|a, b, c| _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(|a, b| _mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        halves!(|a, b| _mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        halves!(|v| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }
    // In two steps, since 2ⁿ alone may be out of range.
    #[inline(always)]
    fn scale_by_power(self, v: Self::F32, n: Self::F32) -> Self::F32 {
        halves!(|v, n| {
            let n = _mm256_cvtps_epi32(n);
            let first = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, first), bias));
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(first, bias));
            _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))
        })
    }
    #[inline(always)]
    fn scale_by_shifted(self, v: Self::F32, shifted: Self::F32) -> Self::F32 {
        halves!(|v, shifted| {
            let exponents = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponents))
        })
    }
    #[inline(always)]
    fn sum(self, v: Self::F32) -> f32 {
        registers!({
            let half = _mm256_add_ps(v[0], v[1]);
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        })
    }
    #[inline(always)]
    fn largest(self, v: Self::F32) -> f32 {
        registers!({
            let half = _mm256_max_ps(v[0], v[1]);
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // A hint about any address whatever is harmless.
        registers!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::Bits {
        [registers!(_mm256_set1_epi32(bits as i32)); 2]
    }
    #[inline(always)]
    fn load_bits(self, bits: &[u32; LANES]) -> Self::Bits {
        memory!([_mm256_loadu_si256(bits.as_ptr().cast()), _mm256_loadu_si256(bits.as_ptr().add(HALF).cast())])
    }
    #[inline(always)]
    fn store_bits(self, v: Self::Bits, to: &mut [u32; LANES]) {
        memory!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(HALF).cast(), v[1]);
        })
    }
    #[inline(always)]
    fn to_f32(self, v: Self::Bits) -> Self::F32 {
        halves!(|v| _mm256_cvtepi32_ps(v))
    }
    #[inline(always)]
    fn as_f32(self, v: Self::Bits) -> Self::F32 {
        halves!(|v| _mm256_castsi256_ps(v))
    }
    #[inline(always)]
    fn as_bits(self, v: Self::F32) -> Self::Bits {
        halves!(|v| _mm256_castps_si256(v))
    }
    #[inline(always)]
    fn store_bytes(self, v: Self::F32, to: &mut [u32; LANES / 4]) {
        let mut lanes = [0f32; LANES];
        self.store(self.round(v), &mut lanes);
        *to = bytes_to_words(lanes.map(|x| x as u8));
    }
    #[inline(always)]
    fn split_bf16(self, pairs: Self::Bits) -> [Self::F32; 2] {
        let first = halves!(|pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)));
        let second = halves!(|pairs| {
            _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
        });
        [first, second]
    }
    // `vpmaddubsw` would saturate; the even and the odd bytes are widened to 16 bits instead.
    #[inline(always)]
    fn dot_u8_i8(self, acc: Self::Bits, a: Self::Bits, b: Self::Bits) -> Self::Bits {
        halves!(|acc, a, b| {
            let even = _mm256_set1_epi16(0x00ff);
            let evens = _mm256_madd_epi16(_mm256_and_si256(a, even), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
            let odds = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
            _mm256_add_epi32(acc, _mm256_add_epi32(evens, odds))
        })
    }
}
