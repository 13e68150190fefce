//! Maps of a half: how they run, and how gradients go back through them.

use super::super::add;
use super::super::fused::Map;
use super::super::linear::{LowRank, Weight, check_update, linear, linear_backward};
use super::super::rms_norm::RmsNorm;
use super::super::rounded::{Back, Update, UpdateGradients, forward};
use super::super::swiglu::{Activation, Gated, gated};
use super::ParameterGradients;
use crate::bf16::{Format, Rounded};
use crate::cpu::{tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::matrix::Matrix;
use candle_core::{Result, Tensor, TensorId, bail};
use std::sync::Arc;

/// Rows on their way into maps or back through them.
pub(super) enum Operand {
    Plain(Tensor),
    /// Once for all maps, where their products are of bf16 numbers on the CPU.
    Rounded(Rounded),
    /// The same on a GPU.
    #[cfg(feature = "cuda")]
    OnGpu(cuda::RoundedRows),
}

impl Operand {
    /// Rows `[T, ..]`, rounded or not.
    pub(super) fn new(x: &Tensor, rounds: bool) -> Result<Self> {
        let (t, width) = (x.dim(0)?, x.elem_count() / x.dim(0)?.max(1));
        if !rounds {
            return x.reshape((t, width)).map(Self::Plain);
        }
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            let x = cuda::Read::of(x)?;
            // SAFETY: the tensor has so many numbers.
            return unsafe { cuda::RoundedRows::of(gpu, x.pointer, (t, width)).map(Self::OnGpu) };
        }
        with_values(x, |x| Self::Rounded(Rounded::of(Format::Bf16, x, width)))
    }

    /// The norm of each row of `x` `[T, D]`, rounded.
    pub(super) fn normed(x: &Tensor, weight: &Tensor, op: &RmsNorm) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            let (shape, x, w) = (x.dims2()?, cuda::Read::of(x)?, cuda::Read::of(weight)?);
            if weight.elem_count() != shape.1 {
                bail!("halves: a norm of {} numbers on rows of {}", weight.elem_count(), shape.1);
            }
            let constants = (op.eps, op.offset);
            // SAFETY: the tensor has so many numbers, and the weight one for each column.
            let found = unsafe { cuda::RoundedRows::normed(gpu, (x.pointer, w.pointer), shape, constants) };
            return found.map(Self::OnGpu);
        }
        with_values(x, |x| with_values(weight, |w| Self::Rounded(op.rounded(x, w))))?
    }

    /// `act(gate) * up` of rows `[T, F]`, rounded or not.
    pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation, rounds: bool) -> Result<Self> {
        if !rounds || gate.dims() != up.dims() {
            return gated(gate, up, activation).map(Self::Plain);
        }
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(gate)? {
            let (shape, gate, up) = (gate.dims2()?, cuda::Read::of(gate)?, cuda::Read::of(up)?);
            let pointers = (gate.pointer, up.pointer);
            // SAFETY: both are of this shape.
            let found = unsafe { cuda::RoundedRows::gated(gpu, pointers, shape, activation.number()) };
            return found.map(Self::OnGpu);
        }
        Gated(activation).rounded(gate, up).map(Self::Rounded)
    }

    /// Gradients of gate and up from that of what [`Self::gated`] gave.
    pub(super) fn gated_back(
        [gate, up]: [&Tensor; 2],
        dy: &Tensor,
        activation: Activation,
        rounds: bool,
    ) -> Result<[Self; 2]> {
        if !rounds {
            return Ok(Gated(activation).gradients(gate, up, dy)?.map(Self::Plain));
        }
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(gate)? {
            let (shape, [gate, up, dy]) = (gate.dims2()?, [gate, up, dy].map(cuda::Read::of));
            let pointers = (gate?.pointer, up?.pointer, dy?.pointer);
            // SAFETY: a gradient has the shape of what it is of.
            let found = unsafe { cuda::RoundedRows::gated_backward(gpu, pointers, shape, activation.number()) };
            return Ok(found?.map(Self::OnGpu));
        }
        Ok(Gated(activation).rounded_gradients(gate, up, dy)?.map(Self::Rounded))
    }

    pub(super) fn is_rounded(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

/// A map outside the graph, and which tensors its update's gradients are of.
struct Ready {
    weight: Arc<Matrix>,
    update: Option<(LowRank, [TensorId; 2])>,
    /// What A made of rounded rows.
    downs: Option<Rounded>,
}

impl Ready {
    fn of(map: &Map<'_>) -> Result<Self> {
        let Weight::Frozen(weight) = map.weight else { bail!("halves: expected a frozen weight") };
        let detached = |update: &LowRank| {
            let ids = [update.a.id(), update.b.id()];
            (LowRank { a: update.a.detach(), b: update.b.detach(), ..update.clone() }, ids)
        };
        Ok(Self { weight: Arc::clone(weight), update: map.update.map(detached), downs: None })
    }

    /// The update, where it acts on any row.
    fn update(&self) -> Option<&LowRank> {
        self.update.as_ref().map(|(update, _)| update).filter(|update| !update.rows.is_empty())
    }

    /// Refuses rows of this shape that do not fit.
    fn check(&self, (t, width): (usize, usize)) -> Result<()> {
        let (out, input) = (self.weight.rows(), self.weight.cols());
        if width != input {
            bail!("halves: rows of {width} numbers before {:?}", self.weight);
        }
        self.update().map_or(Ok(()), |update| check_update(update, (out, input), t))
    }

    /// What the map makes of rounded rows on the CPU.
    fn run_rounded(&mut self, x: &Rounded) -> Result<Tensor> {
        let Some(packed) = self.weight.packed_bf16() else { bail!("halves: rounded rows before {:?}", self.weight) };
        let (out, input) = (self.weight.rows(), self.weight.cols());
        if !x.has_rows_of(input) {
            bail!("halves: rows of another width before {:?}", self.weight);
        }
        self.check((x.rows(), input))?;
        let found = match self.update() {
            Some(update) => with_update(update, |update| forward(packed, Some(update), x))?,
            None => forward(packed, None, x),
        };
        let y = tensor(found.y, (x.rows(), out))?;
        self.downs = found.downs;
        Ok(y)
    }

    /// The way back through the map on the CPU; gradients of the update go to `gradients`.
    fn back_rounded<'a>(&'a self, x: &'a Rounded, dy: &'a Rounded, gradients: &ParameterGradients) -> Result<Back<'a>> {
        let (Some((update, [a, b])), Some(downs)) = (&self.update, &self.downs) else {
            return Ok(Back::plain(&self.weight, dy));
        };
        let (back, UpdateGradients { da, db }) =
            with_update(update, |update| Back::adapted(&self.weight, (update, x, downs), dy))?;
        gradients.add(*a, tensor(da, update.a.shape())?)?;
        gradients.add(*b, tensor(db, update.b.shape())?)?;
        Ok(back)
    }

    /// The gradient by rows in f32; those of the update go to `gradients`.
    fn back_plain(&self, x: &Tensor, dy: &Tensor, gradients: &ParameterGradients) -> Result<Tensor> {
        let (dx, found) = linear_backward(&self.weight, self.update(), x, dy)?;
        if let (Some((_, [a, b])), Some([da, db])) = (&self.update, found) {
            gradients.add(*a, da)?;
            gradients.add(*b, db)?;
        }
        Ok(dx)
    }
}

/// Runs `run` on the slices of an update on the CPU.
fn with_update<R>(update: &LowRank, run: impl FnOnce(Update<'_>) -> R) -> Result<R> {
    let (rank, scale, rows) = (update.a.dim(0)?, update.scale, &update.rows);
    with_values(&update.a, |a| with_values(&update.b, |b| run(Update { a, b, rank, scale, rows })))?
}

/// Maps that read the same rows.
pub(super) struct Maps {
    maps: Vec<Ready>,
    #[cfg(feature = "cuda")]
    group: Option<cuda::Group>,
}

impl Maps {
    pub(super) fn of(maps: &[Map<'_>]) -> Result<Self> {
        Ok(Self {
            maps: maps.iter().map(Ready::of).collect::<Result<_>>()?,
            #[cfg(feature = "cuda")]
            group: None,
        })
    }

    /// What each of N maps makes of rows, `[T, out]`.
    pub(super) fn run<const N: usize>(&mut self, x: &Operand) -> Result<[Tensor; N]> {
        let plain = |map: &Ready, x| linear(x, &Weight::Frozen(Arc::clone(&map.weight)), None, map.update());
        let found: Vec<Tensor> = match x {
            Operand::Plain(x) => self.maps.iter().map(|map| plain(map, x)).collect::<Result<_>>()?,
            Operand::Rounded(x) => self.maps.iter_mut().map(|map| map.run_rounded(x)).collect::<Result<_>>()?,
            #[cfg(feature = "cuda")]
            Operand::OnGpu(x) => self.run_on_gpu(x)?,
        };
        found.try_into().or_else(|found: Vec<_>| bail!("halves: {} maps, expected {N}", found.len()))
    }

    /// The gradient by rows `x`, from that of what each map made of them; those of updates go to `gradients`.
    pub(super) fn back(&self, dys: &[Operand], x: &Operand, gradients: &ParameterGradients) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Operand::OnGpu(x) = x {
            return self.back_on_gpu(dys, x, gradients);
        }
        let mut sum: Option<Tensor> = None;
        let mut rounded = Vec::new();
        for (map, dy) in self.maps.iter().zip(dys).rev() {
            match (x, dy) {
                (Operand::Plain(x), Operand::Plain(dy)) => {
                    let dx = map.back_plain(x, dy, gradients)?;
                    sum = Some(match sum {
                        Some(sum) => add(&sum, &dx)?,
                        None => dx,
                    });
                }
                (Operand::Rounded(x), Operand::Rounded(dy)) => rounded.push(map.back_rounded(x, dy, gradients)?),
                _ => bail!("halves: rows rounded on one way only"),
            }
        }
        match (sum, self.maps.first(), dys.first()) {
            (Some(sum), ..) => Ok(sum),
            (None, Some(map), Some(Operand::Rounded(dy))) => {
                tensor(Back::by_rows(&rounded), (dy.rows(), map.weight.cols()))
            }
            _ => bail!("halves: no maps"),
        }
    }
}

#[cfg(feature = "cuda")]
impl Maps {
    /// Runs `run` on the maps with addresses on the GPU.
    fn with_pointers<R>(&self, gpu: &cuda::Gpu, run: impl FnOnce(&[cuda::Map<'_>]) -> Result<R>) -> Result<R> {
        // Kept until all has been asked for: in the order of the stream nobody takes their memory before.
        let mut reads = Vec::new();
        let mut maps = Vec::new();
        for map in &self.maps {
            let mut update = None;
            if let Some(LowRank { a, b, scale, rows }) = map.update() {
                let (a_at, b_at) = (cuda::Read::of(a)?, cuda::Read::of(b)?);
                let (rank, rows) = (a.dim(0)?, rows.on(gpu)?);
                update = Some(cuda::Update { a: a_at.pointer, b: b_at.pointer, rank, scale: *scale, rows });
                reads.extend([a_at, b_at]);
            }
            let dims = (map.weight.rows(), map.weight.cols());
            maps.push(cuda::Map { weight: map.weight.on(gpu)?, dims, update });
        }
        run(&maps)
    }

    fn run_on_gpu(&mut self, x: &cuda::RoundedRows) -> Result<Vec<Tensor>> {
        let (gpu, (t, _)) = (x.gpu(), x.shape());
        self.maps.iter().try_for_each(|map| map.check(x.shape()))?;
        // SAFETY: the maps have been checked, and all updates act on the same rows where rows are rounded.
        let (ys, group) = self.with_pointers(gpu, |maps| unsafe { cuda::group_forward(gpu, maps, x) })?;
        self.group = group;
        Ok(self.maps.iter().zip(ys).map(|(map, y)| gpu.tensor(y, (t, map.weight.rows()))).collect())
    }

    fn back_on_gpu(&self, dys: &[Operand], x: &cuda::RoundedRows, gradients: &ParameterGradients) -> Result<Tensor> {
        let gpu = x.gpu();
        let of_map = |(map, dy): (&Ready, &Operand)| match dy {
            Operand::OnGpu(dy) if dy.shape() == (x.shape().0, map.weight.rows()) => Ok(()),
            _ => bail!("halves: a gradient that is not of what {:?} gave", map.weight),
        };
        self.maps.iter().zip(dys).try_for_each(of_map)?;
        let dys: Vec<&cuda::RoundedRows> =
            dys.iter().filter_map(|dy| if let Operand::OnGpu(dy) = dy { Some(dy) } else { None }).collect();
        let group = self.group.as_ref();
        // SAFETY: gradients have the shapes of what they are of, and `group` is what the forward pass gave.
        let found = self.with_pointers(gpu, |maps| unsafe { cuda::group_backward(gpu, (maps, group), x, &dys) })?;
        if let Some((da, dbs)) = found.updates {
            let updates = || self.maps.iter().filter_map(|map| map.update().zip(map.update.as_ref()));
            let ranks = updates().map(|(update, _)| update.a.dim(0)).sum::<Result<usize>>()?;
            let (da, mut from) = (gpu.tensor(da, (ranks, x.shape().1)), 0);
            for ((update, (_, [a, b])), db) in updates().zip(dbs) {
                let rank = update.a.dim(0)?;
                gradients.add(*a, da.narrow(0, from, rank)?)?;
                gradients.add(*b, gpu.tensor(db, update.b.shape()))?;
                from += rank;
            }
        }
        Ok(gpu.tensor(found.dx, x.shape()))
    }
}
