//! What can be wrong with the input: each variant names the field, the value and the fix.

/// Bad input to a function of this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A NaN or an infinity where a number is needed.
    #[error("{field}: {value} is not a finite number; leave a missing outcome out instead")]
    NotFinite {
        /// Which input.
        field: &'static str,
        /// What it was.
        value: f64,
    },
    /// A number outside its range.
    #[error("{field}: {value} is out of range; it must be {range}")]
    OutOfRange {
        /// Which input.
        field: &'static str,
        /// What it was.
        value: f64,
        /// What it may be, in words.
        range: &'static str,
    },
    /// Too few observations, arms or values.
    #[error("{field}: {got} given, at least {need} needed; wait for more or leave it out")]
    TooFew {
        /// Which input.
        field: &'static str,
        /// How many there were.
        got: u64,
        /// How many there must be.
        need: u64,
    },
    /// Two inputs that belong together differ in length.
    #[error("{field}: {got} values where {expected} are expected; give one for each")]
    Length {
        /// Which input.
        field: &'static str,
        /// How many there were.
        got: usize,
        /// How many there must be.
        expected: usize,
    },
    /// Weights that do not add up to one.
    #[error("{field}: they add up to {sum}; make them add up to 1")]
    WeightSum {
        /// Which weights.
        field: &'static str,
        /// Their sum.
        sum: f64,
    },
    /// A name that is empty.
    #[error("{field}: it is empty; give it a name")]
    Empty {
        /// Which input.
        field: &'static str,
    },
    /// A name that occurs twice.
    #[error("{field}: `{name}` occurs twice; give each its own")]
    Duplicate {
        /// Which input.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// A quantity that does not vary, so that nothing can be divided by its variance.
    #[error("{field}: every value is the same; a spread is needed, so leave it out or choose another")]
    Constant {
        /// Which input.
        field: &'static str,
    },
    /// Two experiments that would reach the same traffic.
    #[error(
        "experiments `{first}` and `{second}` overlap: {clash}; give them times, populations or slices apart, or \
         name a layer of its own for each"
    )]
    Overlap {
        /// The one's name.
        first: String,
        /// The other's name.
        second: String,
        /// What clashes.
        clash: crate::assign::Clash,
    },
    /// The sums grew beyond what a double holds.
    #[error("{field}: the sum overflows at {value}; give the outcome in a larger unit")]
    Overflow {
        /// Which input.
        field: &'static str,
        /// The value that was added last.
        value: f64,
    },
}

/// `value` if it is finite.
pub(crate) fn finite(field: &'static str, value: f64) -> Result<f64, Error> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NotFinite { field, value })
    }
}

/// `value` if it is finite and above zero.
pub(crate) fn positive(field: &'static str, value: f64) -> Result<f64, Error> {
    if finite(field, value)? > 0.0 {
        Ok(value)
    } else {
        Err(Error::OutOfRange {
            field,
            value,
            range: "above 0",
        })
    }
}

/// `value` if it is in [0, 1].
pub(crate) fn probability(field: &'static str, value: f64) -> Result<f64, Error> {
    if (0.0..=1.0).contains(&finite(field, value)?) {
        Ok(value)
    } else {
        Err(Error::OutOfRange {
            field,
            value,
            range: "in [0, 1]",
        })
    }
}

/// `value` if it is strictly between 0 and 1: an error rate, a confidence.
pub(crate) fn open_unit(field: &'static str, value: f64) -> Result<f64, Error> {
    if finite(field, value)? > 0.0 && value < 1.0 {
        Ok(value)
    } else {
        Err(Error::OutOfRange {
            field,
            value,
            range: "above 0 and below 1",
        })
    }
}

/// Fails unless there are at least `need` of it.
pub(crate) fn at_least(field: &'static str, got: u64, need: u64) -> Result<(), Error> {
    if got >= need {
        Ok(())
    } else {
        Err(Error::TooFew { field, got, need })
    }
}

/// Probabilities that add up to 1 within 10⁻⁶ (weights are typed by people: 0.333, 0.333, 0.334).
pub(crate) fn sums_to_one(field: &'static str, weights: &[f64]) -> Result<(), Error> {
    at_least(field, weights.len() as u64, 1)?;
    for &weight in weights {
        probability(field, weight)?;
    }
    let sum: f64 = weights.iter().sum();
    if (sum - 1.0).abs() <= 1e-6 {
        Ok(())
    } else {
        Err(Error::WeightSum { field, sum })
    }
}
