//! Wrong arguments are errors, never panics, and say what was wrong.

use crate::support::*;
use kernels::ops::{self, Activation, AttentionMask, Head, LowRank, RopeTable, Weight};
use kernels::{KvLayer, Matrix, Result, Tensor};
use std::sync::Arc;

fn zeros<const R: usize>(shape: [usize; R]) -> Tensor {
    tensor(&vec![0.0; shape.iter().product()], shape)
}

fn frozen(rows: usize, cols: usize) -> Weight {
    Weight::Frozen(Arc::new(Matrix::from_f32(vec![0.0; rows * cols], rows, cols).unwrap()))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let message = result.unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not name {part:?}");
    }
}

#[test]
fn elementwise_ops_refuse_other_shapes() {
    refused(ops::rms_norm(&zeros([2, 3]), &zeros([4]), 1e-6, 0.0), &["rms_norm", "[2, 3]"]);
    refused(ops::gated(&zeros([2, 3]), &zeros([3, 2]), Activation::Silu), &["gated", "[2, 3]", "[3, 2]"]);
    refused(ops::add(&zeros([2, 3]), &zeros([3])), &["add", "[2, 3]", "[3]"]);
    refused(ops::dropout(&zeros([2, 3]), Arc::new(vec![1.0; 5])), &["dropout", "5"]);
    let table = Arc::new(RopeTable::new(&[0, 1], &[1.0, 0.5]));
    assert!(ops::rope(&zeros([2, 3, 4]), &table).is_ok());
    refused(ops::rope(&zeros([3, 3, 4]), &table), &["rope", "[3, 3, 4]"]);
    refused(ops::rope(&zeros([2, 3, 6]), &table), &["rope", "[2, 3, 6]"]);
    assert!(ops::rope(&zeros([2, 4]), &table).is_err());
}

#[test]
fn linear_refuses_other_shapes() {
    for weight in [frozen(3, 4), Weight::Dense(zeros([3, 4]))] {
        refused(ops::linear(&zeros([2, 5]), &weight, None, None), &["linear", "4", "[2, 5]"]);
        assert!(ops::linear(&zeros([4]), &weight, None, None).is_err());
        for bias in [zeros([2]), zeros([1])] {
            refused(ops::linear(&zeros([2, 4]), &weight, Some(&bias), None), &["linear", "bias"]);
        }
        assert_eq!(ops::linear(&zeros([0, 4]), &weight, None, None).unwrap().dims(), [0, 3]);
    }
    assert!(ops::linear(&zeros([2, 4]), &Weight::Dense(zeros([4])), None, None).is_err());
    let update = |a, b, row| LowRank { a, b, scale: 1.0, rows: Arc::new(vec![row].into()) };
    for wrong in [
        update(zeros([2, 5]), zeros([3, 2]), 0),
        update(zeros([2, 4]), zeros([3, 1]), 0),
        update(zeros([2, 4]), zeros([2, 3]), 0),
        update(zeros([2, 4]), zeros([3, 2]), 2),
    ] {
        refused(ops::linear(&zeros([2, 4]), &frozen(3, 4), None, Some(&wrong)), &["linear", "update"]);
    }
    let unsorted = LowRank { rows: Arc::new(vec![1, 0].into()), ..update(zeros([2, 4]), zeros([3, 2]), 0) };
    refused(ops::linear(&zeros([2, 4]), &frozen(3, 4), None, Some(&unsorted)), &["linear", "update"]);
    let fine = update(zeros([2, 4]), zeros([3, 2]), 1);
    assert!(ops::linear(&zeros([2, 4]), &frozen(3, 4), None, Some(&fine)).is_ok());
    refused(ops::linear(&zeros([2, 4]), &Weight::Dense(zeros([3, 4])), None, Some(&fine)), &["frozen"]);
}

#[test]
fn attention_refuses_other_shapes_and_keys_beyond_the_last() {
    let spec = |ends: &[u32]| {
        let mut mask = AttentionMask::new();
        ends.iter().for_each(|end| mask.push([(0, *end)]).unwrap());
        spec(mask, 4, None)
    };
    let run = |q: [usize; 3], k: [usize; 3], v: [usize; 3], ends: &[u32]| {
        ops::attention(&zeros(q), &zeros(k), &zeros(v), None, &spec(ends))
    };
    let kv = [2, 2, 4];
    assert!(run([2, 4, 4], kv, kv, &[1, 2]).is_ok());
    refused(run([2, 4, 4], kv, [2, 2, 5], &[1, 2]), &["attention", "[2, 2, 4]", "[2, 2, 5]"]);
    refused(run([2, 3, 4], kv, kv, &[1, 2]), &["attention"]);
    refused(run([2, 4, 5], kv, kv, &[1, 2]), &["attention"]);
    refused(run([3, 4, 4], kv, kv, &[1, 2]), &["attention"]);
    refused(run([2, 4, 4], kv, kv, &[1, 3]), &["attention"]);
    // A cache of another width: 3 heads of 4 where the new keys have 2.
    let narrow = Arc::new(layer(&[0.0; 12], &[0.0; 12], [3, 4]));
    refused(ops::attention(&zeros([2, 4, 4]), &zeros(kv), &zeros(kv), Some(&narrow), &spec(&[1, 2])), &["attention"]);
    refused(ops::attention_cached(&zeros([1, 4, 4]), &narrow, 2, &spec(&[1])), &["attention"]);
    refused(ops::attention_cached(&zeros([1, 3, 4]), &narrow, 3, &spec(&[2])), &["attention"]);
    refused(ops::attention_cached(&zeros([1, 3, 4]), &narrow, 0, &spec(&[1])), &["attention"]);
    assert!(ops::attention_cached(&zeros([1, 3, 4]), &narrow, 3, &spec(&[1])).is_ok());
}

#[test]
fn a_cache_takes_tokens_of_its_width_and_forgets_the_last() {
    let mut cache = KvLayer::new(6);
    refused(cache.append(&zeros([2, 2, 2]), &zeros([2, 2, 2])), &["kv_cache", "6"]);
    refused(cache.append(&zeros([2, 2, 3]), &zeros([1, 2, 3])), &["kv_cache"]);
    assert_eq!(cache.num_tokens(), 0);
    cache.append(&zeros([3, 2, 3]), &zeros([3, 2, 3])).unwrap();
    assert_eq!((cache.num_tokens(), cache.num_bytes()), (3, 3 * 6 * 2 * 4));
    assert_eq!(cache.slice(1..3).unwrap().num_tokens(), 2);
    cache.truncate(9);
    assert_eq!(cache.num_tokens(), 3);
    cache.truncate(1);
    assert_eq!(cache.num_tokens(), 1);
}

#[test]
fn ids_labels_and_places_outside_are_refused() {
    for weight in [frozen(3, 4), Weight::Dense(zeros([3, 4]))] {
        refused(ops::embed_tokens(&weight, &[0, 3], &device()), &["3", "vocabulary of 3"]);
        refused(ops::embed_tokens(&weight, &[u32::MAX], &device()), &["4294967295"]);
        let head = Head { weight, softcap: None };
        refused(ops::cross_entropy(&zeros([2, 4]), &head, &[0, 3]), &["label 3", "3"]);
        refused(ops::cross_entropy(&zeros([2, 4]), &head, &[0]), &["cross_entropy"]);
        refused(ops::cross_entropy(&zeros([2, 5]), &head, &[0, 1]), &["cross_entropy"]);
        assert_eq!(ops::cross_entropy(&zeros([0, 4]), &head, &[]).unwrap().dims(), [0]);
    }
    refused(ops::embed_inputs(&zeros([2, 4]), &zeros([1, 4]), vec![(2, 0)]), &["embed_inputs"]);
    refused(ops::embed_inputs(&zeros([2, 4]), &zeros([1, 4]), vec![(0, 1)]), &["embed_inputs"]);
    refused(ops::embed_inputs(&zeros([2, 4]), &zeros([1, 3]), vec![]), &["embed_inputs"]);
    refused(ops::pool(&zeros([2, 4]), vec![vec![(0, 1.0)], vec![(2, 1.0)]]), &["pool", "2"]);
}

#[test]
fn masks_refuse_queries_without_keys_and_overlapping_intervals() {
    let mut mask = AttentionMask::new();
    refused(mask.push([]), &["query 0", "no key"]);
    refused(mask.push([(3, 3), (5, 4)]), &["query 0", "no key"]);
    mask.push([(0, 1)]).unwrap();
    refused(mask.push([(2, 4), (3, 5)]), &["query 1", "overlapping"]);
    refused(mask.push([(4, 6), (0, 2), (2, 5)]), &["query 1", "overlapping"]);
    refused(mask.push([(4, 6), (0, 2), (1, 2)]), &["query 1", "overlapping"]);
    // What was refused leaves no trace in the next query.
    mask.push([(7, 8)]).unwrap();
    assert_eq!(mask.intervals(1), [(7, 8)]);
}
