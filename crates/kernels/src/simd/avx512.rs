//! AVX-512: a vector is one register. Matrix products may go to AMX's tiles.

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, Simd, amx, dot_bf16_in_f32};
use crate::gemm::Left;
use crate::isa::Body;
use crate::memory::Line;

/// Proof that AVX-512 with F, BW, DQ and VL is there; with VNNI, if `VNNI`; with BF16, if `BF16`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool, const BF16: bool> {
    /// AMX with BF16 and INT8 is there too, and to be used.
    amx: bool,
}

/// Two functions that run a body with a set of instructions: the second is never part of its caller.
macro_rules! run_with {
    ($run:ident, $run_apart:ident, $vnni:literal, $bf16:literal, $features:literal) => {
        /// Runs `body` with these instructions, and AMX's if `amx`.
        ///
        /// # Safety
        /// The machine must have them.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $run<B: Body>(amx: bool, body: B) -> B::Output {
            body.run(Avx512::<$vnni, $bf16> { amx })
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn $run_apart<B: Body>(amx: bool, body: B) -> B::Output {
            body.run(Avx512::<$vnni, $bf16> { amx })
        }
    };
}

run_with!(run, run_apart, false, false, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl");
run_with!(run_vnni, run_vnni_apart, true, false, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
run_with!(run_bf16, run_bf16_apart, true, true, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16");

/// See [`Simd::in_order`]: no instruction, of which the compiler is only told that it may read and write memory.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order(mut v: __m512i) -> __m512i {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {0} */", inout(zmm_reg) v, options(nostack, preserves_flags)) };
    v
}

/// An intrinsic on registers.
macro_rules! registers {
    ($intrinsic:expr) => {
        // SAFETY: `self` proves that the instruction is there, and it touches no memory.
        unsafe { $intrinsic }
    };
}

/// An intrinsic that reads or writes the sixteen elements of an array.
macro_rules! memory {
    ($intrinsic:expr) => {
        // SAFETY: `self` proves that the instruction is there; the array has the size of what it reads or writes, and the
        // instruction asks for no alignment.
        unsafe { $intrinsic }
    };
}

/// An intrinsic that reads or writes the first elements of a slice.
macro_rules! part {
    ($intrinsic:expr) => {
        // SAFETY: `self` proves that the instruction is there; it touches the memory of those lanes alone that its mask names, which
        // the slice has, and asks for no alignment.
        unsafe { $intrinsic }
    };
}

/// A mask of so many lanes of sixteen.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    assert!(count <= LANES);
    ((1u32 << count) - 1) as __mmask16
}

impl<const VNNI: bool, const BF16: bool> Avx512<VNNI, BF16> {
    /// The numbers that sixteen bf16 are.
    #[inline(always)]
    fn widen(self, halves: __m256i) -> __m512 {
        registers!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))))
    }

    /// The nearest bf16.
    #[inline(always)]
    fn narrow(self, v: __m512) -> __m256i {
        match BF16 {
            true => registers!(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))),
            false => registers!(_mm512_cvtepi32_epi16(self.to_bf16(v))),
        }
    }

    /// The nearest integers, 0 to 255.
    #[inline(always)]
    fn to_bytes(self, v: __m512) -> __m128i {
        registers!(_mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)))
    }

    /// The nearest bf16 in the low half of each lane, as the instruction finds it; a NaN stays one.
    #[inline(always)]
    fn to_bf16(self, v: __m512) -> __m512i {
        registers!({
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            let half = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
            let nearest = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_or_epi32(nearest, is_nan, high, _mm512_set1_epi32(0x40))
        })
    }
}

impl<const VNNI: bool, const BF16: bool> Simd for Avx512<VNNI, BF16> {
    type F32 = __m512;
    type Bits = __m512i;

    // 14 × 2 accumulators, two vectors of the right matrix and one of the left: 31 of 32 registers. Products of bytes whose
    // halves have to be taken apart need more.
    const TILE_ROWS: usize = if VNNI { 14 } else { 12 };
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    fn has_matrices(self) -> bool {
        self.amx
    }

    #[inline(always)]
    unsafe fn multiply_matrices(
        self,
        group: usize,
        left: Left,
        (start, stride): (*const u32, usize),
        size: (usize, usize),
        tile: *mut Line,
        tile_stride: usize,
        soon: (*const u8, usize),
    ) {
        // SAFETY: `self` proves that AMX is there; the rest the caller promises.
        unsafe { amx::multiply(group == 4, left, amx::Rows { start, stride }, size, tile, tile_stride, soon) }
    }

    #[inline(always)]
    unsafe fn matrix_rate(self, group: usize, seconds: f64) -> f64 {
        // SAFETY: `self` proves that AMX is there.
        unsafe { amx::rate(group == 4, seconds) }
    }

    #[inline(always)]
    fn apart<B: Body>(self, body: B) -> B::Output {
        // SAFETY: `self` proves that the instructions are there.
        unsafe {
            match (VNNI, BF16) {
                (_, true) => run_bf16_apart(self.amx, body),
                (true, false) => run_vnni_apart(self.amx, body),
                (false, false) => run_apart(self.amx, body),
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        registers!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, xs: &[f32; LANES]) -> Self::F32 {
        memory!(_mm512_loadu_ps(xs.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        memory!(_mm512_storeu_ps(to.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16; LANES]) -> Self::F32 {
        self.widen(memory!(_mm256_loadu_si256(xs.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::F32, to: &mut [bf16; LANES]) {
        memory!(_mm256_storeu_si256(to.as_mut_ptr().cast(), self.narrow(v)))
    }
    #[inline(always)]
    fn load_part(self, xs: &[f32]) -> Self::F32 {
        part!(_mm512_maskz_loadu_ps(first_lanes(xs.len()), xs.as_ptr()))
    }
    #[inline(always)]
    fn load_bf16_part(self, xs: &[bf16]) -> Self::F32 {
        self.widen(part!(_mm256_maskz_loadu_epi16(first_lanes(xs.len()), xs.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_part(self, v: Self::F32, to: &mut [f32]) {
        part!(_mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), v))
    }
    #[inline(always)]
    fn store_bf16_part(self, v: Self::F32, to: &mut [bf16]) {
        part!(_mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), first_lanes(to.len()), self.narrow(v)))
    }
    #[inline(always)]
    fn join_bf16(self, first: Self::F32, second: Self::F32) -> Self::Bits {
        match BF16 {
            true => registers!(std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))),
            false => registers!({
                let halves = |v| _mm512_cvtepi32_epi16(self.to_bf16(v));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves(first)), halves(second))
            }),
        }
    }
    #[inline(always)]
    fn write_line(self, bits: Self::Bits, to: &mut Line) {
        // SAFETY: `self` proves that the instruction is there; it writes a whole line, which is aligned as it asks.
        unsafe { _mm512_stream_si512(to.0.as_mut_ptr().cast(), bits) }
    }
    #[inline(always)]
    fn finish_lines(self) {
        registers!(_mm_sfence())
    }
    #[inline(always)]
    fn pair_bf16(self, low: Self::F32, high: Self::F32) -> Self::Bits {
        if !BF16 {
            let high = registers!(_mm512_slli_epi32::<16>(self.to_bf16(high)));
            return registers!(_mm512_or_si512(self.to_bf16(low), high));
        }
        registers!({
            let halves = self.join_bf16(low, high);
            // From all low ones before all high ones to one of each.
            let mut places = [0u16; 2 * LANES];
            let mut i = 0;
            while i < LANES {
                (places[2 * i], places[2 * i + 1]) = (i as u16, (LANES + i) as u16);
                i += 1;
            }
            _mm512_permutexvar_epi16(_mm512_loadu_si512(places.as_ptr().cast()), halves)
        })
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        registers!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        registers!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        registers!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        registers!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn quotient(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // Newton's step doubles the estimate's 14 digits.
        registers! {{
            let estimate = _mm512_rcp14_ps(b);
            let missing = _mm512_fnmadd_ps(estimate, b, _mm512_set1_ps(1.0));
            _mm512_mul_ps(a, _mm512_fmadd_ps(estimate, missing, estimate))
        }}
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        registers!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        registers!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        registers!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        registers!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }
    #[inline(always)]
    fn scale_by_power(self, v: Self::F32, n: Self::F32) -> Self::F32 {
        registers!(_mm512_scalef_ps(v, n))
    }
    #[inline(always)]
    fn scale_by_shifted(self, v: Self::F32, shifted: Self::F32) -> Self::F32 {
        registers!({
            let exponents = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), exponents))
        })
    }
    #[inline(always)]
    fn sum(self, v: Self::F32) -> f32 {
        registers!({
            let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        })
    }
    #[inline(always)]
    fn largest(self, v: Self::F32) -> f32 {
        registers!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // A hint about any address whatever is harmless.
        registers!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
    #[inline(always)]
    fn prefetch_to_write<T>(self, at: *const T) {
        // A hint about any address whatever is harmless.
        registers!(_mm_prefetch::<_MM_HINT_ET0>(at.cast()))
    }
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::Bits {
        registers!(_mm512_set1_epi32(bits as i32))
    }
    #[inline(always)]
    fn load_bits(self, bits: &[u32; LANES]) -> Self::Bits {
        memory!(_mm512_loadu_si512(bits.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 4 * LANES]) -> Self::Bits {
        memory!(_mm512_loadu_si512(bytes.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bits(self, v: Self::Bits, to: &mut [u32; LANES]) {
        memory!(_mm512_storeu_si512(to.as_mut_ptr().cast(), v))
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::Bits; LANES]) -> [Self::Bits; LANES] {
        let mut pairs = rows;
        let mut quads = rows;
        registers!({
            // Within each quarter of a register: rows of four become columns of four.
            for i in (0..LANES).step_by(2) {
                pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
            }
            for i in (0..LANES).step_by(4) {
                quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
                quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
                quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
                quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
            }
            // Then the quarters themselves, which stand in four groups of four rows.
            let mut columns = rows;
            for i in 0..4 {
                let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(quads[i], quads[i + 4]);
                let high = _mm512_shuffle_i32x4::<0b10_00_10_00>(quads[i + 8], quads[i + 12]);
                columns[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
                columns[i + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
                let low = _mm512_shuffle_i32x4::<0b11_01_11_01>(quads[i], quads[i + 4]);
                let high = _mm512_shuffle_i32x4::<0b11_01_11_01>(quads[i + 8], quads[i + 12]);
                columns[i + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
                columns[i + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
            }
            columns
        })
    }
    #[inline(always)]
    fn store_bits_part(self, v: Self::Bits, to: &mut [u32]) {
        part!(_mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), first_lanes(to.len()), v))
    }
    #[inline(always)]
    fn to_f32(self, v: Self::Bits) -> Self::F32 {
        registers!(_mm512_cvtepi32_ps(v))
    }
    #[inline(always)]
    fn as_f32(self, v: Self::Bits) -> Self::F32 {
        registers!(_mm512_castsi512_ps(v))
    }
    #[inline(always)]
    fn as_bits(self, v: Self::F32) -> Self::Bits {
        registers!(_mm512_castps_si512(v))
    }
    #[inline(always)]
    fn store_bytes(self, v: Self::F32, to: &mut [u32; LANES / 4]) {
        memory!(_mm_storeu_si128(to.as_mut_ptr().cast(), self.to_bytes(v)))
    }
    #[inline(always)]
    fn store_bytes_part(self, v: Self::F32, to: &mut [u32]) {
        part!(_mm_mask_storeu_epi8(to.as_mut_ptr().cast(), first_lanes(4 * to.len()), self.to_bytes(v)))
    }
    #[inline(always)]
    fn in_order(self, v: Self::Bits) -> Self::Bits {
        registers!(in_order(v))
    }
    #[inline(always)]
    fn split_bf16(self, pairs: Self::Bits) -> [Self::F32; 2] {
        registers!([
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32))),
        ])
    }
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F32, a: Self::Bits, b: Self::Bits) -> Self::F32 {
        if !BF16 {
            return dot_bf16_in_f32(self, acc, a, b);
        }
        // A bit pattern is a bit pattern: both types are 512 bits in one register.
        registers!({
            let pairs = std::mem::transmute::<__m512i, __m512bh>;
            _mm512_dpbf16_ps(acc, pairs(a), pairs(b))
        })
    }
    #[inline(always)]
    fn dot_u8_i8(self, acc: Self::Bits, a: Self::Bits, b: Self::Bits) -> Self::Bits {
        if !VNNI {
            // `vpmaddubsw` would saturate; the even and the odd bytes are widened to 16 bits instead.
            return registers!({
                let evens = |v| _mm512_and_si512(v, _mm512_set1_epi16(0x00ff));
                let even = _mm512_madd_epi16(evens(a), _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)));
                let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
                _mm512_add_epi32(acc, _mm512_add_epi32(even, odd))
            });
        }
        registers!(_mm512_dpbusd_epi32(acc, a, b))
    }
}
