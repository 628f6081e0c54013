//! What activations are kept in: f32 or bf16.

use half::bf16;

use super::portable::to_bf16;
use super::{LANES, Simd};
use crate::memory::Line;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A type that activations are kept in: f32 or bf16, and no other. Arithmetic is in f32.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// This element in f32.
    fn to_f32(self) -> f32;
    /// The nearest element.
    fn from_f32(x: f32) -> Self;
    /// These elements, if they are f32.
    #[doc(hidden)]
    fn as_f32(xs: &[Self]) -> Option<&[f32]>;
    /// These elements, if they are bf16.
    #[doc(hidden)]
    fn as_bf16(xs: &[Self]) -> Option<&[bf16]>;
    /// The bits of the nearest bf16.
    #[doc(hidden)]
    fn to_bf16_bits(self) -> u32;
    #[doc(hidden)]
    fn load<S: Simd>(simd: S, xs: &[Self; LANES]) -> S::F32;
    #[doc(hidden)]
    fn store<S: Simd>(simd: S, v: S::F32, to: &mut [Self; LANES]);
    /// Fewer than sixteen, and zeros after them.
    #[doc(hidden)]
    fn load_part<S: Simd>(simd: S, xs: &[Self]) -> S::F32;
    /// Fewer than sixteen.
    #[doc(hidden)]
    fn store_part<S: Simd>(simd: S, v: S::F32, to: &mut [Self]);
    /// [`Simd::write_line`] for the lines that two vectors fill.
    #[doc(hidden)]
    fn write_lines<S: Simd>(simd: S, vectors: [S::F32; 2], lines: &mut [Line]);
}

impl Element for f32 {
    #[inline(always)]
    fn write_lines<S: Simd>(simd: S, [first, second]: [S::F32; 2], lines: &mut [Line]) {
        simd.write_line(simd.as_bits(first), &mut lines[0]);
        simd.write_line(simd.as_bits(second), &mut lines[1]);
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn as_f32(xs: &[Self]) -> Option<&[f32]> {
        Some(xs)
    }
    #[inline(always)]
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }
    #[inline(always)]
    fn to_bf16_bits(self) -> u32 {
        to_bf16(self).to_bits() as u32
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, xs: &[Self; LANES]) -> S::F32 {
        simd.load(xs)
    }
    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::F32, to: &mut [Self; LANES]) {
        simd.store(v, to);
    }
    #[inline(always)]
    fn load_part<S: Simd>(simd: S, xs: &[Self]) -> S::F32 {
        simd.load_part(xs)
    }
    #[inline(always)]
    fn store_part<S: Simd>(simd: S, v: S::F32, to: &mut [Self]) {
        simd.store_part(v, to);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn write_lines<S: Simd>(simd: S, [first, second]: [S::F32; 2], lines: &mut [Line]) {
        simd.write_line(simd.join_bf16(first, second), &mut lines[0]);
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    #[inline(always)]
    fn as_bf16(xs: &[Self]) -> Option<&[bf16]> {
        Some(xs)
    }
    #[inline(always)]
    fn to_bf16_bits(self) -> u32 {
        self.to_bits() as u32
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, xs: &[Self; LANES]) -> S::F32 {
        simd.load_bf16(xs)
    }
    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::F32, to: &mut [Self; LANES]) {
        simd.store_bf16(v, to);
    }
    #[inline(always)]
    fn load_part<S: Simd>(simd: S, xs: &[Self]) -> S::F32 {
        simd.load_bf16_part(xs)
    }
    #[inline(always)]
    fn store_part<S: Simd>(simd: S, v: S::F32, to: &mut [Self]) {
        simd.store_bf16_part(v, to);
    }
}

/// The first elements of `xs`, at most sixteen, and zeros after them.
#[inline(always)]
pub(crate) fn load_up_to<S: Simd, T: Element>(simd: S, xs: &[T]) -> S::F32 {
    match xs.first_chunk() {
        Some(whole) => T::load(simd, whole),
        None => T::load_part(simd, xs),
    }
}

/// Stores as many lanes as `to` has room for, at most sixteen.
#[inline(always)]
pub(crate) fn store_up_to<S: Simd, T: Element>(simd: S, v: S::F32, to: &mut [T]) {
    match to.first_chunk_mut() {
        Some(whole) => T::store(simd, v, whole),
        None => T::store_part(simd, v, to),
    }
}
