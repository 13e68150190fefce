//! Products of every unit of this machine against exact sums.

use super::*;
use crate::cpu::filled;
use rand::{Rng as _, SeedableRng as _};

/// Every unit of this machine against sums in f64 of the rounded numbers, on sizes with and without remainders,
/// over parts of the matrix, added or not.
#[test]
fn products_are_those_of_rounded_numbers() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let shapes = [(1, 32, 32), (3, 40, 17), (33, 96, 70), (160, 64, 100), (300, 576, 192)];
    for (t, k, n) in shapes {
        let mut numbers = |count| (0..count).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<f32>>();
        let (matrix, before) = (numbers(k * n), numbers(t * n));
        let packed = Packed::new(&matrix, (k, n), |i, j| i * n + j);
        for (summands, columns) in [(0..k, 0..n), (if k > 32 { 32 } else { 0 }..k, if n > 32 { 32 } else { 0 }..n)] {
            let x = numbers(t * summands.len());
            for units in Units::available(Format::Bf16) {
                for keep in [false, true] {
                    let mut y: Vec<_> = before.iter().copied().map(MaybeUninit::new).collect();
                    // SAFETY: `y` holds numbers.
                    unsafe { packed.product(units, &x, (summands.clone(), columns.clone()), &mut y, n, keep) };
                    for (i, x) in x.chunks(summands.len()).enumerate() {
                        for (c, j) in columns.clone().enumerate() {
                            let products = x.iter().zip(summands.clone());
                            let exact: f64 = products
                                .map(|(x, s)| f64::from(widen(round(*x))) * f64::from(widen(round(matrix[s * n + j]))))
                                .sum();
                            let want = exact + if keep { f64::from(before[i * n + c]) } else { 0.0 };
                            // SAFETY: `y` held numbers from the start.
                            let found = f64::from(unsafe { y[i * n + c].assume_init() });
                            // k summands below 1, each addition rounded
                            let tolerance = summands.len() as f64 * 6e-8 * (summands.len() as f64).sqrt();
                            assert!((found - want).abs() <= tolerance, "{units:?} {t} {k} {n}: {found} {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_in_company() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let (k, n, t) = (96, 64, 200);
    let mut numbers = |count| (0..count).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<f32>>();
    let (packed, x) = (Packed::new(&numbers(k * n), (k, n), |i, j| i * n + j), numbers(t * k));
    let product = |units, x: &[f32]| {
        let mut y = vec![MaybeUninit::new(0f32); x.len() / k * n];
        // SAFETY: `y` holds numbers.
        unsafe { packed.product(units, x, (0..k, 0..n), &mut y, n, false) };
        // SAFETY: as above.
        y.into_iter().map(|y| unsafe { y.assume_init() }.to_bits()).collect::<Vec<u32>>()
    };
    for units in Units::available(Format::Bf16).into_iter().filter(|units| *units != Units::Portable) {
        let all = product(units, &x);
        for row in [0, 1, 31, 32, 150, 199] {
            assert_eq!(product(units, &x[row * k..(row + 1) * k]), all[row * n..(row + 1) * n], "{units:?} {row}");
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_and_keeps_what_is_no_number() {
    for x in [0.0, -0.0, 1.0, 1.003_906_2, 1.003_906_4, 1.011_718_8, -3.3e38, 1e-40, f32::INFINITY, f32::NAN] {
        let want = half::bf16::from_f32(x);
        assert!(round(x) == want.to_bits() || (x.is_nan() && widen(round(x)).is_nan()), "{x}");
    }
    assert!(widen(round(f32::from_bits(0x7fff_ffff))).is_nan());
}

/// Integers of which sums of a few hundred products are exact in f32.
fn integers(rng: &mut rand_chacha::ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-9..=9) as f32).collect()
}

/// `a b`, `[m, k] x [k, n]`.
fn exact((m, k, n): (usize, usize, usize), a: &[f32], b: &[f32]) -> Vec<f32> {
    let output = |i: usize, j: usize| (0..k).map(|s| f64::from(a[i * k + s]) * f64::from(b[s * n + j])).sum::<f64>();
    (0..m * n).map(|at| output(at / n, at % n) as f32).collect()
}

/// Every unit, two products with summands of their own in one sum; thin ones too, as those of low-rank updates are.
#[test]
fn a_sum_of_products_has_all_terms() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    for (t, n, ks) in [(1, 17, [40, 3]), (33, 70, [8, 96]), (300, 64, [64, 16]), (70, 16, [33, 33])] {
        let xs = ks.map(|k| integers(&mut rng, t * k));
        let matrices = ks.map(|k| integers(&mut rng, k * n));
        let packed: [Packed; 2] = std::array::from_fn(|i| Packed::new(&matrices[i], (ks[i], n), |s, j| s * n + j));
        let rounded: [Rounded; 2] = std::array::from_fn(|i| Rounded::of(Format::Bf16, &xs[i], ks[i]));
        let terms: [Term<'_>; 2] = std::array::from_fn(|i| Term::new(&rounded[i], &packed[i]));
        let [first, second] = std::array::from_fn(|i| exact((t, ks[i], n), &xs[i], &matrices[i]));
        for units in Units::available(Format::Bf16) {
            // SAFETY: every column of every row is written, and nothing is read.
            let y = unsafe { filled(t * n, |y| sum_of_products(units, &terms, 0..n, (y, n), false)) };
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, first[i] + second[i], "{units:?} {t} {n} {ks:?}: number {i}");
            }
        }
    }
}

/// Every unit, sums over more rows than are packed at a time and over fewer.
#[test]
fn products_over_rows_are_those_of_the_transpose() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    for (t, m, n) in [(1, 2, 9), (31, 16, 40), (256, 5, 32), (300, 33, 70), (600, 16, 576)] {
        let (a, b) = (integers(&mut rng, m * t), integers(&mut rng, t * n));
        let (rows, rounded) = (Rounded::of(Format::Bf16, &a, t), Rounded::of(Format::Bf16, &b, n));
        let want = exact((m, t, n), &a, &b);
        for units in Units::available(Format::Bf16) {
            assert_eq!(transposed_product(units, &rows, (&rounded, n)), want, "{units:?} {t} {m} {n}");
        }
    }
}

/// Every unit with blocks: what a block has beyond the matrix and the rows is written, and zero.
#[test]
fn what_fills_a_block_up_is_zero() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (t, k, n) = (5, 40, 9);
    let packed = Packed::new(&integers(&mut rng, k * n), (k, n), |s, j| s * n + j);
    let x = Rounded::of(Format::Bf16, &integers(&mut rng, t * k), k);
    for units in Units::available(Format::Bf16).into_iter().filter(|units| *units != Units::Portable) {
        let mut y = vec![f32::NAN; BLOCK * BLOCK];
        let output = Output { first: y.as_mut_ptr(), stride: BLOCK };
        let (terms, rows) = ([Term::new(&x, &packed)], 0..BLOCK);
        // SAFETY: the output has all rows and columns, and nothing is kept.
        unsafe { Job { terms: &terms, rows, columns: 0..BLOCK, panels: 0..1, output, keep: false }.run(units) };
        for (at, y) in y.iter().enumerate() {
            let is_within = at / BLOCK < t && at % BLOCK < n;
            assert!(y.is_finite() && (is_within || *y == 0.0), "{units:?}: row {}, column {}", at / BLOCK, at % BLOCK);
        }
    }
}

/// What is written row by row is rounded as what lies there already.
#[test]
fn written_rows_are_rounded_ones() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for (t, width) in [(1, 3), (40, 70), (33, 64)] {
        let mut numbers = || (0..t * width).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<f32>>();
        let (x, y) = (numbers(), numbers());
        let lines = |rounded: Rounded| rounded.lines.into_iter().flat_map(|line| line.0).collect::<Vec<u16>>();
        let [of_x, of_y] = [&x, &y].map(|x| lines(Rounded::of(Format::Bf16, x, width)));
        let row = |row: usize| row * width..(row + 1) * width;
        assert_eq!(lines(Rounded::written(t, width, |at, to| to.copy_from_slice(&x[row(at)]))), of_x);
        let pair = Rounded::written_pair(t, width, |at, [first, second]| {
            first.copy_from_slice(&x[row(at)]);
            second.copy_from_slice(&y[row(at)]);
        });
        assert_eq!(pair.map(lines), [of_x, of_y]);
    }
}

/// Every block once, whatever the groups.
#[test]
fn places_are_all_blocks_once() {
    for (rows, panels, bytes) in
        [(1, 0..1, 64), (256, 2..9, 1 << 19), (257, 0..49, 36 << 10), (600, 3..52, 1 << 21), (600, 4..4, 64)]
    {
        let mut found: Vec<_> = job::places(32..32 + rows, panels.clone(), bytes).collect();
        found.sort_unstable();
        let all: Vec<_> =
            panels.flat_map(|panel| (32..32 + rows).step_by(BLOCK).map(move |row| (panel, row))).collect();
        assert_eq!(found, all);
    }
}

/// Rows in groups of panels, shared out among any number of threads: the bits of each row alone.
#[test]
fn many_rows_have_the_bits_of_few() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let (k, n) = (576, 1537);
    let mut numbers = |count| (0..count).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<f32>>();
    let (values, x) = (numbers(k * n), numbers(2080 * k));
    let packed = [Packed::new(&values, (k, n), |i, j| i * n + j), Packed::int8(&values, (k, n))];
    let product = |units, packed: &Packed, x: &[f32], columns: Range<usize>, threads| {
        let (rounded, width) = (Rounded::of(packed.format(), x, k), columns.len());
        let run = |y: &mut [MaybeUninit<f32>]| {
            // SAFETY: nothing is kept.
            unsafe { shared_sum(units, &[Term::new(&rounded, packed)], columns, (y, width, false), threads) };
        };
        // SAFETY: a product writes all its outputs.
        unsafe { filled(x.len() / k * width, run) }
    };
    for packed in &packed {
        for units in Units::available(packed.format()).into_iter().filter(|units| *units != Units::Portable) {
            for columns in [0..n, 640..1504] {
                let width = columns.len();
                let alone = [0, 255, 256, 599, 2079]
                    .map(|row| (row, product(units, packed, &x[row * k..(row + 1) * k], columns.clone(), 1)));
                for (t, threads) in [(257, 2), (600, 1), (600, 3), (600, 16), (2080, 1), (2080, 2)] {
                    let all = product(units, packed, &x[..t * k], columns.clone(), threads);
                    for (row, alone) in alone.iter().filter(|(row, _)| *row < t) {
                        assert!(all[row * width..][..width] == **alone, "{units:?} {t} {threads} {columns:?} {row}");
                    }
                }
            }
        }
    }
}
