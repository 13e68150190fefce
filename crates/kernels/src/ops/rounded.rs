//! Frozen maps packed as bf16 with their low-rank updates in training, on the CPU: all products are of bf16 numbers with f32
//! sums, and rows are rounded once for all of them.

use crate::bf16::{BLOCK, Format, Packed, Rounded, Term, Units, sum_of_products, transposed_product};
use crate::cpu::filled;
use crate::matrix::Matrix;

/// A low-rank update on slices.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    /// `[r, in]`.
    pub(super) a: &'a [f32],
    /// `[out, r]`.
    pub(super) b: &'a [f32],
    pub(super) rank: usize,
    pub(super) scale: f32,
    /// Ascending.
    pub(super) rows: &'a [u32],
}

/// Rows of r numbers, scaled where the update acts and nothing elsewhere, `[t, r]` and `[r, t]`.
struct Inner {
    rows: Rounded,
    columns: Rounded,
}

/// Of a map's forward pass.
pub(super) struct Forward {
    pub(super) y: Vec<f32>,
    /// `scale A x` of each row, `[r, t]`, where there is an update.
    pub(super) downs: Option<Rounded>,
}

/// Gradients of an update.
pub(super) struct UpdateGradients {
    pub(super) da: Vec<f32>,
    pub(super) db: Vec<f32>,
}

/// What the gradient by the rows of a map comes from.
pub(super) struct Back<'a> {
    weight: &'a Matrix,
    dy: &'a Rounded,
    /// `scale B^T dy` of each row, and A.
    update: Option<(Rounded, Packed)>,
}

/// The terms' sum, `[t, n]`.
fn summed(terms: &[Term<'_>], (t, n): (usize, usize)) -> Vec<f32> {
    // SAFETY: every column of every row is written; nothing is kept, so that nothing is read.
    unsafe { filled(t * n, |y| sum_of_products(Units::best(Format::Bf16), terms, 0..n, (y, n), false)) }
}

/// `[n, m]` from `[m, n]`.
fn transpose(values: &[f32], (m, n): (usize, usize)) -> Vec<f32> {
    let mut transposed = vec![0f32; m * n];
    for (i, row) in values.chunks(n).enumerate() {
        row.iter().enumerate().for_each(|(j, value)| transposed[j * m + i] = *value);
    }
    transposed
}

impl Update<'_> {
    /// Of rows by a matrix `[_, r]`.
    fn inner(&self, x: &Rounded, matrix: &Packed) -> Inner {
        // Columns up to whole blocks, which are written as they are.
        let (t, width) = (x.rows(), self.rank.next_multiple_of(BLOCK));
        let mut values = summed(&[Term::new(x, matrix)], (t, width));
        let mut rows = self.rows.iter().copied().peekable();
        for (row, values) in values.chunks_mut(width).enumerate() {
            if rows.next_if_eq(&(row as u32)).is_some() {
                values.iter_mut().for_each(|value| *value *= self.scale);
            } else {
                values.fill(0.0);
            }
        }
        let columns = transpose(&values, (t, width));
        Inner {
            rows: Rounded::of(Format::Bf16, &values, width),
            columns: Rounded::of(Format::Bf16, &columns[..self.rank * t], t),
        }
    }

    /// `scale A x`.
    fn downs(&self, x: &Rounded) -> Inner {
        let input = self.a.len() / self.rank;
        let mut a = Packed::empty();
        a.fill_columns((input, self.rank), |r| &self.a[r * input..(r + 1) * input]);
        self.inner(x, &a)
    }

    /// `scale A x` of each row, `[r, t]`.
    pub(super) fn columns_of_downs(&self, x: &Rounded) -> Rounded {
        self.downs(x).columns
    }

    /// `scale B^T dy`.
    fn downs_back(&self, dy: &Rounded) -> Inner {
        let (out, r) = (self.b.len() / self.rank, self.rank);
        let mut b = Packed::empty();
        b.fill_rows((out, r), |i| &self.b[i * r..(i + 1) * r]);
        self.inner(dy, &b)
    }
}

/// `y = x W^T`, plus the update at its rows.
pub(super) fn forward(packed: &Packed, update: Option<Update<'_>>, x: &Rounded) -> Forward {
    let (t, out) = (x.rows(), packed.columns());
    let map = Term::new(x, packed);
    let Some(update) = update else { return Forward { y: summed(&[map], (t, out)), downs: None } };
    let Inner { rows, columns } = update.downs(x);
    let mut b = Packed::empty();
    b.fill_columns((update.rank, out), |i| &update.b[i * update.rank..(i + 1) * update.rank]);
    Forward { y: summed(&[map, Term::new(&rows, &b)], (t, out)), downs: Some(columns) }
}

impl<'a> Back<'a> {
    /// Of a map without an update, from the gradient `dy`.
    pub(super) fn plain(weight: &'a Matrix, dy: &'a Rounded) -> Self {
        Self { weight, dy, update: None }
    }

    /// Of a map with an update, which comes with the rows `x` and what A made of them.
    pub(super) fn adapted(
        weight: &'a Matrix,
        (update, x, downs): (Update<'_>, &Rounded, &Rounded),
        dy: &'a Rounded,
    ) -> (Self, UpdateGradients) {
        let (input, out, rank) = (weight.cols(), weight.rows(), update.rank);
        let Inner { rows, columns } = update.downs_back(dy);
        let db = transpose(&transposed_product(Units::best(Format::Bf16), downs, (dy, out)), (rank, out));
        let da = transposed_product(Units::best(Format::Bf16), &columns, (x, input));
        let mut a = Packed::empty();
        a.fill_rows((rank, input), |r| &update.a[r * input..(r + 1) * input]);
        (Self { weight, dy, update: Some((rows, a)) }, UpdateGradients { da, db })
    }

    /// The gradient by rows that went through these maps.
    pub(super) fn by_rows(maps: &[Self]) -> Vec<f32> {
        let mut terms = Vec::new();
        for map in maps {
            terms.push(Term::new(map.dy, map.weight.packed_backward()));
            terms.extend(map.update.as_ref().map(|(downs, a)| Term::new(downs, a)));
        }
        let shape = maps.first().map_or((0, 0), |map| (map.dy.rows(), map.weight.cols()));
        summed(&terms, shape)
    }
}

/// A map's product with rows that are bf16 already, as they are behind a norm and in training. For benchmarks.
#[doc(hidden)]
pub struct RoundedProduct<'a> {
    x: Rounded,
    packed: &'a Packed,
}

impl<'a> RoundedProduct<'a> {
    /// `x: [T, in]`; `None` where the matrix is not packed as bf16.
    pub fn new(x: &[f32], matrix: &'a Matrix) -> Option<Self> {
        let packed = matrix.packed_bf16()?;
        Some(Self { x: Rounded::of(Format::Bf16, x, matrix.cols()), packed })
    }

    /// `[T, out]`, as f32.
    pub fn run(&self) -> Vec<f32> {
        forward(self.packed, None, &self.x).y
    }
}
