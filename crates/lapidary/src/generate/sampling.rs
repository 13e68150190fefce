//! How the next token is chosen from logits: penalty, temperature, truncation, draw.
//!
//! Order and definitions are those of the logits processors of `transformers`: repetition penalty (arXiv 1909.05858),
//! temperature, top-k, top-p (arXiv 1904.09751), min-p (arXiv 2407.01082).

use crate::Error;
use crate::model::GenerationConfig;
use layout::{Rng, TokenId};
use rand::{Rng as _, SeedableRng as _};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// What `transformers` takes where a model's file is silent.
const DEFAULT_TOP_K: usize = 50;
/// Highest temperature and repetition penalty; beyond it a value is a mistake.
const MAX_FACTOR: f32 = 1e3;
/// Bounds of presence and frequency penalties, as OpenAI has them.
const MAX_PENALTY: f32 = 2.0;

/// How the next token is chosen; the default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0: greedy, the most probable token (the lowest id of equals).
    pub temperature: f32,
    /// Draw from the `top_k` most probable tokens, and those as probable as the last of them; 0: all.
    pub top_k: usize,
    /// Draw from the fewest most probable tokens whose probabilities sum to this; 1: all.
    pub top_p: f32,
    /// Draw from tokens at least this fraction as probable as the most probable; 0: all.
    pub min_p: f32,
    /// Logits of tokens already in the row are divided (positive) or multiplied (negative) by this; 1: unchanged.
    pub repetition_penalty: f32,
    /// Is taken from the logits of tokens that have been chosen before; 0: unchanged.
    pub presence_penalty: f32,
    /// Is taken from the logits of tokens once for each time that they have been chosen before; 0: unchanged.
    pub frequency_penalty: f32,
    /// Seed of the draw; none: another one each time.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
        }
    }
}

impl Sampling {
    /// What a model's makers ask for, read as `transformers` reads it: greedy unless `do_sample` is true, and 50 for an
    /// absent `top_k`.
    pub fn from_generation_config(config: &GenerationConfig) -> Self {
        let temperature = if config.do_sample == Some(true) { config.temperature.unwrap_or(1.0) } else { 0.0 };
        Self {
            temperature,
            top_k: config.top_k.unwrap_or(DEFAULT_TOP_K),
            top_p: config.top_p.unwrap_or(1.0),
            min_p: config.min_p.unwrap_or(0.0),
            repetition_penalty: config.repetition_penalty.unwrap_or(1.0),
            ..Self::default()
        }
    }

    /// # Errors
    /// [`Error::Setting`] for the first value out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        let bounds = [("temperature", temperature, MAX_FACTOR), ("top_p", top_p, 1.0), ("min_p", min_p, 1.0)];
        for (field, value, max) in bounds {
            if !(0.0..=max).contains(&value) {
                let expected = format!("a number from 0 to {max}");
                return Err(Error::Setting { field: field.into(), expected, found: value.to_string() });
            }
        }
        for (field, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !(-MAX_PENALTY..=MAX_PENALTY).contains(&value) {
                let expected = format!("a number from -{MAX_PENALTY} to {MAX_PENALTY}");
                return Err(Error::Setting { field: field.into(), expected, found: value.to_string() });
            }
        }
        if !(repetition_penalty > 0.0 && repetition_penalty <= MAX_FACTOR) {
            let expected = format!("a number above 0, at most {MAX_FACTOR}");
            return Err(Error::Setting {
                field: "repetition_penalty".into(),
                expected,
                found: repetition_penalty.to_string(),
            });
        }
        Ok(())
    }
}

/// Makes tokens that were seen less probable: a logit above 0 is divided by `penalty`, one below is multiplied by it.
/// Ids beyond the logits are passed over.
pub fn penalise_repetition(logits: &mut [f32], seen: &BTreeSet<TokenId>, penalty: f32) {
    for id in seen {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The most probable token; the lowest id of equals. None without logits.
pub fn greedy(logits: &[f32]) -> Option<TokenId> {
    /// Maxima side by side, which the compiler keeps in vectors.
    const MAXIMA: usize = 16;
    let (chunks, rest) = logits.as_chunks::<MAXIMA>();
    let more = |most: f32, logit: f32| if logit > most { logit } else { most };
    let mut most = [f32::NEG_INFINITY; MAXIMA];
    for chunk in chunks {
        most.iter_mut().zip(chunk).for_each(|(most, logit)| *most = more(*most, *logit));
    }
    let most = most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, more);
    // Those that are no less, what is not a number among them, are compared one by one.
    (0..).zip(logits).filter(|(_, logit)| **logit >= most || logit.is_nan()).min_by(more_probable).map(|(id, _)| id)
}

fn more_probable(a: &(TokenId, &f32), b: &(TokenId, &f32)) -> Ordering {
    b.1.total_cmp(a.1).then(a.0.cmp(&b.0))
}

/// The tokens that may come next and their probabilities, which sum to 1, the most probable first; temperature, top-k,
/// top-p and min-p are applied, the repetition penalty is not. One token always stays. Greedy at temperature 0.
pub fn candidates(logits: &[f32], sampling: &Sampling) -> Vec<(TokenId, f64)> {
    if sampling.temperature == 0.0 {
        return greedy(logits).map(|id| (id, 1.0)).into_iter().collect();
    }
    let mut kept: Vec<(TokenId, &f32)> = (0..).zip(logits).collect();
    if (1..kept.len()).contains(&sampling.top_k) {
        let least = *kept.select_nth_unstable_by(sampling.top_k - 1, more_probable).1.1;
        kept.retain(|(_, logit)| **logit >= least);
    }
    kept.sort_unstable_by(more_probable);
    let Some(top) = kept.first().map(|(_, logit)| f64::from(**logit)) else { return Vec::new() };
    // Relative to the first, whose weight is 1.
    let weight = |logit: &f32| ((f64::from(*logit) - top) / f64::from(sampling.temperature)).exp();
    let mut weights: Vec<(TokenId, f64)> = kept.into_iter().map(|(id, logit)| (id, weight(logit))).collect();
    if sampling.top_p < 1.0 {
        let enough = f64::from(sampling.top_p) * sum(&weights);
        let mut mass = 0.0;
        let reached = weights.iter().position(|(_, w)| {
            mass += w;
            mass >= enough
        });
        weights.truncate(reached.map_or(weights.len(), |last| last + 1));
    }
    let least = f64::from(sampling.min_p);
    // A weight of nothing is that of a token that may not come.
    let likely = weights.iter().take_while(|(_, w)| *w >= least && *w > 0.0).count();
    weights.truncate(likely.max(1));
    let total = sum(&weights);
    weights.iter_mut().for_each(|(_, w)| *w /= total);
    weights
}

fn sum(weights: &[(TokenId, f64)]) -> f64 {
    weights.iter().map(|(_, w)| w).sum()
}

/// Chooses the tokens of one row.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: Rng,
    seen: BTreeSet<TokenId>,
    /// How often each token was chosen.
    chosen: BTreeMap<TokenId, u32>,
}

impl Sampler {
    /// Starts a row.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn new(sampling: Sampling) -> Result<Self, Error> {
        sampling.validate()?;
        let rng = sampling.seed.map_or_else(Rng::from_os_rng, Rng::seed_from_u64);
        Ok(Self { sampling, rng, seen: BTreeSet::new(), chosen: BTreeMap::new() })
    }

    /// Notes tokens of the row, which the repetition penalty acts on.
    pub fn see(&mut self, ids: &[TokenId]) {
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.extend(ids);
        }
    }

    /// The next token of the row, from the logits `[V]` of its last position.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub fn next_token(&mut self, logits: &[f32]) -> Result<TokenId, Error> {
        // Without a way out of the loop the compiler keeps it in vectors.
        let is_finite = logits.iter().fold(true, |all, logit| all & logit.is_finite());
        if !is_finite && let Some(bad) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::NotFinite(format!("the logit of token {bad} is {}", logits[bad])));
        }
        let mut logits = std::borrow::Cow::Borrowed(logits);
        if !self.seen.is_empty() {
            penalise_repetition(logits.to_mut(), &self.seen, self.sampling.repetition_penalty);
        }
        let Sampling { presence_penalty, frequency_penalty, .. } = self.sampling;
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (id, count) in &self.chosen {
                logits.to_mut()[*id as usize] -= presence_penalty + *count as f32 * frequency_penalty;
            }
        }
        let candidates = candidates(&logits, &self.sampling);
        let mut rest = if candidates.len() > 1 { self.rng.random::<f64>() } else { 0.0 };
        let drawn = candidates.iter().find(|(_, probability)| {
            rest -= probability;
            rest < 0.0
        });
        // Rounding can leave a rest behind the last candidate.
        let drawn = drawn.or(candidates.last()).map(|(id, _)| *id);
        let drawn = drawn.ok_or_else(|| Error::Internal("no logits to choose from".into()))?;
        self.see(&[drawn]);
        *self.chosen.entry(drawn).or_default() += 1;
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose softmax is 0.1, 0.4, 0.1, 0.25, 0.15.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.4, 0.1, 0.25, 0.15].map(f32::ln).to_vec()
    }

    fn at(sampling: Sampling) -> Vec<(TokenId, f64)> {
        candidates(&logits(), &sampling)
    }

    fn close(found: &[(TokenId, f64)], expected: &[(TokenId, f64)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (f, e) in found.iter().zip(expected) {
            assert!(f.0 == e.0 && (f.1 - e.1).abs() < 1e-6, "{found:?}");
        }
    }

    const ALL: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: Some(0),
    };

    #[test]
    fn greedy_takes_the_first_of_the_most_probable_wherever_it_stands() {
        let mut rng = Rng::seed_from_u64(5);
        for count in [0usize, 1, 15, 16, 17, 100] {
            let of_few = |rng: &mut Rng| (0..count).map(|_| rng.random_range(-4i32..4) as f32).collect::<Vec<f32>>();
            for _ in 0..20 {
                let logits = of_few(&mut rng);
                assert_eq!(greedy(&logits), (0..).zip(&logits).min_by(more_probable).map(|(id, _)| id), "{logits:?}");
            }
        }
        assert_eq!(greedy(&[f32::NEG_INFINITY; 3]), Some(0));
        assert_eq!(greedy(&[-0.0, 0.0]), Some(1));
    }

    #[test]
    fn temperature_is_softmax_of_divided_logits() {
        close(&at(ALL), &[(1, 0.4), (3, 0.25), (4, 0.15), (0, 0.1), (2, 0.1)]);
        // At 1/2 the probabilities are squared: 0.16, 0.0625, 0.0225, 0.01, 0.01 of 0.265.
        let squared =
            [(1, 0.16 / 0.265), (3, 0.0625 / 0.265), (4, 0.0225 / 0.265), (0, 0.01 / 0.265), (2, 0.01 / 0.265)];
        close(&at(Sampling { temperature: 0.5, ..ALL }), &squared);
    }

    #[test]
    fn zero_temperature_takes_the_lowest_id_of_the_most_probable() {
        assert_eq!(greedy(&[0.5, 2.0, -1.0, 2.0]), Some(1));
        assert_eq!(candidates(&[0.5, 2.0, -1.0, 2.0], &Sampling::default()), [(1, 1.0)]);
        assert_eq!(greedy(&[]), None);
    }

    #[test]
    fn top_k_keeps_ties_with_the_last() {
        close(&at(Sampling { top_k: 2, ..ALL }), &[(1, 0.4 / 0.65), (3, 0.25 / 0.65)]);
        assert_eq!(at(Sampling { top_k: 4, ..ALL }).len(), 5, "tokens 0 and 2 are equally probable");
        assert_eq!(at(Sampling { top_k: 99, ..ALL }).len(), 5);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        // 0.4 < 0.6 <= 0.4 + 0.25.
        close(&at(Sampling { top_p: 0.6, ..ALL }), &[(1, 0.4 / 0.65), (3, 0.25 / 0.65)]);
        close(&at(Sampling { top_p: 0.7, ..ALL }), &[(1, 0.5), (3, 0.3125), (4, 0.1875)]);
        close(&at(Sampling { top_p: 0.0, ..ALL }), &[(1, 1.0)]);
        // After top-k the probabilities are those of the kept: 0.4 / 0.65 = 0.615 reaches 0.6 alone.
        close(&at(Sampling { top_k: 2, top_p: 0.6, ..ALL }), &[(1, 1.0)]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable() {
        // 0.5 * 0.4 = 0.2: only 0.4 and 0.25 are as probable.
        close(&at(Sampling { min_p: 0.5, ..ALL }), &[(1, 0.4 / 0.65), (3, 0.25 / 0.65)]);
        close(&at(Sampling { min_p: 1.0, ..ALL }), &[(1, 1.0)]);
    }

    #[test]
    fn repetition_penalty_divides_or_multiplies_once() {
        let mut logits = [2.0, -2.0, 0.5, 0.0];
        penalise_repetition(&mut logits, &BTreeSet::from([0, 1, 3, 77]), 4.0);
        assert_eq!(logits, [0.5, -8.0, 0.5, 0.0]);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }).unwrap();
        let logits = [3.0, 2.0, 1.0];
        // 3; then 3/2 < 2; then 2/2 < 3/2.
        let drawn: Vec<_> = (0..3).map(|_| sampler.next_token(&logits).unwrap()).collect();
        assert_eq!(drawn, [0, 1, 0]);
    }

    #[test]
    fn penalties_count_what_was_chosen() {
        let chosen = |presence_penalty, frequency_penalty| {
            let sampling = Sampling { presence_penalty, frequency_penalty, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling).unwrap();
            // Tokens of a prompt do not count.
            sampler.see(&[0]);
            (0..5).map(|_| sampler.next_token(&[3.0, 2.5, 0.9]).unwrap()).collect::<Vec<_>>()
        };
        // Once only: 2 < 2.5, then 2 > 1.5 for good.
        assert_eq!(chosen(1.0, 0.0), [0, 1, 0, 0, 0]);
        // Each time: 2 < 2.5; 2 > 1.5; 1 < 1.5; 1 > 0.9 > 0.5.
        assert_eq!(chosen(0.0, 1.0), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn what_is_masked_is_never_drawn() {
        let masked = [f32::MIN, 0.0, f32::MIN, f32::MIN, -2.0];
        for temperature in [1e-3, 1.0, 1e3] {
            let found = candidates(&masked, &Sampling { temperature, ..ALL });
            assert!(found.iter().all(|(id, _)| [1, 4].contains(id)), "{temperature}: {found:?}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed: Some(seed), ..ALL }).unwrap();
            (0..4000).map(|_| sampler.next_token(&logits()).unwrap()).collect::<Vec<_>>()
        };
        let drawn = draw(1);
        assert_eq!(drawn, draw(1));
        assert_ne!(drawn, draw(2));
        for (id, probability) in at(ALL) {
            let share = drawn.iter().filter(|d| **d == id).count() as f64 / 4000.0;
            // Four standard deviations of a share of 4,000 draws: at most 4 * sqrt(0.25 / 4000) = 0.032.
            assert!((share - probability).abs() < 0.032, "token {id}: {share}");
        }
    }

    #[test]
    fn settings_out_of_range_name_the_field() {
        let wrong = [
            ("temperature", Sampling { temperature: -1.0, ..ALL }),
            ("temperature", Sampling { temperature: f32::NAN, ..ALL }),
            ("top_p", Sampling { top_p: 1.1, ..ALL }),
            ("min_p", Sampling { min_p: -0.1, ..ALL }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..ALL }),
            ("repetition_penalty", Sampling { repetition_penalty: f32::INFINITY, ..ALL }),
            ("presence_penalty", Sampling { presence_penalty: f32::NAN, ..ALL }),
            ("frequency_penalty", Sampling { frequency_penalty: 2.1, ..ALL }),
        ];
        for (field, sampling) in wrong {
            assert!(sampling.validate().unwrap_err().to_string().starts_with(field));
        }
        let mut sampler = Sampler::new(ALL).unwrap();
        assert!(sampler.next_token(&[0.0, f32::NAN]).unwrap_err().to_string().contains("token 1"));
    }

    #[test]
    fn a_generation_config_is_read_as_transformers_reads_it() {
        let read = |json| Sampling::from_generation_config(&GenerationConfig::from_json(json).unwrap());
        let greedy = read(r#"{"temperature": 0.6}"#);
        assert_eq!((greedy.temperature, greedy.top_k), (0.0, 50));
        let sampled = read(r#"{"do_sample": true, "top_k": 64, "top_p": 0.95}"#);
        assert_eq!(sampled, Sampling { top_k: 64, top_p: 0.95, seed: None, ..ALL });
    }
}
