//! Retrieval and reranking as MTEB scores them: documents in the order of their cosine with the query.
//!
//! The figures are those of `trec_eval`, on the best 1,000 documents of each query: gains are the judged grades,
//! discounts `log2(rank + 1)`; documents of equal cosine stand in the order of their ids, last first.

use super::error::{EvalError, Result, check_vectors};
use rayon::prelude::*;
use std::collections::HashMap;

/// Documents that are ranked for a query.
const TOP_K: usize = 1000;

/// Means over the judged queries, in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetrievalScore {
    /// Normalised discounted cumulative gain of the first 10.
    pub ndcg_at_10: f64,
    /// Mean average precision of the first 10.
    pub map_at_10: f64,
    /// Mean average precision of all that are ranked.
    pub map_at_1000: f64,
    /// Share of the relevant documents among the first 10.
    pub recall_at_10: f64,
    /// Share of the relevant documents among the first 100.
    pub recall_at_100: f64,
    /// Mean reciprocal rank of the first relevant document, 0 beyond rank 10.
    pub mrr_at_10: f64,
    /// Judged queries.
    pub num_queries: usize,
}

/// Judgements of one query: grade by index of the document; a grade above 0 is relevant.
pub type Judgements = HashMap<usize, u32>;

/// The task without its texts.
#[derive(Debug)]
pub struct RetrievalTask<'a> {
    /// Ids of the documents, which decide between equal cosines.
    pub document_ids: &'a [String],
    /// For each query its judgements; queries without any relevant document are left out of the means.
    pub judgements: &'a [Judgements],
    /// For each query the documents that may be ranked; none: all of them.
    pub candidates: Option<&'a [Vec<usize>]>,
    /// For each query the document that is the query itself, where there is one: it is not ranked.
    pub itself: &'a [Option<usize>],
}

fn unit(vectors: &[impl AsRef<[f32]>]) -> Vec<Vec<f32>> {
    let scaled = |vector: &[f32]| {
        let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        vector.iter().map(|x| (f64::from(*x) * scale) as f32).collect()
    };
    vectors.iter().map(|vector| scaled(vector.as_ref())).collect()
}

/// Ranks the documents for each query and scores the ranking.
///
/// # Shapes
/// `queries`, `documents`: `[D]` each.
///
/// # Errors
/// When the vectors are ragged or not finite, parts of the task have other lengths, an index is out of range, or no
/// query has a relevant document.
pub fn score_retrieval<E: AsRef<[f32]> + Sync>(
    queries: &[E],
    documents: &[E],
    task: &RetrievalTask<'_>,
) -> Result<RetrievalScore> {
    let width = check_vectors("query vectors", queries)?;
    let found = check_vectors("document vectors", documents)?;
    if width != found {
        return Err(EvalError::Width { what: "document vectors", row: 0, expected: width, found });
    }
    let lengths = [
        ("document ids", task.document_ids.len(), documents.len()),
        ("judgements", task.judgements.len(), queries.len()),
        ("own documents", task.itself.len(), queries.len()),
        ("candidates", task.candidates.map_or(queries.len(), <[_]>::len), queries.len()),
    ];
    for (left, num_left, num_right) in lengths {
        super::error::check_lengths(left, num_left, "vectors", num_right)?;
    }
    for (entry, query) in task.judgements.iter().enumerate() {
        let listed = task.candidates.map_or(&[][..], |candidates| &candidates[entry]);
        if let Some(index) = query.keys().chain(listed).find(|index| **index >= documents.len()) {
            return Err(EvalError::OutOfRange { what: "judgements", entry, index: *index, count: documents.len() });
        }
    }
    let (queries, documents) = (unit(queries), unit(documents));
    let judged: Vec<usize> =
        (0..queries.len()).filter(|query| task.judgements[*query].values().any(|grade| *grade > 0)).collect();
    if judged.is_empty() {
        return Err(EvalError::TooFew { what: "queries with a relevant document", expected: 1, found: 0 });
    }
    let score = |query: &usize| {
        let cosine =
            |document: usize| queries[*query].iter().zip(&documents[document]).map(|(a, b)| a * b).sum::<f32>();
        let may = |document: &usize| task.itself[*query] != Some(*document);
        let mut ranked: Vec<(f32, usize)> = match task.candidates {
            Some(candidates) => candidates[*query].iter().copied().filter(may).map(|d| (cosine(d), d)).collect(),
            None => (0..documents.len()).filter(may).map(|d| (cosine(d), d)).collect(),
        };
        let before = |a: &(f32, usize), b: &(f32, usize)| {
            b.0.total_cmp(&a.0).then_with(|| task.document_ids[b.1].cmp(&task.document_ids[a.1]))
        };
        if ranked.len() > TOP_K {
            ranked.select_nth_unstable_by(TOP_K, before);
            ranked.truncate(TOP_K);
        }
        ranked.sort_unstable_by(before);
        let ranking: Vec<usize> = ranked.into_iter().map(|(_, document)| document).collect();
        of_query(&ranking, &task.judgements[*query])
    };
    let scores: Vec<[f64; 6]> = judged.par_iter().with_min_len(8).map(score).collect();
    let mean = |which: usize| scores.iter().map(|score| score[which]).sum::<f64>() / scores.len() as f64;
    Ok(RetrievalScore {
        ndcg_at_10: mean(0),
        map_at_10: mean(1),
        map_at_1000: mean(2),
        recall_at_10: mean(3),
        recall_at_100: mean(4),
        mrr_at_10: mean(5),
        num_queries: judged.len(),
    })
}

/// nDCG at 10, MAP at 10 and 1000, recall at 10 and 100, reciprocal rank at 10.
fn of_query(ranking: &[usize], judgements: &Judgements) -> [f64; 6] {
    let grade = |document: &usize| judgements.get(document).copied().unwrap_or(0);
    let dcg = |grades: &mut dyn Iterator<Item = u32>| -> f64 {
        grades.take(10).enumerate().map(|(rank, grade)| f64::from(grade) / (rank as f64 + 2.0).log2()).sum()
    };
    let mut ideal: Vec<u32> = judgements.values().copied().filter(|grade| *grade > 0).collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let num_relevant = ideal.len() as f64;
    let ndcg = dcg(&mut ranking.iter().map(grade)) / dcg(&mut ideal.into_iter());
    let (mut found, mut precisions) = (0.0, Vec::new());
    let mut first = None;
    for (rank, document) in ranking.iter().enumerate() {
        if grade(document) > 0 {
            found += 1.0;
            first = first.or(Some(rank + 1));
            precisions.push((rank, found / (rank as f64 + 1.0)));
        }
    }
    let average =
        |k: usize| precisions.iter().filter(|(rank, _)| *rank < k).map(|(_, p)| p).sum::<f64>() / num_relevant;
    let recall = |k: usize| precisions.iter().filter(|(rank, _)| *rank < k).count() as f64 / num_relevant;
    let reciprocal = first.filter(|rank| *rank <= 10).map_or(0.0, |rank| 1.0 / rank as f64);
    [ndcg, average(10), average(TOP_K), recall(10), recall(100), reciprocal]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let judgements = HashMap::from([(7, 2), (3, 1), (9, 0)]);
        let [ndcg, map_10, map_1000, recall_10, _, reciprocal] = of_query(&[9, 3, 7], &judgements);
        // Gains 0, 1, 2 at ranks 1 to 3 against 2, 1.
        let want = (1.0 / 3f64.log2() + 2.0 / 2.0) / (2.0 + 1.0 / 3f64.log2());
        assert!((ndcg - want).abs() < 1e-12);
        assert!((map_10 - (1.0 / 2.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12 && map_10 == map_1000);
        assert_eq!((recall_10, reciprocal), (1.0, 0.5));
    }

    #[test]
    fn the_query_itself_and_documents_outside_its_candidates_are_not_ranked() {
        let documents = [[1f32, 0.0], [0.9, 0.1], [0.0, 1.0]];
        let ids = ["a", "b", "c"].map(str::to_owned);
        let judgements = [HashMap::from([(1, 1)])];
        let score = |candidates: Option<&[Vec<usize>]>, itself: &[Option<usize>]| {
            let task = RetrievalTask { document_ids: &ids, judgements: &judgements, candidates, itself };
            score_retrieval(&[[1f32, 0.0]], &documents, &task).unwrap().mrr_at_10
        };
        assert_eq!(score(None, &[None]), 0.5);
        assert_eq!(score(None, &[Some(0)]), 1.0);
        let candidates = [vec![1, 2]];
        assert_eq!(score(Some(&candidates), &[None]), 1.0);
    }

    #[test]
    fn bad_input_is_an_error() {
        let ids = ["a".to_owned()];
        let none = [Judgements::new()];
        let task = |judgements| RetrievalTask { document_ids: &ids, judgements, candidates: None, itself: &[None] };
        assert!(score_retrieval(&[[1f32]], &[[1f32]], &task(&none)).is_err());
        let outside = [HashMap::from([(5, 1)])];
        assert!(score_retrieval(&[[1f32]], &[[1f32]], &task(&outside)).is_err());
        assert!(score_retrieval(&[vec![1f32]], &[vec![1f32, 0.0]], &task(&none)).is_err());
    }
}
