//! Loops over the vectors of rows.

/// Runs a block for every vector of rows of `$len` elements, at whose first element `$start` stands. `$vector` is the
/// module to reach it with: [`whole`], or [`rest`] for what is left of the rows at their end.
///
/// The block is there twice, so that the loop over the whole vectors holds nothing but vector instructions; a test for
/// the end of a row in each load costs more than the arithmetic. A macro and not a function that takes a closure, since
/// a closure is not sure to be inlined, and would then be compiled without the instructions.
macro_rules! for_each_vector {
    ($len:expr, |$start:ident, $vector:ident| $body:block) => {{
        let len: usize = $len;
        let mut $start = 0;
        while $start + $crate::simd::LANES <= len {
            use $crate::sweep::whole as $vector;
            $body
            $start += $crate::simd::LANES;
        }
        if $start < len {
            use $crate::sweep::rest as $vector;
            $body
        }
    }};
}

pub(crate) use for_each_vector;

/// Sixteen elements of a slice.
pub(crate) mod whole {
    use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

    #[inline(always)]
    pub(crate) fn load<S: Simd, T: Element>(s: S, xs: &[T], start: usize) -> S::F32 {
        load_up_to(s, &xs[start..start + LANES])
    }

    /// As [`load`]; `_fill` is for the end of a row.
    #[inline(always)]
    pub(crate) fn load_or<S: Simd, T: Element>(s: S, xs: &[T], start: usize, _fill: f32) -> S::F32 {
        load(s, xs, start)
    }

    #[inline(always)]
    pub(crate) fn store<S: Simd, T: Element>(s: S, v: S::F32, to: &mut [T], start: usize) {
        store_up_to(s, v, &mut to[start..start + LANES]);
    }
}

/// The last elements of a slice, fewer than sixteen.
pub(crate) mod rest {
    use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

    /// The lanes past them are 0.
    #[inline(always)]
    pub(crate) fn load<S: Simd, T: Element>(s: S, xs: &[T], start: usize) -> S::F32 {
        load_up_to(s, &xs[start..])
    }

    /// The lanes past them are `fill`.
    #[inline(always)]
    pub(crate) fn load_or<S: Simd, T: Element>(s: S, xs: &[T], start: usize, fill: f32) -> S::F32 {
        let mut lanes = [fill; LANES];
        for (lane, x) in lanes.iter_mut().zip(&xs[start..]) {
            *lane = x.to_f32();
        }
        s.load(&lanes)
    }

    #[inline(always)]
    pub(crate) fn store<S: Simd, T: Element>(s: S, v: S::F32, to: &mut [T], start: usize) {
        store_up_to(s, v, &mut to[start..]);
    }
}
