//! Quantiles of the symmetric beta distribution, for beta-spaced sigmas.

/// The `p`-quantile of the beta distribution with both parameters `a`; `0 ≤ p ≤ 1`, `a > 0`.
///
/// By symmetry only the lower half needs solving, and there the series of the incomplete beta
/// function converges like a geometric one of ratio 1/2.
pub(crate) fn symmetric_beta_quantile(p: f64, a: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - symmetric_beta_quantile(1.0 - p, a);
    }
    let target = p * 2.0 * incomplete_beta(0.5, a);
    let (mut low, mut high) = (0.0, 0.5);
    // Each round halves the interval; 128 leave nothing to gain even for tiny quantiles.
    for _ in 0..128 {
        let middle = 0.5 * (low + high);
        if incomplete_beta(middle, a) < target {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// `∫ (t(1−t))^(a−1) dt` from 0 to `x ≤ 1/2`, as `x^a Σ x^n/(a+n) Π (k−a)/k` (DLMF 8.17.7).
fn incomplete_beta(x: f64, a: f64) -> f64 {
    let mut sum = 1.0 / a;
    let mut term = 1.0;
    for n in 1..64 {
        let n = f64::from(n);
        term *= x * (n - a) / n;
        sum += term / (a + n);
    }
    x.powf(a) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        let known = [
            (0.0, 0.0),
            (0.001, 1.855873851745199e-5),
            (0.1, 0.03958440558878085),
            (0.25, 0.17568037865269498),
            (0.5, 0.5),
            (0.75, 0.824319621347305),
            (0.999, 0.9999814412614826),
            (1.0, 1.0),
        ];
        for (p, quantile) in known {
            let found = symmetric_beta_quantile(p, 0.6);
            assert!((found - quantile).abs() < 1e-14, "{p}: {found}, not {quantile}");
        }
    }

    #[test]
    fn the_uniform_distribution_is_a_special_case() {
        for p in [0.01, 0.3, 0.5, 0.9] {
            assert!((symmetric_beta_quantile(p, 1.0) - p).abs() < 1e-14);
        }
    }
}
