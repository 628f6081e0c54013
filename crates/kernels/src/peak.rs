use std::hint::black_box;
use std::time::Instant;

use crate::gemm::{Arithmetic, Bf16, F32, Int8, Product};
use crate::isa::{Body, Isa};
use crate::memory::ZERO;
use crate::simd::{LANES, Simd};

/// The arithmetic peak of this machine's threads together, in operations a second (a multiplication and an addition are
/// two): multiply-adds in a loop that touches nothing but registers, on every thread of the current pool, for about
/// `seconds` each. Of bf16 it is that of f32 where these are computed ([`Isa::has_fast_bf16`]).
pub fn arithmetic_peak(isa: Isa, arithmetic: Arithmetic, seconds: f64) -> f64 {
    let rates = rayon::broadcast(|_| match arithmetic.on(isa) {
        Arithmetic::F32 => isa.run(Registers::<F32> { seconds, product: Default::default() }),
        Arithmetic::Bf16 => isa.run(Registers::<Bf16> { seconds, product: Default::default() }),
        Arithmetic::Int8 => isa.run(Registers::<Int8> { seconds, product: Default::default() }),
    });
    rates.into_iter().sum()
}

struct Registers<P> {
    seconds: f64,
    product: std::marker::PhantomData<P>,
}

/// Sums that are added to independently: more than any processor's multiply-adds in flight.
const SUMS: usize = 12;

impl<P: Product> Body for Registers<P> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        if P::GROUP > 1 && s.has_matrices() {
            // SAFETY: as just asked.
            return unsafe { s.matrix_rate(P::GROUP, self.seconds) };
        }
        const ROUNDS: usize = 100_000;
        let mut sums = [P::zero(s); SUMS];
        let (left, right) = (black_box(0x0101_0101), s.splat_bits(black_box(0x0101_0101)));
        let (start, mut rounds) = (Instant::now(), 0);
        while start.elapsed().as_secs_f64() < self.seconds {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = P::multiply_add(s, *sum, left, right);
                }
            }
            rounds += ROUNDS;
        }
        let rate = (rounds * SUMS * LANES * P::GROUP * 2) as f64 / start.elapsed().as_secs_f64();
        for sum in sums {
            let mut line = ZERO;
            P::store(s, sum, &mut line);
            black_box(line);
        }
        rate
    }
}
