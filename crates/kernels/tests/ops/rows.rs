//! What a token's result may depend on: its own row, and nothing of the rows beside it.

use crate::support::*;
use kernels::ops::{self, AttentionMask, LowRank, Weight, reference};
use kernels::{StorageType, Tensor};
use std::sync::Arc;

fn row(tensor: &Tensor, t: usize) -> Vec<f32> {
    values(&tensor.narrow(0, t, 1).unwrap())
}

#[test]
fn an_update_changes_its_own_rows_alone() {
    let mut rng = generator(21);
    for storage_type in [StorageType::F32, StorageType::Q4_1] {
        for t in [1, 4, 7] {
            let weight = Weight::Frozen(Arc::new(matrix(&mut rng, storage_type, 21, 64)));
            let x = tensor(&uniform(&mut rng, t * 64), [t, 64]);
            let (a, b) = (tensor(&uniform(&mut rng, 128), [2, 64]), tensor(&uniform(&mut rng, 42), [21, 2]));
            let plain = ops::linear(&x, &weight, None, None).unwrap();
            for rows in [vec![], vec![0], vec![t as u32 - 1]] {
                let update = LowRank { a: a.clone(), b: b.clone(), scale: 1.0, rows: Arc::new(rows.clone().into()) };
                let updated = ops::linear(&x, &weight, None, Some(&update)).unwrap();
                for i in 0..t {
                    assert_eq!(
                        row(&updated, i) != row(&plain, i),
                        rows.contains(&(i as u32)),
                        "{t} rows, row {i} of {rows:?}"
                    );
                }
            }
        }
    }
}

/// Up to eight rows take a path whose sums have one order: bit for bit. More rows may take the blocked product, which
/// chooses its blocks by the number of rows: twice the worst case of a sum of n terms, n roundings of their magnitudes.
#[test]
fn a_row_of_linear_does_not_depend_on_the_other_rows() {
    let mut rng = generator(22);
    for storage_type in STORAGE_TYPES {
        for (out, input) in [(37, 256), (300, 768)] {
            let matrix = Arc::new(matrix(&mut rng, storage_type, out, input));
            let numbers = uniform(&mut rng, 70 * input);
            let magnitudes = |values: &[f32]| values.iter().map(|x| f64::from(x.abs())).collect::<Vec<_>>();
            let own = magnitudes(&numbers[2 * input..3 * input]);
            let scale = reference::linear(&own, &magnitudes(&matrix.to_f32()), input, None, None);
            let (x, weight) = (tensor(&numbers, [70, input]), Weight::Frozen(matrix));
            let run = |from: usize, t: usize| ops::linear(&x.narrow(0, from, t).unwrap(), &weight, None, None).unwrap();
            let alone = run(2, 1);
            for t in 2..9 {
                let from = 3usize.saturating_sub(t);
                let found = row(&run(from, t), 2 - from);
                assert_same(&found, &row(&alone, 0), &format!("{storage_type:?}, {t} rows"));
            }
            for t in [9, 33, 70] {
                let together = run(0, t).narrow(0, 2, 1).unwrap();
                assert_close(&together, &wide(&values(&alone)), |i| 2.0 * input as f64 * ROUNDING * scale[i]);
            }
        }
    }
}

#[test]
fn attention_of_a_segment_is_the_same_alone_and_packed() {
    let mut rng = generator(23);
    let (heads, kv_heads, h, lengths) = (4, 2, 10, [1usize, 37, 5]);
    let total: usize = lengths.iter().sum();
    let q = tensor(&uniform(&mut rng, total * heads * h), [total, heads, h]);
    let k = tensor(&uniform(&mut rng, total * kv_heads * h), [total, kv_heads, h]);
    let v = tensor(&uniform(&mut rng, total * kv_heads * h), [total, kv_heads, h]);
    let mut packed = AttentionMask::new();
    let mut first = 0;
    for length in lengths {
        (0..length).for_each(|i| packed.push([(first, first + i as u32 + 1)]).unwrap());
        first += length as u32;
    }
    let together = ops::attention(&q, &k, &v, None, &spec(packed, h, Some(4.0))).unwrap();
    let mut first = 0;
    for length in lengths {
        let part = |x: &Tensor| x.narrow(0, first, length).unwrap();
        let alone = spec(causal_mask(&mut rng, 0, length, false), h, Some(4.0));
        let segment = ops::attention(&part(&q), &part(&k), &part(&v), None, &alone).unwrap();
        // One token more on a cache of those before it is the same sum again.
        let before = |x: &Tensor| values(&x.narrow(0, first, length - 1).unwrap());
        let cache = Arc::new(layer(&before(&k), &before(&v), [kv_heads, h]));
        let last = |x: &Tensor| x.narrow(0, first + length - 1, 1).unwrap();
        let step = spec(causal_mask(&mut rng, length - 1, 1, false), h, Some(4.0));
        let step = ops::attention(&last(&q), &last(&k), &last(&v), Some(&cache), &step).unwrap();
        for i in 0..length {
            assert_same(&row(&segment, i), &row(&together, first + i), "packed");
        }
        assert_same(&row(&step, 0), &row(&segment, length - 1), "one more");
        first += length;
    }
}

/// Windows, holes, rows side by side and more heads to a key than are computed together.
#[test]
fn attention_of_a_query_is_the_same_in_any_block() {
    let mut rng = generator(24);
    let windows = |t: usize| (0..t as u32).map(|i| vec![(i.saturating_sub(5), i + 1)]).collect::<Vec<_>>();
    let packed = |t: usize| (0..t as u32).map(|i| vec![(i / 7 * 7, i + 1)]).collect::<Vec<_>>();
    for (heads, kv_heads, h) in [(6, 2, 64), (50, 1, 20)] {
        let t = 40;
        let holes = causal_mask(&mut rng, 0, t, true);
        let holes = (0..t).map(|query| holes.intervals(query).to_vec()).collect();
        let q = tensor(&uniform(&mut rng, t * heads * h), [t, heads, h]);
        let keys = uniform(&mut rng, t * kv_heads * h);
        let cache = layer(&keys, &uniform(&mut rng, t * kv_heads * h), [kv_heads, h]);
        for queries in [windows(t), packed(t), holes] {
            let attend = |q: &Tensor, queries: &[Vec<(u32, u32)>]| {
                let mut mask = AttentionMask::new();
                queries.iter().for_each(|keys| mask.push(keys.iter().copied()).unwrap());
                ops::attention_cached(q, &cache, kv_heads, &spec(mask, h, None)).unwrap()
            };
            let together = attend(&q, &queries);
            for i in 0..t {
                let alone = attend(&q.narrow(0, i, 1).unwrap(), &queries[i..=i]);
                assert_same(&row(&together, i), &row(&alone, 0), &format!("{heads} heads, query {i} of {queries:?}"));
            }
        }
    }
}

/// Pages that lie anywhere, and not in their order: a query sums its keys in its own.
#[test]
fn attention_of_a_row_is_the_same_wherever_its_pages_lie() {
    const PAGE: usize = 8;
    let mut rng = generator(25);
    let (heads, kv_heads, h, t) = (6, 2, 64, 4 * PAGE + 3);
    let width = kv_heads * h;
    let q = tensor(&uniform(&mut rng, t * heads * h), [t, heads, h]);
    let (keys, numbers) = (uniform(&mut rng, t * width), uniform(&mut rng, t * width));
    let attend = |pages: [usize; 5], queries: std::ops::Range<usize>, others: bool| {
        let scattered = |numbers: &[f32]| {
            let mut places = vec![0.5; 9 * PAGE * width];
            for (page, numbers) in pages.iter().zip(numbers.chunks(PAGE * width)) {
                places[page * PAGE * width..][..numbers.len()].copy_from_slice(numbers);
            }
            places
        };
        let cache = layer(&scattered(&keys), &scattered(&numbers), [kv_heads, h]);
        let mut mask = AttentionMask::new();
        let seen = |query: usize| {
            let page = |(i, page): (usize, &usize)| {
                (i * PAGE <= query)
                    .then(|| ((page * PAGE) as u32, (page * PAGE + PAGE.min(query + 1 - i * PAGE)) as u32))
            };
            pages.iter().enumerate().filter_map(page).collect::<Vec<_>>()
        };
        queries.clone().for_each(|query| mask.push(seen(query)).unwrap());
        let mut part = q.narrow(0, queries.start, queries.len()).unwrap();
        if others {
            // Another row that begins with the same page.
            mask.push([
                ((pages[0] * PAGE) as u32, (pages[0] * PAGE + PAGE) as u32),
                (8 * PAGE as u32, 8 * PAGE as u32 + 3),
            ])
            .unwrap();
            part = Tensor::cat(&[&part, &q.narrow(0, 0, 1).unwrap()], 0).unwrap();
        }
        ops::attention_cached(&part, &cache, kv_heads, &spec(mask, h, None)).unwrap()
    };
    let want = attend([0, 1, 2, 3, 4], 0..t, false);
    for pages in [[4, 3, 2, 1, 0], [5, 6, 0, 1, 3], [1, 7, 2, 3, 0], [7, 2, 3, 4, 5]] {
        for (queries, others) in [(0..t, false), (3..29, true), (t - 1..t, true), (9..10, false)] {
            let found = attend(pages, queries.clone(), others);
            for (i, query) in queries.enumerate() {
                assert_same(&row(&found, i), &row(&want, query), &format!("pages {pages:?}, query {query}"));
            }
        }
    }
}
