//! Standardisation: each dimension minus its mean, over its deviation, both taken on unlabelled text.

use serde::{Deserialize, Serialize};

use super::error::{EvalError, Result};

/// A dimension's deviation counts as at least this share of the root mean square over all
/// dimensions, so that a dimension that hardly moved on the sample cannot drown the others.
const MIN_RELATIVE_DEVIATION: f64 = 1e-3;

/// Mean and deviation of each dimension.
///
/// Both have length D; every number is finite and every deviation positive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Standardisation {
    mean: Vec<f32>,
    std: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl TryFrom<Unchecked> for Standardisation {
    type Error = EvalError;

    fn try_from(unchecked: Unchecked) -> Result<Self> {
        Self::new(unchecked.mean, unchecked.std)
    }
}

impl Standardisation {
    /// From a stored mean and deviation.
    ///
    /// # Errors
    /// If they are empty, differ in length, hold a non-finite number, or a deviation is not
    /// positive.
    pub fn new(mean: Vec<f32>, std: Vec<f32>) -> Result<Self> {
        super::error::check_lengths("mean", mean.len(), "std", std.len())?;
        super::error::check_vectors("mean", &[&mean])?;
        super::error::check_vectors("std", &[&std])?;
        if let Some(index) = std.iter().position(|&value| value <= 0.0) {
            return Err(EvalError::Setting {
                setting: "std",
                found: format!("{} at dimension {index}", std[index]),
                expected: "positive",
            });
        }
        Ok(Self { mean, std })
    }

    /// Fits mean and population deviation to vectors of one width.
    ///
    /// # Errors
    /// See [`Moments::push`] and [`Moments::finish`].
    pub fn fit<E: AsRef<[f32]>>(vectors: &[E]) -> Result<Self> {
        let width = vectors.first().map_or(0, |vector| vector.as_ref().len());
        let mut moments = Moments::new(width);
        for vector in vectors {
            moments.push(vector.as_ref())?;
        }
        moments.finish()
    }

    /// Standardises one vector in place; does not normalise it.
    ///
    /// # Errors
    /// If the width differs from the fitted one or a value is not finite; `vector` is then
    /// unchanged.
    pub fn apply(&self, vector: &mut [f32]) -> Result<()> {
        check_vector("vector to standardise", vector, self.mean.len(), 0)?;
        for ((value, mean), std) in vector.iter_mut().zip(&self.mean).zip(&self.std) {
            *value = (*value - mean) / std;
        }
        Ok(())
    }

    /// Number of dimensions.
    #[must_use]
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// Mean of each dimension, `[D]`.
    #[must_use]
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Deviation of each dimension, `[D]`, positive.
    #[must_use]
    pub fn std(&self) -> &[f32] {
        &self.std
    }
}

/// Running mean and sum of squared deviations of each dimension, by Welford's recurrence in f64.
#[derive(Debug, Clone)]
pub struct Moments {
    num_vectors: usize,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Moments of no vector yet, for vectors of `width` dimensions.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self { num_vectors: 0, mean: vec![0.0; width], squares: vec![0.0; width] }
    }

    /// Adds one vector.
    ///
    /// # Errors
    /// If its width differs or a value is not finite; nothing is then added.
    pub fn push(&mut self, vector: &[f32]) -> Result<()> {
        check_vector("vectors to standardise by", vector, self.mean.len(), self.num_vectors)?;
        self.num_vectors += 1;
        let count = self.num_vectors as f64;
        for ((&value, mean), squares) in vector.iter().zip(&mut self.mean).zip(&mut self.squares) {
            let before = f64::from(value) - *mean;
            *mean += before / count;
            *squares += before * (f64::from(value) - *mean);
        }
        Ok(())
    }

    /// The mean and population deviation, each deviation at least a small share of the root mean
    /// square over all dimensions.
    ///
    /// # Errors
    /// If there are fewer than two vectors, or all of them are equal.
    pub fn finish(self) -> Result<Standardisation> {
        let (num_vectors, width) = (self.num_vectors, self.mean.len());
        if num_vectors < 2 || width == 0 {
            return Err(EvalError::TooFew {
                what: "vectors to standardise by",
                expected: 2,
                found: if width == 0 { 0 } else { num_vectors },
            });
        }
        let count = num_vectors as f64;
        let mean_square = self.squares.iter().sum::<f64>() / count / width as f64;
        let floor = MIN_RELATIVE_DEVIATION * mean_square.sqrt();
        if (floor as f32) == 0.0 {
            return Err(EvalError::Constant { what: "vectors to standardise by", count: num_vectors });
        }
        let std = self.squares.iter().map(|s| (s / count).sqrt().max(floor) as f32);
        let std = std.collect();
        Standardisation::new(self.mean.iter().map(|&mean| mean as f32).collect(), std)
    }
}

fn check_vector(what: &'static str, vector: &[f32], width: usize, row: usize) -> Result<()> {
    if vector.len() != width {
        return Err(EvalError::Width { what, row, expected: width, found: vector.len() });
    }
    match vector.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(column) => {
            Err(EvalError::NotFinite { what, index: row * width + column, value: f64::from(vector[column]) })
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn mean_and_deviation_by_hand() {
        let fitted = Standardisation::fit(&[[1.0_f32, 10.0], [3.0, 10.0], [5.0, 40.0]]).unwrap();
        assert_eq!(fitted.mean(), [3.0, 20.0]);
        // Squared deviations 4 + 0 + 4 and 100 + 100 + 400, over three.
        assert_eq!(fitted.std(), [(8.0_f64 / 3.0).sqrt() as f32, 200.0_f64.sqrt() as f32]);
        let mut vector = [3.0, 20.0];
        fitted.apply(&mut vector).unwrap();
        assert_eq!(vector, [0.0, 0.0]);
    }

    #[test]
    fn a_large_offset_does_not_cost_digits() {
        let fitted = Standardisation::fit(&[[1e6_f32], [1e6 + 1.0]]).unwrap();
        assert_eq!(fitted.std(), [0.5]);
    }

    #[test]
    fn a_still_dimension_is_floored() {
        let fitted = Standardisation::fit(&[[1.0_f32, 7.0], [3.0, 7.0]]).unwrap();
        // Deviations 1 and 0: their root mean square is 1 / sqrt 2.
        assert!((fitted.std()[1] - 1e-3 * 0.5_f32.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn bad_vectors_are_errors_and_change_nothing() {
        assert!(Standardisation::fit::<[f32; 1]>(&[]).is_err());
        assert!(Standardisation::fit(&[[1.0_f32]]).is_err());
        assert!(Standardisation::fit(&[[1.0_f32], [1.0]]).is_err());
        assert!(Standardisation::fit(&[[1.0_f32], [f32::INFINITY]]).is_err());
        assert!(Standardisation::fit(&[vec![1.0_f32], vec![1.0, 2.0]]).is_err());
        let fitted = Standardisation::fit(&[[1.0_f32], [3.0]]).unwrap();
        let mut vector = [f32::NAN];
        assert!(fitted.apply(&mut vector).is_err());
        assert!(vector[0].is_nan());
        assert!(fitted.apply(&mut [1.0, 2.0]).is_err());
    }

    #[test]
    fn stored_form_is_checked_when_read() {
        let fitted = Standardisation::fit(&[[1.0_f32, 0.1], [3.0, 0.7]]).unwrap();
        let text = serde_json::to_string(&fitted).unwrap();
        assert_eq!(serde_json::from_str::<Standardisation>(&text).unwrap(), fitted);
        for bad in [
            r#"{"mean":[1.0],"std":[0.0]}"#,
            r#"{"mean":[1.0],"std":[1.0,2.0]}"#,
            r#"{"mean":[],"std":[]}"#,
            r#"{"mean":[1e99],"std":[1.0]}"#,
            r#"{"mean":[1.0],"std":[1.0],"median":[1.0]}"#,
        ] {
            assert!(serde_json::from_str::<Standardisation>(bad).is_err(), "{bad}");
        }
    }
}
