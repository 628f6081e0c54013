//! Kernels that see every element alone.

use rayon::prelude::*;

use crate::activation::Activation;
use crate::isa::{Body, Isa};
use crate::norm::ELEMENTS_PER_TASK;
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// `activation(xs)`, any shape; `ys` is like `xs`.
///
/// # Panics
/// If the lengths differ.
pub fn activate<T: Element>(isa: Isa, activation: Activation, xs: &[T], ys: &mut [T]) {
    map(isa, Activate(activation), [xs], ys);
}

/// The gradient of [`activate`]: that of its result, `dys`, times the derivative at its input `xs`; all of one shape.
///
/// # Panics
/// If the lengths differ.
pub fn activate_backward<T: Element>(isa: Isa, activation: Activation, xs: &[T], dys: &[T], dxs: &mut [T]) {
    map(isa, ActivateBackward(activation), [xs, dys], dxs);
}

/// What is computed from one vector of each input. A trait rather than a closure, since a closure is not sure to be
/// inlined, and would then be compiled without the instructions.
trait Map<const N: usize>: Copy + Send + Sync {
    fn apply<S: Simd>(self, s: S, xs: [S::F32; N]) -> S::F32;
}

#[derive(Clone, Copy)]
struct Activate(Activation);

impl Map<1> for Activate {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F32; 1]) -> S::F32 {
        self.0.apply(s, x)
    }
}

#[derive(Clone, Copy)]
struct ActivateBackward(Activation);

impl Map<2> for ActivateBackward {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, dy]: [S::F32; 2]) -> S::F32 {
        s.mul(dy, self.0.gradient(s, x))
    }
}

#[track_caller]
fn map<T: Element, M: Map<N>, const N: usize>(isa: Isa, map: M, inputs: [&[T]; N], output: &mut [T]) {
    for input in inputs {
        assert_eq!(input.len(), output.len(), "elementwise operands differ in length");
    }
    output.par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(i, output)| {
        let inputs = inputs.map(|input| &input[i * ELEMENTS_PER_TASK..][..output.len()]);
        isa.run(Sweep { map, inputs, output });
    });
}

struct Sweep<'a, T, M, const N: usize> {
    map: M,
    inputs: [&'a [T]; N],
    output: &'a mut [T],
}

impl<T: Element, M: Map<N>, const N: usize> Body for Sweep<'_, T, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for_each_vector!(self.output.len(), |start, vector| {
            let mut xs = [s.splat(0.0); N];
            for (x, input) in xs.iter_mut().zip(self.inputs) {
                *x = vector::load(s, input, start);
            }
            vector::store(s, self.map.apply(s, xs), self.output, start);
        });
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::activation::tests::{ALL, reference};
    use crate::testing::{TestElement, WIDTHS, assert_close, assert_same_in_any_threads, random, wide};

    fn check<T: TestElement>() {
        for len in WIDTHS.into_iter().chain([0, 3 * ELEMENTS_PER_TASK + 5]) {
            let (a, b) = (random::<T>(len, 1), random::<T>(len, 2));
            let pairs = || wide(&a).into_iter().zip(wide(&b));
            for isa in Isa::available() {
                let what = format!("{isa:?}, {len} elements");
                let mut ys = vec![T::default(); len];
                for activation in ALL {
                    let what = format!("{what}, {activation:?}");
                    activate(isa, activation, &a, &mut ys);
                    let expected: Vec<_> = wide(&a).into_iter().map(|x| reference(activation, x).0).collect();
                    assert_close(&ys, &expected, 1e-6, &what);
                    activate_backward(isa, activation, &a, &b, &mut ys);
                    let expected: Vec<_> = pairs().map(|(x, dy)| dy * reference(activation, x).1).collect();
                    assert_close(&ys, &expected, 1e-6, &what);
                }
            }
        }
    }

    #[test]
    fn agree_with_the_definitions() {
        check::<f32>();
        check::<bf16>();
    }

    #[test]
    fn threads_do_not_matter() {
        let xs = random::<bf16>(5 * ELEMENTS_PER_TASK + 3, 1);
        let work = || {
            let mut ys = vec![bf16::ZERO; xs.len()];
            activate(*Isa::available().last().expect("there is always one"), Activation::Silu, &xs, &mut ys);
            ys
        };
        assert_same_in_any_threads(work, "activation");
    }

    #[test]
    #[should_panic(expected = "differ in length")]
    fn operands_of_two_lengths_are_refused() {
        activate(Isa::Portable, Activation::Silu, &[0f32; 5], &mut [0f32; 4]);
    }
}
