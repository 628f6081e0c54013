//! The coefficients of the Adams methods in λ: integrals of Lagrange polynomials against an
//! exponential weight (Xue et al., 2023, section 5).

/// `∫ e^(rate·λ) ℓ_i(λ) dλ` over the interval `(start, end)`, for each Lagrange polynomial `ℓ_i` of
/// the nodes `lambdas`.
pub(crate) fn data_coefficients(lambdas: &[f64], interval: (f64, f64), rate: f64) -> Vec<f64> {
    coefficients(lambdas, |power| growing_moment(power, interval, rate))
}

/// `∫ e^(−λ) ℓ_i(λ) dλ` over the interval `(start, end)`, for each Lagrange polynomial `ℓ_i` of the
/// nodes `lambdas`.
pub(crate) fn noise_coefficients(lambdas: &[f64], interval: (f64, f64)) -> Vec<f64> {
    coefficients(lambdas, |power| falling_moment(power, interval))
}

/// The integral of each Lagrange polynomial, from the `moment` of each power of λ.
fn coefficients(lambdas: &[f64], moment: impl Fn(usize) -> f64) -> Vec<f64> {
    let moments: Vec<f64> = (0..lambdas.len()).map(moment).collect();
    let integral = |node: usize| -> f64 {
        let polynomial = lagrange_polynomial(node, lambdas);
        polynomial.iter().zip(&moments).map(|(factor, moment)| factor * moment).sum()
    };
    (0..lambdas.len()).map(integral).collect()
}

/// The polynomial that is 1 at node `node` and 0 at the others: the factors of 1, λ, λ², …
fn lagrange_polynomial(node: usize, nodes: &[f64]) -> Vec<f64> {
    let mut polynomial = vec![1.0];
    for (_, zero) in nodes.iter().enumerate().filter(|(index, _)| *index != node) {
        let distance = nodes[node] - zero;
        // Times (λ − zero) / distance.
        let mut product = vec![0.0; polynomial.len() + 1];
        for (power, factor) in polynomial.iter().enumerate() {
            product[power] -= factor * zero / distance;
            product[power + 1] += factor / distance;
        }
        polynomial = product;
    }
    polynomial
}

/// `∫ λ^power e^(rate·λ) dλ`, by repeated partial integration.
fn growing_moment(power: usize, (start, end): (f64, f64), rate: f64) -> f64 {
    let (start, end) = (rate * start, rate * end);
    let integrated = |x: f64| {
        let mut value = 1.0;
        for k in 1..=power {
            value = x.powi(k as i32) - k as f64 * value;
        }
        value
    };
    let difference = integrated(end) - integrated(start) * (start - end).exp();
    end.exp() * difference / rate.powi(power as i32 + 1)
}

/// `∫ λ^power e^(−λ) dλ`, by repeated partial integration.
fn falling_moment(power: usize, (start, end): (f64, f64)) -> f64 {
    let integrated = |x: f64| {
        let mut value = 1.0;
        for k in 1..=power {
            value = x.powi(k as i32) + k as f64 * value;
        }
        value
    };
    (-end).exp() * (integrated(start) * (end - start).exp() - integrated(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `∫ f` by Simpson's rule.
    fn integral(f: impl Fn(f64) -> f64, (start, end): (f64, f64)) -> f64 {
        let width = (end - start) / 1000.0;
        let panel = |i: i32| {
            let x = start + f64::from(i) * width;
            (f(x) + 4.0 * f(x + width / 2.0) + f(x + width)) * width / 6.0
        };
        (0..1000).map(panel).sum()
    }

    #[test]
    fn coefficients_are_the_integrals() {
        let interval = (-0.4, 0.3);
        let nodes = [-0.4, -0.9, -1.7, -2.2];
        for count in 1..=4 {
            let nodes = &nodes[..count];
            let data = data_coefficients(nodes, interval, 2.0);
            let noise = noise_coefficients(nodes, interval);
            assert_eq!((data.len(), noise.len()), (count, count));
            for node in 0..count {
                let polynomial = |x: f64| -> f64 {
                    let others = nodes.iter().filter(|other| **other != nodes[node]);
                    others.map(|other| (x - other) / (nodes[node] - other)).product()
                };
                let expected = integral(|x| (2.0 * x).exp() * polynomial(x), interval);
                assert!((data[node] - expected).abs() < 1e-9, "data {count} {node}");
                let expected = integral(|x| (-x).exp() * polynomial(x), interval);
                assert!((noise[node] - expected).abs() < 1e-9, "noise {count} {node}");
            }
        }
    }
}
