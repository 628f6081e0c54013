//! Aligned memory, memory that is used again, and slices that several threads write to.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::simd::{Element, LANES};

/// One vector in memory: 64 bytes at an address divisible by 64, a line of cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u32; LANES]);

pub(crate) const ZERO: Line = Line([0; LANES]);

/// `len` elements of arbitrary values, for a result that a kernel overwrites whole: no time goes into zeros.
pub fn arbitrary<T: Element>(len: usize) -> Vec<T> {
    let mut elements = Box::<[T]>::new_uninit_slice(len);
    let start: *mut MaybeUninit<T> = elements.as_mut_ptr();
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: the assembly is empty. But as far as the language can tell it writes to the memory that it is given the
    // address of, which makes a value, if an unknown one, of what stands there.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    // SAFETY: the slice has `len` elements, and all bits zero are a number.
    unsafe {
        start.write_bytes(0, len);
    }
    // SAFETY: what stands there is initialised, as above, and every bit pattern is an `f32` or a `bf16`; nothing else is an
    // `Element`.
    unsafe { elements.assume_init() }.into_vec()
}

/// Working memory for kernels, kept between calls. One can serve any number of kernels and threads; it holds as many
/// buffers as threads ever used it at once, each as large as the largest that was asked for.
#[derive(Debug, Default)]
pub struct Scratch {
    free: Mutex<Vec<Vec<Line>>>,
}

impl Scratch {
    /// Empty: memory is taken when a kernel first needs it.
    pub const fn new() -> Self {
        Self { free: Mutex::new(Vec::new()) }
    }

    /// A buffer for one thread. What stands in it is arbitrary.
    pub(crate) fn take(&self) -> Buffer<'_> {
        // A panic elsewhere leaves the list whole: buffers are only pushed and popped.
        let mut free = self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Buffer { lines: free.pop().unwrap_or_default(), scratch: self }
    }
}

/// A buffer on loan from a [`Scratch`].
pub(crate) struct Buffer<'a> {
    lines: Vec<Line>,
    scratch: &'a Scratch,
}

impl Buffer<'_> {
    /// At least `lines` lines of it, with arbitrary content.
    pub(crate) fn lines(&mut self, lines: usize) -> &mut [Line] {
        if self.lines.len() < lines {
            self.lines.resize(lines, ZERO);
        }
        &mut self.lines[..lines]
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut free = self.scratch.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        free.push(lines);
    }
}

/// A slice of which several threads write disjoint parts.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` that may be sent; who asks it for a part promises that no other thread has that part.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn size_in_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Where element `i` stands, for a hint to the processor; it may lie outside.
    #[inline(always)]
    pub(crate) fn address(&self, i: usize) -> *const T {
        self.start.wrapping_add(i)
    }

    /// The elements `start .. start + len`.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it may.
    #[allow(clippy::mut_from_ref, reason = "that is its purpose; the caller keeps the parts disjoint")]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the slice, as just asserted; nobody else has this part, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// The words that lines are made of.
pub(crate) fn line_words(lines: &[Line]) -> &[u32] {
    // SAFETY: a line is sixteen words and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// The bytes that lines are made of.
pub(crate) fn line_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is 64 bytes and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// Lines as the 32-bit words they are made of.
pub(crate) struct LineWords<'a>(&'a mut [Line]);

impl<'a> LineWords<'a> {
    pub(crate) fn new(lines: &'a mut [Line]) -> Self {
        Self(lines)
    }
}

impl Deref for LineWords<'_> {
    type Target = [u32];
    #[inline(always)]
    fn deref(&self) -> &[u32] {
        line_words(self.0)
    }
}

impl DerefMut for LineWords<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: a line is sixteen words and nothing else.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}
