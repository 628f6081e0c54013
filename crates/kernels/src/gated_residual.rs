use rayon::prelude::*;

use crate::gemm::Gate;
use crate::isa::{Body, Isa};
use crate::norm::{rows_per_task, sum_over_rows, whole_rows};
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

#[track_caller]
fn check(gate: &Gate, width: usize, elements: usize) {
    let (groups, rows) = (whole_rows(gate.values.len(), width), gate.rows);
    assert_eq!(groups * rows * width, elements, "{groups} gates for {rows} rows of {width}: not the elements given");
}

/// `xs + gate · ys`: the end of each branch of a DiT block (Peebles & Xie 2023, section 3.2). `xs`, `ys` and `out` are
/// `[groups, rows, width]`; `gate` holds `[groups, width]` factors, each used for `rows` rows.
///
/// # Panics
/// If the lengths do not fit.
pub fn gated_residual<T: Element>(isa: Isa, xs: &[T], width: usize, gate: &Gate, ys: &[T], out: &mut [T]) {
    check(gate, width, out.len());
    assert!(xs.len() == out.len() && ys.len() == out.len(), "gated residual: the operands' lengths");
    let rows = rows_per_task(width);
    let task = rows * width;
    (xs.par_chunks(task), ys.par_chunks(task), out.par_chunks_mut(task))
        .into_par_iter()
        .enumerate()
        .for_each(|(i, (xs, ys, out))| isa.run(Forward { xs, width, gate, first_row: i * rows, ys, out }));
}

struct Forward<'a, T> {
    xs: &'a [T],
    width: usize,
    gate: &'a Gate<'a>,
    first_row: usize,
    ys: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> Body for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.width;
        let branches = self.xs.chunks_exact(width).zip(self.ys.chunks_exact(width));
        for (i, ((xs, ys), out)) in branches.zip(self.out.chunks_exact_mut(width)).enumerate() {
            let gate = &self.gate.values[(self.first_row + i) / self.gate.rows * width..][..width];
            for_each_vector!(width, |start, vector| {
                let (x, y) = (vector::load(s, xs, start), vector::load(s, ys, start));
                vector::store(s, s.mul_add(vector::load(s, gate, start), y, x), out, start);
            });
        }
    }
}

/// The gradients of [`gated_residual`] from that of its result, `d_out`: `d_ys`, `[groups, rows, width]`, and `d_gate`,
/// `[groups, width]`, are overwritten. That of `xs` is `d_out` itself.
///
/// # Panics
/// If the lengths do not fit.
pub fn gated_residual_backward<T: Element>(
    isa: Isa,
    width: usize,
    gate: &Gate,
    ys: &[T],
    d_out: &[T],
    d_ys: &mut [T],
    d_gate: &mut [f32],
) {
    check(gate, width, d_ys.len());
    assert!(ys.len() == d_ys.len() && d_out.len() == d_ys.len(), "gated residual: the gradients' lengths");
    assert_eq!(d_gate.len(), gate.values.len(), "gated residual: the length of the gate's gradient");
    sum_over_rows(width, gate.rows, d_ys, [d_gate], |first_row, d_ys, d_gate| {
        let part = first_row * width..first_row * width + d_ys.len();
        let gate = &gate.values[first_row / gate.rows * width..][..width];
        isa.run(Backward { gate, ys: &ys[part.clone()], d_out: &d_out[part], d_ys, d_gate });
    });
}

struct Backward<'a, T> {
    /// `[width]`: no piece lies across two groups.
    gate: &'a [f32],
    ys: &'a [T],
    d_out: &'a [T],
    d_ys: &'a mut [T],
    d_gate: &'a mut [f32],
}

impl<T: Element> Body for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.gate.len();
        let rows = self.ys.chunks_exact(width).zip(self.d_out.chunks_exact(width));
        for ((ys, d_out), d_ys) in rows.zip(self.d_ys.chunks_exact_mut(width)) {
            for_each_vector!(width, |start, vector| {
                let (y, d_out) = (vector::load(s, ys, start), vector::load(s, d_out, start));
                vector::store(s, s.mul(vector::load(s, self.gate, start), d_out), d_ys, start);
                let sum = vector::load(s, self.d_gate, start);
                vector::store(s, s.mul_add(y, d_out, sum), self.d_gate, start);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{TestElement, WIDTHS, assert_close, assert_same_in_any_threads, random, wide};

    fn check<T: TestElement>() {
        for (width, (groups, rows)) in WIDTHS.into_iter().flat_map(|width| [(1, 5), (2, 1), (3, 2)].map(|g| (width, g)))
        {
            let len = groups * rows * width;
            let (xs, ys, d_out) = (random::<T>(len, 1), random::<T>(len, 2), random::<T>(len, 3));
            let values = random::<f32>(groups * width, 4);
            let gate = Gate { values: &values, rows };
            let column = |i: usize| i / (rows * width) * width + i % width;
            let (wide_ys, wide_d_out) = (wide(&ys), wide(&d_out));
            let factor = |i: usize| f64::from(values[column(i)]);
            let out: Vec<f64> = wide(&xs).into_iter().enumerate().map(|(i, x)| x + factor(i) * wide_ys[i]).collect();
            let d_ys: Vec<f64> = (0..len).map(|i| factor(i) * wide_d_out[i]).collect();
            let mut d_gate = vec![0.0; values.len()];
            (0..len).for_each(|i| d_gate[column(i)] += wide_ys[i] * wide_d_out[i]);
            for isa in Isa::available() {
                let what = format!("{isa:?}, {groups} × {rows} rows of {width}");
                let mut found = vec![T::default(); len];
                gated_residual(isa, &xs, width, &gate, &ys, &mut found);
                assert_close(&found, &out, 1e-6, &what);
                let mut sums = vec![9f32; values.len()];
                gated_residual_backward(isa, width, &gate, &ys, &d_out, &mut found, &mut sums);
                assert_close(&found, &d_ys, 1e-6, &what);
                assert_close(&sums, &d_gate, 1e-6, &what);
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        check::<f32>();
        check::<bf16>();
    }

    #[test]
    fn threads_do_not_matter() {
        let (groups, rows, width) = (2, 150, 1152);
        let len = groups * rows * width;
        let (xs, ys, values) = (random::<bf16>(len, 1), random::<bf16>(len, 2), random::<f32>(groups * width, 3));
        let gate = Gate { values: &values, rows };
        let work = || {
            let isa = *Isa::available().last().expect("there is always one");
            let (mut out, mut d_ys, mut d_gate) = (xs.clone(), xs.clone(), values.clone());
            gated_residual(isa, &xs, width, &gate, &ys, &mut out);
            gated_residual_backward(isa, width, &gate, &ys, &xs, &mut d_ys, &mut d_gate);
            (out, d_ys, d_gate)
        };
        assert_same_in_any_threads(work, "gated residual");
    }

    #[test]
    #[should_panic(expected = "not the elements given")]
    fn too_few_gates_are_refused() {
        let gate = Gate { values: &[1.0; 16], rows: 3 };
        gated_residual(Isa::Portable, &[0f32; 32], 8, &gate, &[0f32; 32], &mut [0f32; 32]);
    }
}
