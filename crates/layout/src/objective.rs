//! Weighted losses, as data.

/// What a term measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Cross-entropy of the labels: the sum over labelled positions divided by their number in the batch.
    NextToken,
    /// InfoNCE between the queries and the positives, with in-batch and hard negatives.
    Contrastive,
    /// One minus the cosine of a query and its positive, the mean over the pairs.
    Alignment,
}

/// The factor of a term.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weight {
    /// The same at every step.
    Constant(f32),
    /// α, which the trainer schedules.
    Alpha,
    /// 1 − α.
    OneMinusAlpha,
}

impl Weight {
    /// The factor at a step whose scheduled α is `alpha`.
    #[must_use]
    pub fn at(self, alpha: f32) -> f32 {
        match self {
            Self::Constant(weight) => weight,
            Self::Alpha => alpha,
            Self::OneMinusAlpha => 1.0 - alpha,
        }
    }
}

/// One weighted loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// What is measured.
    pub loss: Loss,
    /// Its factor.
    pub weight: Weight,
}

/// The sum that training minimises; no term means that there is nothing to train.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Objective {
    /// The weighted losses.
    pub terms: Vec<Term>,
}

impl Objective {
    /// `loss` alone.
    #[must_use]
    pub fn only(loss: Loss) -> Self {
        Self { terms: vec![Term { loss, weight: Weight::Constant(1.0) }] }
    }

    /// `(1 - α) · next_token + α · loss`.
    #[must_use]
    pub fn next_token_and(loss: Loss) -> Self {
        let term = |loss, weight| Term { loss, weight };
        Self { terms: vec![term(Loss::NextToken, Weight::OneMinusAlpha), term(loss, Weight::Alpha)] }
    }
}
