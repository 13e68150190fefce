//! Rows in pages of a pool: what they give is what they give alone, and pages are neither lost nor given twice.

use crate::common::{close_to_each_other, decoder, golden, random_ids, tiny, values};
use lapidary::model::{Decoder, ForwardOptions, Kv, KvPool, KvRow, PAGE_TOKENS, PoolPass, Segment};
use layout::TokenId;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;

/// Sums of f32 in another order.
const ROUNDING: f64 = 1e-5;

fn alone(decoder: &Decoder, ids: &[TokenId]) -> Vec<f32> {
    values(&decoder.forward(&Segment::plain_rows([ids]), Kv::None, ForwardOptions::default()).unwrap())
}

/// Runs the next tokens of some rows in one pass; the hidden states of each.
fn run(decoder: &Decoder, pool: &mut KvPool, rows: &mut [(&mut KvRow, &[TokenId])]) -> Vec<Vec<f32>> {
    let next: Vec<(&[TokenId], u32)> = rows.iter().map(|(row, ids)| (*ids, row.num_tokens() as u32)).collect();
    let segment = Segment::next_of_rows(next.iter().copied());
    for (row, ids) in rows.iter_mut() {
        assert!(pool.reserve(row, ids.len()));
    }
    let mut held: Vec<KvRow> = rows.iter_mut().map(|(row, _)| std::mem::take(*row)).collect();
    let kv = Kv::Pool(PoolPass { pool, rows: &mut held });
    let mut hidden = values(&decoder.forward(&segment, kv, ForwardOptions::default()).unwrap());
    rows.iter_mut().zip(held).for_each(|((row, _), held)| **row = held);
    let width = decoder.config().hidden_size;
    let mut each = Vec::new();
    for (ids, _) in next {
        let rest = hidden.split_off(ids.len() * width);
        each.push(std::mem::replace(&mut hidden, rest));
    }
    each
}

/// Rows that grow in turn, by parts of all sizes, so that their pages lie among each other's; with windows too.
#[test]
fn rows_among_others_are_rows_alone() {
    for decoder in [tiny(), decoder(&golden("families").join("gemma3"), "config.json")] {
        let mut pool = decoder.new_pool(24);
        let most = decoder.config().max_position_embeddings;
        let texts = [90, 33, 140].map(|length| {
            let length = most.min(length);
            random_ids(length, length as u64).iter().map(|id| id % decoder.config().vocab_size as u32).collect()
        });
        let mut rows: [KvRow; 3] = Default::default();
        let mut found: [Vec<f32>; 3] = Default::default();
        for round in 0..20 {
            let mut now: Vec<(usize, (&mut KvRow, &[TokenId]))> = Vec::new();
            for (i, (row, text)) in rows.iter_mut().zip(&texts).enumerate() {
                let text: &Vec<TokenId> = text;
                let done = row.num_tokens();
                let count = [1, 7, 31, 20][(round + i) % 4].min(text.len() - done);
                if count > 0 {
                    now.push((i, (row, &text[done..done + count])));
                }
            }
            let (numbers, mut now): (Vec<usize>, Vec<_>) = now.into_iter().unzip();
            if now.is_empty() {
                break;
            }
            for (i, hidden) in numbers.into_iter().zip(run(&decoder, &mut pool, &mut now)) {
                found[i].extend(hidden);
            }
        }
        for (text, found) in texts.iter().zip(&found) {
            close_to_each_other(found, &alone(&decoder, text), ROUNDING, "alone");
        }
        rows.into_iter().for_each(|row| pool.release(row));
        assert_eq!((pool.num_available(), pool.num_held()), (24, 0));
    }
}

#[test]
fn a_beginning_that_has_run_is_shared() {
    let decoder = tiny();
    let mut pool = decoder.new_pool(12);
    let text: Vec<TokenId> = random_ids(100, 5).iter().map(|id| id % decoder.config().vocab_size as u32).collect();
    let mut first = pool.begin(&text);
    assert_eq!(first.num_tokens(), 0);
    run(&decoder, &mut pool, &mut [(&mut first, &text)]);
    pool.share(&mut first, &text);
    // Beside the first, and after it has ended; another end, and the very same text, of which one token has to run.
    let mut other = text[..70].to_vec();
    other.extend([1, 2, 3]);
    let mut beside = pool.begin(&other);
    assert_eq!(beside.num_tokens(), 2 * PAGE_TOKENS);
    assert_eq!(pool.num_held(), 4);
    let hidden = run(&decoder, &mut pool, &mut [(&mut beside, &other[64..])]);
    let want = alone(&decoder, &other);
    close_to_each_other(&hidden[0], &want[want.len() - hidden[0].len()..], ROUNDING, "beside");
    pool.release(first);
    let mut after = pool.begin(&text[..96]);
    assert_eq!(after.num_tokens(), 2 * PAGE_TOKENS, "the last token has to run");
    let hidden = run(&decoder, &mut pool, &mut [(&mut after, &text[64..96])]);
    let want = alone(&decoder, &text[..96]);
    close_to_each_other(&hidden[0], &want[want.len() - hidden[0].len()..], ROUNDING, "after");
    // Another first token: nothing is shared, though all other pages hold the same.
    let mut different = text.clone();
    different[0] ^= 1;
    assert_eq!(pool.begin(&different).num_tokens(), 0);
    pool.release(after);
    pool.release(beside);
    pool.clear();
    assert_eq!((pool.num_available(), pool.begin(&text).num_tokens()), (12, 0));
}

#[test]
fn a_row_without_pages_is_refused() {
    let decoder = tiny();
    let mut pool = decoder.new_pool(2);
    let mut row = KvRow::default();
    assert!(!pool.reserve(&mut row, 65) && pool.reserve(&mut row, 64));
    assert!(!pool.reserve(&mut KvRow::default(), 1));
    let ids = [1; 65];
    let mut rows = [row];
    let kv = Kv::Pool(PoolPass { pool: &mut pool, rows: &mut rows });
    let error = decoder.forward(&Segment::plain_rows([&ids[..]]), kv, ForwardOptions::default()).unwrap_err();
    assert!(error.to_string().contains("with 2 pages"), "{error}");
}

/// A walk of rows that begin, grow, are found again and end: what is held and what is available are all pages, and rows hold
/// the same page where they begin with the same tokens alone.
#[test]
fn no_page_is_lost_or_given_twice() {
    let decoder = tiny();
    let mut rng = layout::Rng::seed_from_u64(9);
    let mut pool = decoder.new_pool(20);
    let mut rows: BTreeMap<u32, (KvRow, Vec<TokenId>)> = BTreeMap::new();
    for step in 0..400 {
        let number = rng.random_range(0..6);
        if let Some((mut row, mut ids)) = rows.remove(&number) {
            let more: Vec<TokenId> = (0..rng.random_range(1..40)).map(|_| rng.random_range(1..3)).collect();
            if rng.random_range(0..3) == 0 || !pool.reserve(&mut row, more.len()) {
                pool.release(row);
            } else {
                let hidden = run(&decoder, &mut pool, &mut [(&mut row, &more)]);
                ids.extend(more);
                pool.share(&mut row, &ids);
                if step % 20 == 0 {
                    let want = alone(&decoder, &ids);
                    close_to_each_other(&hidden[0], &want[want.len() - hidden[0].len()..], ROUNDING, "walk");
                }
                rows.insert(number, (row, ids));
            }
        } else {
            // Many begin the same.
            let ids: Vec<TokenId> = (0..70).map(|i| if i < 40 { 1 } else { 1 + (i + number) % 2 }).collect();
            let row = pool.begin(&ids);
            let ids = ids[..row.num_tokens()].to_vec();
            rows.insert(number, (row, ids));
        }
        assert_eq!(pool.num_held() + pool.num_available(), 20);
    }
    rows.into_values().for_each(|(row, _)| pool.release(row));
    assert_eq!(pool.num_available(), 20);
    pool.clear();
    let mut all = KvRow::default();
    assert!(pool.reserve(&mut all, 20 * PAGE_TOKENS), "every page can be had");
}
