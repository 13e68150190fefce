//! Multiple-choice questions with four answers, asked as the `mmlu` tasks of
//! lm-evaluation-harness ask them.

use std::collections::BTreeMap;

use super::error::{EvalError, Result, check_lengths};
use super::random::{seeded, shuffle};

/// The continuations whose log-likelihoods are compared, in the order of the choices.
pub const LETTERS: [&str; 4] = [" A", " B", " C", " D"];

/// A question, its four choices and the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The subject as the data set names it, such as `abstract_algebra`.
    pub subject: String,
    /// The question itself.
    pub question: String,
    /// The four choices.
    pub choices: [String; 4],
    /// Index of the right choice, 0..=3.
    pub answer: u8,
}

/// The prompts of `questions`, each after the first `num_fewshot` examples of its subject.
///
/// `dev` holds the examples, of all subjects, in the order of the data set. A prompt ends in
/// `Answer:`; the model's log-likelihood of each of [`LETTERS`] after it goes to [`score`].
///
/// # Errors
/// If a subject has fewer than `num_fewshot` examples, or an answer is above 3.
pub fn prompts(questions: &[Question], dev: &[Question], num_fewshot: usize) -> Result<Vec<String>> {
    check_answers("answers of the questions", questions)?;
    check_answers("answers of the examples", dev)?;
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    let mut prompts = Vec::with_capacity(questions.len());
    for question in questions {
        let subject = question.subject.as_str();
        if !headers.contains_key(subject) {
            headers.insert(subject, header(subject, dev, num_fewshot)?);
        }
        prompts.push(format!("{}{}", headers[subject], ask(question)));
    }
    Ok(prompts)
}

/// Accuracy of one subject.
#[derive(Debug, Clone, PartialEq)]
pub struct SubjectScore {
    /// The subject.
    pub subject: String,
    /// Number of its questions.
    pub num_questions: usize,
    /// Share answered right, times 100.
    pub accuracy: f64,
}

/// Accuracy over all questions and for each subject.
#[derive(Debug, Clone, PartialEq)]
pub struct MultipleChoiceScore {
    /// Share of all questions answered right, times 100: subjects weigh by their size.
    pub accuracy: f64,
    /// Each subject, by name.
    pub subjects: Vec<SubjectScore>,
}

/// Scores the log-likelihoods of the four letters after each prompt: the highest is the answer,
/// the first one of equals.
///
/// # Errors
/// If there is not one entry for each question, there are no questions, an answer is above 3, or
/// a log-likelihood is NaN.
pub fn score(questions: &[Question], log_likelihoods: &[[f64; 4]]) -> Result<MultipleChoiceScore> {
    check_answers("answers of the questions", questions)?;
    check_lengths("questions", questions.len(), "log_likelihoods", log_likelihoods.len())?;
    if questions.is_empty() {
        return Err(EvalError::TooFew { what: "questions", expected: 1, found: 0 });
    }
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (index, (question, letters)) in questions.iter().zip(log_likelihoods).enumerate() {
        if let Some(letter) = letters.iter().position(|value| value.is_nan()) {
            return Err(EvalError::NotFinite {
                what: "log_likelihoods",
                index: index * LETTERS.len() + letter,
                value: f64::NAN,
            });
        }
        let right = usize::from(question.answer);
        // First of equals: strictly above those before it, not below those after it.
        let chosen = letters.iter().enumerate().all(|(letter, &value)| {
            letter == right || letters[right] > value || (letter > right && letters[right] == value)
        });
        let (num_right, num_questions) = counts.entry(&question.subject).or_default();
        *num_right += usize::from(chosen);
        *num_questions += 1;
    }
    let num_right: usize = counts.values().map(|(num_right, _)| num_right).sum();
    let percent = |right: usize, all: usize| 100.0 * right as f64 / all as f64;
    Ok(MultipleChoiceScore {
        accuracy: percent(num_right, questions.len()),
        subjects: counts
            .into_iter()
            .map(|(subject, (num_right, num_questions))| SubjectScore {
                subject: subject.to_owned(),
                num_questions,
                accuracy: percent(num_right, num_questions),
            })
            .collect(),
    })
}

/// Indices of `num_questions` of the questions, ascending, each subject in proportion to its size
/// (largest remainders first), drawn by a seeded shuffle within the subject.
///
/// # Errors
/// If `num_questions` is zero or above the number of questions.
pub fn select_slice(questions: &[Question], num_questions: usize, seed: u32) -> Result<Vec<usize>> {
    if num_questions == 0 || num_questions > questions.len() {
        return Err(EvalError::Setting {
            setting: "num_questions",
            found: num_questions.to_string(),
            expected: "a number from 1 to the number of questions",
        });
    }
    let mut by_subject: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, question) in questions.iter().enumerate() {
        by_subject.entry(&question.subject).or_default().push(index);
    }
    // In u128, because a product of two counts need not fit into usize.
    let share = |size: usize| num_questions as u128 * size as u128;
    let all = questions.len() as u128;
    let mut quotas: BTreeMap<&str, u128> = BTreeMap::new();
    let mut remainders = Vec::with_capacity(by_subject.len());
    for (&subject, indices) in &by_subject {
        quotas.insert(subject, share(indices.len()) / all);
        remainders.push((share(indices.len()) % all, subject));
    }
    remainders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let left = num_questions as u128 - quotas.values().sum::<u128>();
    for (_, (_, subject)) in (0..left).zip(remainders) {
        *quotas.entry(subject).or_default() += 1;
    }
    let mut rng = seeded(seed);
    let mut selected = Vec::with_capacity(num_questions);
    for (subject, mut indices) in by_subject {
        shuffle(&mut indices, &mut rng);
        let quota = usize::try_from(quotas[subject]).expect("a quota is at most num_questions");
        selected.extend_from_slice(&indices[..quota]);
    }
    selected.sort_unstable();
    Ok(selected)
}

/// The description of a subject and its examples with their answers.
fn header(subject: &str, dev: &[Question], num_fewshot: usize) -> Result<String> {
    let examples: Vec<&Question> = dev.iter().filter(|example| example.subject == subject).collect();
    if examples.len() < num_fewshot {
        return Err(EvalError::TooFewExamples {
            subject: subject.to_owned(),
            expected: num_fewshot,
            found: examples.len(),
        });
    }
    let mut header =
        format!("The following are multiple choice questions (with answers) about {}.\n\n", subject.replace('_', " "));
    for example in &examples[..num_fewshot] {
        header.push_str(&ask(example));
        header.push_str(LETTERS[usize::from(example.answer)]);
        header.push_str("\n\n");
    }
    Ok(header)
}

fn ask(question: &Question) -> String {
    let [a, b, c, d] = &question.choices;
    let text = question.question.trim();
    format!("{text}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:")
}

fn check_answers(what: &'static str, questions: &[Question]) -> Result<()> {
    let outside = |question: &Question| usize::from(question.answer) >= LETTERS.len();
    match questions.iter().position(outside) {
        None => Ok(()),
        Some(entry) => Err(EvalError::OutOfRange {
            what,
            entry,
            index: usize::from(questions[entry].answer),
            count: LETTERS.len(),
        }),
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn question(subject: &str, answer: u8) -> Question {
        Question {
            subject: subject.to_owned(),
            question: format!("A question about {subject}?"),
            choices: ["w", "x", "y", "z"].map(str::to_owned),
            answer,
        }
    }

    #[test]
    fn highest_letter_is_the_answer_and_the_first_of_equals() {
        let questions = [question("a", 1), question("a", 2), question("b", 0), question("b", 1)];
        let log_likelihoods = [
            [-2.0, -1.0, -3.0, -4.0],
            [-1.0, -2.0, -3.0, -4.0],
            [-1.0, -1.0, -3.0, f64::NEG_INFINITY],
            [-1.0, -1.0, -3.0, -4.0],
        ];
        let scored = score(&questions, &log_likelihoods).unwrap();
        assert_eq!(scored.accuracy, 50.0);
        assert_eq!(scored.subjects[0].accuracy, 50.0);
        assert_eq!(scored.subjects[1].num_questions, 2);
    }

    #[test]
    fn a_slice_keeps_the_proportions() {
        let mut questions = vec![question("large", 0); 60];
        questions.extend(vec![question("small", 0); 25]);
        questions.extend(vec![question("tiny", 0); 15]);
        let slice = select_slice(&questions, 10, 42).unwrap();
        // 6, 2.5 and 1.5: the equal remainders go by name.
        let count = |subject: &str| slice.iter().filter(|&&i| questions[i].subject == subject).count();
        assert_eq!([count("large"), count("small"), count("tiny")], [6, 3, 1]);
        assert!(slice.is_sorted());
        assert_eq!(slice, select_slice(&questions, 10, 42).unwrap());
        assert_ne!(slice, select_slice(&questions, 10, 43).unwrap());
        let whole = select_slice(&questions, 100, 1).unwrap();
        assert_eq!(whole, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn bad_input_is_an_error() {
        let good = [question("a", 0)];
        assert!(matches!(prompts(&good, &[], 5), Err(EvalError::TooFewExamples { found: 0, .. })));
        assert!(prompts(&[question("a", 4)], &[], 0).is_err());
        assert!(score(&[], &[]).is_err());
        assert!(score(&good, &[]).is_err());
        assert!(score(&good, &[[f64::NAN, 0.0, 0.0, 0.0]]).is_err());
        assert!(select_slice(&good, 0, 1).is_err());
        assert!(select_slice(&good, 2, 1).is_err());
    }
}
