//! The few special functions that the statistics need, over `libm` (MIT, pure Rust: the same bits on
//! every platform). Accuracies were checked against SciPy; the tests hold the reference values.

use libm::{erfc, exp, lgamma, log, log1p};

/// ln Γ(x), x > 0.
pub(crate) fn ln_gamma(x: f64) -> f64 {
    lgamma(x)
}

/// P(Z > z) for a standard normal Z; relative accuracy holds far into the tail.
pub(crate) fn normal_tail(z: f64) -> f64 {
    0.5 * erfc(z / std::f64::consts::SQRT_2)
}

/// The standard normal quantile for p in (0, 1), by bisection on [`normal_tail`] in the lower tail and
/// symmetry: 70 halvings of [0, 40] reach the last bits, and it is never called in a loop.
pub(crate) fn normal_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return bisect(0.0, 40.0, |z| normal_tail(z) > 1.0 - p);
    }
    -bisect(0.0, 40.0, |z| normal_tail(z) > p)
}

/// Where `is_below`, true left of some point, turns false.
fn bisect(mut low: f64, mut high: f64, is_below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..70 {
        let middle = 0.5 * (low + high);
        if is_below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// P(X > x) for X chi-square distributed with `freedom` degrees: the regularised upper incomplete gamma
/// function Q(freedom/2, x/2), by its series for small x and Lentz's continued fraction else
/// (Press et al., Numerical Recipes, 3rd ed., §6.2).
pub(crate) fn chi_square_tail(x: f64, freedom: f64) -> f64 {
    let (a, x) = (0.5 * freedom, 0.5 * x);
    if x <= 0.0 {
        return 1.0;
    }
    let front = exp(a * log(x) - x - ln_gamma(a));
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        for _ in 0..1000 {
            n += 1.0;
            term *= x / n;
            sum += term;
            if term < sum * 1e-16 {
                break;
            }
        }
        return (1.0 - front * sum).clamp(0.0, 1.0);
    }
    let tiny = 1e-300;
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1.0 / tiny, 1.0 / b);
    let mut h = d;
    for i in 1..1000 {
        let i = f64::from(i);
        let factor = -i * (i - a);
        b += 2.0;
        d = 1.0 / away_from_zero(factor * d + b, tiny);
        c = away_from_zero(b + factor / c, tiny);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    (front * h).clamp(0.0, 1.0)
}

fn away_from_zero(x: f64, tiny: f64) -> f64 {
    if x.abs() < tiny { tiny } else { x }
}

/// The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction
/// (Numerical Recipes, 3rd ed., §6.4).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges quickly left of the mean only.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = exp(ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * log(x) + b * log1p(-x));
    let tiny = 1e-300;
    let (mut c, mut d) = (1.0, 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny));
    let mut h = d;
    for m in 1..1000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away_from_zero(1.0 + even * d, tiny);
        c = away_from_zero(1.0 + even / c, tiny);
        h *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away_from_zero(1.0 + odd * d, tiny);
        c = away_from_zero(1.0 + odd / c, tiny);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    (front * h / a).clamp(0.0, 1.0)
}

/// P(T > t) for t ≥ 0 and T Student distributed with `freedom` degrees.
fn student_tail(t: f64, freedom: f64) -> f64 {
    0.5 * incomplete_beta(0.5 * freedom, 0.5, freedom / (freedom + t * t))
}

/// The t above which Student's distribution with `freedom` degrees has the mass `tail` < ½. Above 10⁶
/// degrees it is the normal's to within 10⁻⁶.
pub(crate) fn student_upper(tail: f64, freedom: f64) -> f64 {
    if freedom > 1e6 {
        return -normal_quantile(tail);
    }
    let mut high = 2.0;
    while student_tail(high, freedom) > tail && high < 1e12 {
        high *= 2.0;
    }
    bisect(0.0, high, |t| student_tail(t, freedom) > tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64) {
        assert!(
            (got - expected).abs() <= 1e-9 * expected.abs() + 1e-18,
            "{got} is not {expected}"
        );
    }

    // Reference values: SciPy's norm.sf, norm.ppf, chi2.sf, t.isf.
    #[test]
    fn agrees_with_the_reference_values() {
        close(normal_tail(0.0), 0.5);
        close(normal_tail(1.0), 0.15865525393145707);
        close(normal_tail(-2.5), 0.9937903346742238);
        close(normal_tail(8.0), 6.22096057427174e-16);
        close(normal_quantile(0.975), 1.959963984540054);
        close(normal_quantile(0.5), 0.0);
        close(normal_quantile(1e-09), -5.9978070150076865);
        close(normal_quantile(0.2), -0.8416212335729142);
        close(chi_square_tail(3.84, 1.0), 0.05004352124870519);
        close(chi_square_tail(0.5, 4.0), 0.9735009788392561);
        close(chi_square_tail(100.0, 60.0), 0.0009168288614560842);
        close(chi_square_tail(1.0, 9.0), 0.9994375026978325);
        close(student_upper(0.025, 3.0), 3.1824463052837086);
        close(student_upper(0.005, 1.5), 17.82031051446281);
        close(student_upper(0.025, 200.0), 1.9718962236339093);
        close(student_upper(1e-07, 12.0), 10.551069260342635);
    }
}
