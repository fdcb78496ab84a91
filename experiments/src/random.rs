//! Draws from the distributions that Thompson sampling needs, from a seeded ChaCha8 stream.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// A standard normal draw (Box & Muller 1958, one of the pair).
pub(crate) fn normal(random: &mut ChaCha8Rng) -> f64 {
    // 1 − u is in (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}

/// A gamma draw with the given shape > 0 and scale 1 (Marsaglia & Tsang 2000).
pub(crate) fn gamma(random: &mut ChaCha8Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        let lift = (1.0 - random.random::<f64>()).powf(1.0 / shape);
        return gamma(random, shape + 1.0) * lift;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let z = normal(random);
        let v = (1.0 + c * z).powi(3);
        let u = 1.0 - random.random::<f64>();
        if v > 0.0 && u.ln() < 0.5 * z * z + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// A beta draw, both parameters > 0.
pub(crate) fn beta(random: &mut ChaCha8Rng, a: f64, b: f64) -> f64 {
    let (x, y) = (gamma(random, a), gamma(random, b));
    x / (x + y)
}

/// A draw from Student's distribution.
pub(crate) fn student(random: &mut ChaCha8Rng, freedom: f64) -> f64 {
    normal(random) / (2.0 * gamma(random, 0.5 * freedom) / freedom).sqrt()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::moments::Moments;

    fn moments_of(mut draw: impl FnMut(&mut ChaCha8Rng) -> f64) -> (f64, f64) {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let mut moments = Moments::default();
        for _ in 0..200_000 {
            moments.push(draw(&mut random)).unwrap();
        }
        (moments.mean(), moments.variance().unwrap())
    }

    fn close(got: (f64, f64), expected: (f64, f64)) {
        let is_close = |a: f64, b: f64| (a - b).abs() < 0.02 * (1.0 + b.abs());
        assert!(
            is_close(got.0, expected.0) && is_close(got.1, expected.1),
            "{got:?} is not {expected:?}"
        );
    }

    #[test]
    fn draws_have_the_mean_and_variance_of_their_distribution() {
        close(moments_of(normal), (0.0, 1.0));
        close(moments_of(|r| gamma(r, 3.0)), (3.0, 3.0));
        close(moments_of(|r| gamma(r, 0.5)), (0.5, 0.5));
        close(moments_of(|r| beta(r, 2.0, 3.0)), (0.4, 0.04));
        close(moments_of(|r| student(r, 10.0)), (0.0, 1.25));
    }
}
