//! Halves of layers within a graph, each with a backward of its own.
//!
//! The graph then has one edge for all of them in place of a dozen for each, so that gradients of what lies between are
//! not first cleared, then added to, and gradients of the low-rank updates are kept aside as they are found.

use super::add::Add;
use super::attention::{Attention, attention_to_go_back};
use super::fused::{Map, Norm};
use super::linear::Weight;
use super::rms_norm::{RmsNorm, rms_norm};
use super::rope::{Rope, RopeTable, rope_in_place};
use super::swiglu::Activation;
use super::{AttentionSpec, add};
use crate::KvLayer;
use crate::cpu::{tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp1, CustomOp2 as _, Layout, Result, Shape, Storage, Tensor, TensorId, bail};
use maps::{Maps, Operand};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

mod maps;

/// Gradients of trained tensors that lie within operations, found while a graph is walked back.
#[derive(Debug, Default)]
pub struct ParameterGradients(Mutex<HashMap<TensorId, Tensor>>);

impl ParameterGradients {
    /// The sum of all gradients that were found for this tensor, which is then forgotten.
    pub fn take(&self, of: &Tensor) -> Option<Tensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&of.id())
    }

    fn add(&self, of: TensorId, gradient: Tensor) -> Result<()> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match kept.remove(&of) {
            Some(sum) => add(&sum, &gradient)?,
            None => gradient,
        };
        kept.insert(of, sum);
        Ok(())
    }
}

/// Whether halves of this module can stand for the operations: `x` leads to a variable, the weights are frozen, and updates
/// are variables themselves.
pub fn can_halve(x: &Tensor, norm: Norm<'_>, maps: &[Map<'_>]) -> bool {
    // A gradient is kept for a variable; what an update were computed from would get none.
    let is_known = |x: &Tensor| x.is_variable() || !x.track_op();
    let is_plain = |map: &Map<'_>| {
        let known = map.update.is_none_or(|update| is_known(&update.a) && is_known(&update.b));
        matches!(map.weight, Weight::Frozen(_)) && known
    };
    x.track_op() && !norm.weight.track_op() && maps.iter().all(is_plain)
}

/// Whether rows before these maps are rounded once for all of them: on a GPU where updates act on the same rows.
fn rounds(x: &Tensor, maps: &[Map<'_>]) -> bool {
    let mut rows = maps.iter().filter_map(|map| map.update).map(|update| &update.rows);
    let first = rows.next();
    let mut same = || first.is_none_or(|first| rows.all(|rows| Arc::ptr_eq(rows, first) || rows == first));
    maps.iter().all(|map| map.weight.is_bf16()) && (x.device().is_cpu() || same())
}

/// A norm before a half.
struct ReadyNorm {
    op: RmsNorm,
    weight: Tensor,
}

impl ReadyNorm {
    fn of(norm: Norm<'_>) -> Self {
        Self { op: RmsNorm { eps: norm.eps, offset: norm.offset }, weight: norm.weight.clone() }
    }

    fn run(&self, x: &Tensor, rounds: bool) -> Result<Operand> {
        if rounds {
            return Operand::normed(x, &self.weight, &self.op);
        }
        rms_norm(x, &self.weight, self.op.eps, self.op.offset).map(Operand::Plain)
    }

    /// The gradient by `x` of the norm and of what goes past it: `d` on its way back beside `d_normed`.
    fn back(&self, x: &Tensor, d_normed: &Tensor, d: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            return self.op.gradient_onto_on(gpu, (x, &self.weight), d_normed, d);
        }
        let run = |x: &[f32], w: &[f32], dy: &[f32], d: &[f32]| self.op.gradient_onto((x, w), dy, d);
        let sum = with_values(x, |x| {
            with_values(&self.weight, |w| with_values(d_normed, |dy| with_values(d, |d| run(x, w, dy, d))))
        })???;
        tensor(sum?, x.shape())
    }
}

trait Back: Send + Sync {
    /// The gradient by `x` of `x` and what a half adds to it, from that of the sum.
    fn back(&self, x: &Tensor, d: &Tensor) -> Result<Tensor>;
}

/// Halves of layers, each on the sum of the one before: one edge of the graph together.
pub struct Halves {
    /// Within the graph.
    from: Tensor,
    /// What the next half runs on is the sum of these, outside the graph.
    x: Tensor,
    y: Option<Tensor>,
    halves: Vec<(Tensor, Box<dyn Back>)>,
    gradients: Arc<ParameterGradients>,
}

impl Halves {
    /// None yet, on `x` `[T, D]`; gradients of updates will go to `gradients`.
    ///
    /// # Errors
    /// When memory for a copy of rows that do not lie one after the other cannot be had.
    pub fn new(x: &Tensor, gradients: &Arc<ParameterGradients>) -> Result<Self> {
        let from = x.contiguous()?;
        Ok(Self { x: from.detach(), from, y: None, halves: Vec::new(), gradients: Arc::clone(gradients) })
    }

    /// What the next half runs on.
    fn next(&mut self) -> Result<Tensor> {
        if let Some(y) = self.y.take() {
            self.x = add(&self.x, &y)?;
        }
        Ok(self.x.clone())
    }

    fn push(&mut self, y: Tensor, half: impl Back + 'static) {
        self.halves.push((self.x.clone(), Box::new(half)));
        self.y = Some(y);
    }

    /// The sum, in the graph.
    ///
    /// # Errors
    /// When the sum cannot be taken.
    pub fn end(self) -> Result<Tensor> {
        let Some(y) = self.y else { return Ok(self.from) };
        if self.x.dims() != y.dims() {
            bail!("halves: the sum of {:?} and {:?}", self.x.shape(), y.shape());
        }
        let sum = Mutex::new(Some([self.x, y.contiguous()?]));
        self.from.apply_op1(Edge { sum, halves: self.halves })
    }
}

/// Leads the gradient back through halves.
struct Edge {
    /// Whose sum it is, until that is taken: no backward pass reads them.
    sum: Mutex<Option<[Tensor; 2]>>,
    halves: Vec<(Tensor, Box<dyn Back>)>,
}

impl Edge {
    fn take(&self) -> Result<[Tensor; 2]> {
        let sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner).take();
        sum.map_or_else(|| bail!("halves: a sum is taken once"), Ok)
    }
}

impl CustomOp1 for Edge {
    fn name(&self) -> &'static str {
        "halves of layers"
    }

    fn cpu_fwd(&self, _s: &CpuStorage, _l: &Layout) -> Result<(CpuStorage, Shape)> {
        let [x, y] = self.take()?;
        let ((x, x_layout), (y, y_layout)) = (x.storage_and_layout(), y.storage_and_layout());
        match (&*x, &*y) {
            (Storage::Cpu(x), Storage::Cpu(y)) => Add.cpu_fwd(x, x_layout, y, y_layout),
            _ => bail!("halves: operands on two devices"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _s: &candle_core::CudaStorage, _l: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let [x, y] = self.take()?;
        let ((x, x_layout), (y, y_layout)) = (x.storage_and_layout(), y.storage_and_layout());
        match (&*x, &*y) {
            (Storage::Cuda(x), Storage::Cuda(y)) => Add.cuda_fwd(x, x_layout, y, y_layout),
            _ => bail!("halves: operands on two devices"),
        }
    }

    fn bwd(&self, _x: &Tensor, _sum: &Tensor, d: &Tensor) -> Result<Option<Tensor>> {
        let mut d = d.detach();
        for (x, half) in self.halves.iter().rev() {
            d = half.back(x, &d)?;
        }
        Ok(Some(d))
    }
}

/// What attention of a half needs beside its maps.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// H.
    pub head_dim: usize,
    /// Rotation of queries and keys, where the layer has positions.
    pub rope: Option<&'a Arc<RopeTable>>,
    /// Keys and values of earlier positions, without gradient.
    pub past: Option<&'a Arc<KvLayer>>,
    /// Who sees whom.
    pub spec: &'a AttentionSpec,
}

struct AttentionHalf {
    norm: ReadyNorm,
    /// Queries, keys and values.
    inner: Maps,
    outer: Maps,
    rope: Option<Arc<RopeTable>>,
    attention: Attention,
    /// The normed rows; queries, keys and values as attention takes them; what it gives, and as rows.
    normed: Operand,
    heads: [Tensor; 3],
    found: Tensor,
    rows: Operand,
    gradients: Arc<ParameterGradients>,
}

impl Halves {
    /// `x + attention(norm(x))` with its output map.
    ///
    /// # Shapes
    /// `x: [T, D]`, maps of queries, keys, values and output.
    ///
    /// # Errors
    /// When shapes disagree, or [`can_halve`] would say no.
    pub fn attention(&mut self, norm: Norm<'_>, maps: &[Map<'_>; 4], heads: Heads<'_>) -> Result<()> {
        let (x, norm) = (self.next()?, ReadyNorm::of(norm));
        let t = x.dim(0)?;
        let (mut inner, mut outer, rounds) = (Maps::of(&maps[..3])?, Maps::of(&maps[3..])?, rounds(&x, maps));
        let normed = norm.run(&x, rounds)?;
        let [q, k, v] = inner.run(&normed)?;
        let of_heads = |x: Tensor| x.reshape((t, (), heads.head_dim));
        let turned = |x: Tensor| match heads.rope {
            Some(table) => rope_in_place(x, table),
            None => Ok(x),
        };
        let [q, k, v] = [turned(of_heads(q)?)?, turned(of_heads(k)?)?, of_heads(v)?];
        let (found, attention) = attention_to_go_back([&q, &k, &v], heads.past, heads.spec)?;
        let rows = Operand::new(&found, rounds)?;
        let [y] = outer.run(&rows)?;
        let (rope, gradients, heads) = (heads.rope.cloned(), Arc::clone(&self.gradients), [q, k, v]);
        self.push(y, AttentionHalf { norm, inner, outer, rope, attention, normed, heads, found, rows, gradients });
        Ok(())
    }
}

impl Back for AttentionHalf {
    fn back(&self, x: &Tensor, d: &Tensor) -> Result<Tensor> {
        let [q, k, v] = &self.heads;
        let rounds = self.normed.is_rounded();
        let d_found = self.outer.back(&[Operand::new(d, rounds)?], &self.rows, &self.gradients)?;
        let d_found = d_found.reshape(self.found.shape())?;
        let found = self.attention.backward([q, k, v], (&self.found, &d_found), [true; 3])?;
        let [Some(dq), Some(dk), Some(dv)] = found else { bail!("halves: no gradient of attention") };
        let turned_back = |x: &Tensor, d: Tensor| match &self.rope {
            Some(table) => Rope(Arc::clone(table)).bwd(x, x, &d)?.map_or_else(|| bail!("halves: no rotation"), Ok),
            None => Ok(d),
        };
        let [dq, dk] = [turned_back(q, dq)?, turned_back(k, dk)?];
        let through = [&dq, &dk, &dv].into_iter().map(|d| Operand::new(d, rounds)).collect::<Result<Vec<_>>>()?;
        self.norm.back(x, &self.inner.back(&through, &self.normed, &self.gradients)?, d)
    }
}

struct FeedForwardHalf {
    norm: ReadyNorm,
    /// Gate and up.
    inner: Maps,
    outer: Maps,
    activation: Activation,
    normed: Operand,
    gate: Tensor,
    up: Tensor,
    hidden: Operand,
    gradients: Arc<ParameterGradients>,
}

impl Halves {
    /// `x + (act(norm(x) G^T) * norm(x) U^T) D^T`.
    ///
    /// # Shapes
    /// `x: [T, D]`, maps gate and up `[F, D]`, down `[D, F]`.
    ///
    /// # Errors
    /// When shapes disagree, or [`can_halve`] would say no.
    pub fn feed_forward(&mut self, norm: Norm<'_>, maps: &[Map<'_>; 3], activation: Activation) -> Result<()> {
        let (x, norm) = (self.next()?, ReadyNorm::of(norm));
        let (mut inner, mut outer, rounds) = (Maps::of(&maps[..2])?, Maps::of(&maps[2..])?, rounds(&x, maps));
        let normed = norm.run(&x, rounds)?;
        let [gate, up] = inner.run(&normed)?;
        let hidden = Operand::gated(&gate, &up, activation, rounds)?;
        let [y] = outer.run(&hidden)?;
        let gradients = Arc::clone(&self.gradients);
        self.push(y, FeedForwardHalf { norm, inner, outer, activation, normed, gate, up, hidden, gradients });
        Ok(())
    }
}

impl Back for FeedForwardHalf {
    fn back(&self, x: &Tensor, d: &Tensor) -> Result<Tensor> {
        let rounds = self.normed.is_rounded();
        let d_hidden = self.outer.back(&[Operand::new(d, rounds)?], &self.hidden, &self.gradients)?;
        let through = Operand::gated_back([&self.gate, &self.up], &d_hidden, self.activation, rounds)?;
        self.norm.back(x, &self.inner.back(&through, &self.normed, &self.gradients)?, d)
    }
}
