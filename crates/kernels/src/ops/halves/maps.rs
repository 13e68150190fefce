//! Maps of a half: how they run, and how gradients go back through them.

use super::super::add;
use super::super::fused::Map;
use super::super::linear::{LowRank, Weight, check_update, linear, linear_backward};
use super::super::rounded::{Back, Update, UpdateGradients, forward};
use super::ParameterGradients;
use crate::bf16::{Format, Rounded};
use crate::cpu::{tensor, with_values};
use crate::matrix::Matrix;
use candle_core::{Result, Tensor, TensorId, bail};
use std::sync::Arc;

/// Rows on their way into maps or back through them.
pub(super) enum Operand {
    Plain(Tensor),
    /// Once for all maps, where their products are of bf16 numbers on the CPU.
    Rounded(Rounded),
}

impl Operand {
    /// Rows `[T, ..]`, rounded or not.
    pub(super) fn new(x: &Tensor, rounds: bool) -> Result<Self> {
        let (t, width) = (x.dim(0)?, x.elem_count() / x.dim(0)?.max(1));
        if rounds {
            with_values(x, |x| Self::Rounded(Rounded::of(Format::Bf16, x, width)))
        } else {
            x.reshape((t, width)).map(Self::Plain)
        }
    }
}

/// A map outside the graph, and which tensors its update's gradients are of.
pub(super) struct Ready {
    weight: Arc<Matrix>,
    update: Option<(LowRank, [TensorId; 2])>,
    /// What A made of rounded rows.
    downs: Option<Rounded>,
}

impl Ready {
    pub(super) fn of(map: &Map<'_>) -> Result<Self> {
        let Weight::Frozen(weight) = map.weight else { bail!("halves: expected a frozen weight") };
        let detached = |update: &LowRank| {
            let ids = [update.a.id(), update.b.id()];
            (LowRank { a: update.a.detach(), b: update.b.detach(), ..update.clone() }, ids)
        };
        Ok(Self { weight: Arc::clone(weight), update: map.update.map(detached), downs: None })
    }

    fn update(&self) -> Option<&LowRank> {
        self.update.as_ref().map(|(update, _)| update)
    }

    pub(super) fn run(&mut self, x: &Operand) -> Result<Tensor> {
        match (x, self.weight.packed_bf16()) {
            (Operand::Plain(x), _) => linear(x, &Weight::Frozen(Arc::clone(&self.weight)), None, self.update()),
            (Operand::Rounded(x), Some(packed)) => {
                let (out, input) = (self.weight.rows(), self.weight.cols());
                if !x.has_rows_of(input) {
                    bail!("halves: rows of another width before {:?}", self.weight);
                }
                self.update().map_or(Ok(()), |update| check_update(update, (out, input), x.rows()))?;
                let found = match self.update().filter(|update| !update.rows.is_empty()) {
                    Some(update) => with_update(update, |update| forward(packed, Some(update), x))?,
                    None => forward(packed, None, x),
                };
                let y = tensor(found.y, (x.rows(), out))?;
                self.downs = found.downs;
                Ok(y)
            }
            (Operand::Rounded(_), None) => bail!("halves: rounded rows before {:?}", self.weight),
        }
    }
}

/// Runs `run` on the slices of an update on the CPU.
fn with_update<R>(update: &LowRank, run: impl FnOnce(Update<'_>) -> R) -> Result<R> {
    let (rank, scale, rows) = (update.a.dim(0)?, update.scale, &update.rows);
    with_values(&update.a, |a| with_values(&update.b, |b| run(Update { a, b, rank, scale, rows })))?
}

/// The gradient by the rows `x` that went through these maps, from that of what each gave; those of updates go to
/// `gradients`.
pub(super) fn back(maps: &[(&Ready, Operand)], x: &Operand, gradients: &ParameterGradients) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    let mut rounded = Vec::new();
    for (map, dy) in maps {
        match (x, dy) {
            (Operand::Plain(x), Operand::Plain(dy)) => {
                let (dx, found) = linear_backward(&map.weight, map.update(), x, dy)?;
                if let (Some((_, [a, b])), Some([da, db])) = (&map.update, found) {
                    gradients.add(*a, da)?;
                    gradients.add(*b, db)?;
                }
                sum = Some(match sum {
                    Some(sum) => add(&sum, &dx)?,
                    None => dx,
                });
            }
            (Operand::Rounded(x), Operand::Rounded(dy)) => {
                let (Some((update, [a, b])), Some(downs)) = (&map.update, &map.downs) else {
                    rounded.push(Back::plain(&map.weight, dy));
                    continue;
                };
                let (back, UpdateGradients { da, db }) =
                    with_update(update, |update| Back::adapted(&map.weight, (update, x, downs), dy))?;
                gradients.add(*a, tensor(da, update.a.shape())?)?;
                gradients.add(*b, tensor(db, update.b.shape())?)?;
                rounded.push(back);
            }
            _ => bail!("halves: rows rounded on one way only"),
        }
    }
    match (sum, maps.first()) {
        (Some(sum), _) => Ok(sum),
        (None, Some((map, Operand::Rounded(dy)))) => tensor(Back::by_rows(&rounded), (dy.rows(), map.weight.cols())),
        _ => bail!("halves: no maps"),
    }
}
