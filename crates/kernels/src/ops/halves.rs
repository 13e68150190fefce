//! Halves of a layer within a graph, each one operation with a backward of its own.
//!
//! The graph then has one edge for each half in place of a dozen, so that gradients of what lies between are not first
//! cleared, then added to, and gradients of the low-rank updates are kept aside as they are found.

use super::add::Add;
use super::attention::{Attention, attention_to_go_back};
use super::fused::{Map, Norm};
use super::linear::{LowRank, Weight, linear, linear_backward};
use super::rms_norm::{RmsNorm, rms_norm};
use super::rope::{Rope, RopeTable, rope};
use super::swiglu::{Activation, Gated, gated};
use super::{AttentionSpec, add};
use crate::KvLayer;
use crate::matrix::Matrix;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, TensorId, bail};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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

/// A map outside the graph, and which tensors its update's gradients are of.
struct Ready {
    weight: Arc<Matrix>,
    update: Option<(LowRank, [TensorId; 2])>,
}

impl Ready {
    fn of(map: &Map<'_>) -> Result<Self> {
        let Weight::Frozen(weight) = map.weight else { bail!("halves: expected a frozen weight") };
        let detached = |update: &LowRank| {
            let ids = [update.a.id(), update.b.id()];
            (LowRank { a: update.a.detach(), b: update.b.detach(), ..update.clone() }, ids)
        };
        Ok(Self { weight: Arc::clone(weight), update: map.update.map(detached) })
    }

    fn update(&self) -> Option<&LowRank> {
        self.update.as_ref().map(|(update, _)| update)
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &Weight::Frozen(Arc::clone(&self.weight)), None, self.update())
    }

    /// The gradient by `x`; those of the update go to `gradients`.
    fn back(&self, x: &Tensor, dy: &Tensor, gradients: &ParameterGradients) -> Result<Tensor> {
        let (dx, found) = linear_backward(&self.weight, self.update(), x, dy)?;
        if let (Some((_, [a, b])), Some([da, db])) = (&self.update, found) {
            gradients.add(*a, da)?;
            gradients.add(*b, db)?;
        }
        Ok(dx)
    }
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

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.op.eps, self.op.offset)
    }

    /// The gradient by `x` of the norm and of what goes past it: `d` on its way back beside `d_normed`.
    fn back(&self, x: &Tensor, d_normed: &Tensor, d: &Tensor) -> Result<Tensor> {
        let (dx, _) = self.op.gradients((x, &self.weight), d_normed, (true, false))?;
        let Some(dx) = dx else { bail!("halves: no gradient of a norm") };
        add(d, &dx)
    }
}

/// `x + y`, where `y` was made of `x` outside the graph, and `H` leads its gradient back.
struct Half<H> {
    half: H,
    /// Until the sum is taken: no backward pass reads it.
    y: Mutex<Option<Tensor>>,
}

trait Back: Send + Sync {
    /// The gradient by `x` of `x + y`, from that of the sum.
    fn back(&self, x: &Tensor, d: &Tensor) -> Result<Tensor>;
}

impl<H: Back + 'static> Half<H> {
    fn sum(x: &Tensor, y: Tensor, half: H) -> Result<Tensor> {
        x.contiguous()?.apply_op1(Self { half, y: Mutex::new(Some(y)) })
    }

    fn take_y(&self) -> Result<Tensor> {
        let y = self.y.lock().unwrap_or_else(PoisonError::into_inner).take();
        y.map_or_else(|| bail!("halves: a sum is taken once"), |y| y.contiguous())
    }
}

impl<H: Back + 'static> CustomOp1 for Half<H> {
    fn name(&self) -> &'static str {
        "half of a layer"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.take_y()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(y) => Add.cpu_fwd(s, l, y, layout),
            _ => bail!("halves: operands on two devices"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &candle_core::CudaStorage, l: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let y = self.take_y()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(y) => Add.cuda_fwd(s, l, y, layout),
            _ => bail!("halves: operands on two devices"),
        }
    }

    fn bwd(&self, x: &Tensor, _sum: &Tensor, d: &Tensor) -> Result<Option<Tensor>> {
        self.half.back(&x.detach(), &d.detach()).map(Some)
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
    /// Queries, keys, values, output.
    maps: [Ready; 4],
    rope: Option<Arc<RopeTable>>,
    attention: Attention,
    /// The normed rows; queries, keys and values as attention takes them; what it gives.
    normed: Tensor,
    heads: [Tensor; 3],
    found: Tensor,
    gradients: Arc<ParameterGradients>,
}

/// `x + attention(norm(x))` with its output map.
///
/// # Shapes
/// `x: [T, D]`, maps of queries, keys, values and output -> `[T, D]`.
///
/// # Errors
/// When shapes disagree, or [`can_halve`] would say no.
pub fn attention_half(
    x: &Tensor,
    norm: Norm<'_>,
    maps: &[Map<'_>; 4],
    heads: Heads<'_>,
    gradients: &Arc<ParameterGradients>,
) -> Result<Tensor> {
    let (inside, t, norm) = (x.detach(), x.dim(0)?, ReadyNorm::of(norm));
    let [q, k, v, o] = maps.each_ref().map(Ready::of);
    let maps = [q?, k?, v?, o?];
    let normed = norm.run(&inside)?;
    let of_heads = |map: &Ready| map.run(&normed)?.reshape((t, (), heads.head_dim));
    let turned = |x: Tensor| heads.rope.map_or_else(|| Ok(x.clone()), |table| rope(&x, table));
    let (q, k, v) = (turned(of_heads(&maps[0])?)?, turned(of_heads(&maps[1])?)?, of_heads(&maps[2])?);
    let (found, attention) = attention_to_go_back([&q, &k, &v], heads.past, heads.spec)?;
    let y = maps[3].run(&found.reshape((t, ()))?)?;
    let (rope, gradients) = (heads.rope.cloned(), Arc::clone(gradients));
    let half = AttentionHalf { norm, maps, rope, attention, normed, heads: [q, k, v], found, gradients };
    Half::sum(x, y, half)
}

impl Back for AttentionHalf {
    fn back(&self, x: &Tensor, d: &Tensor) -> Result<Tensor> {
        let [q, k, v] = &self.heads;
        let flat = |x: &Tensor| x.reshape((x.dim(0)?, ()));
        let d_found = self.maps[3].back(&flat(&self.found)?, d, &self.gradients)?.reshape(self.found.shape())?;
        let found = self.attention.backward([q, k, v], (&self.found, &d_found), [true; 3])?;
        let [Some(dq), Some(dk), Some(dv)] = found else { bail!("halves: no gradient of attention") };
        let turned_back = |x: &Tensor, d: Tensor| match &self.rope {
            Some(table) => Rope(Arc::clone(table)).bwd(x, x, &d)?.map_or_else(|| bail!("halves: no rotation"), Ok),
            None => Ok(d),
        };
        let through = |map: &Ready, d: Tensor| map.back(&self.normed, &flat(&d)?, &self.gradients);
        let d_normed = through(&self.maps[2], dv)?;
        let d_normed = add(&d_normed, &through(&self.maps[1], turned_back(k, dk)?)?)?;
        let d_normed = add(&d_normed, &through(&self.maps[0], turned_back(q, dq)?)?)?;
        self.norm.back(x, &d_normed, d)
    }
}

struct FeedForwardHalf {
    norm: ReadyNorm,
    /// Gate, up, down.
    maps: [Ready; 3],
    activation: Activation,
    normed: Tensor,
    gate: Tensor,
    up: Tensor,
    hidden: Tensor,
    gradients: Arc<ParameterGradients>,
}

/// `x + (act(norm(x) G^T) * norm(x) U^T) D^T`.
///
/// # Shapes
/// `x: [T, D]`, maps gate and up `[F, D]`, down `[D, F]` -> `[T, D]`.
///
/// # Errors
/// When shapes disagree, or [`can_halve`] would say no.
pub fn feed_forward_half(
    x: &Tensor,
    norm: Norm<'_>,
    maps: &[Map<'_>; 3],
    activation: Activation,
    gradients: &Arc<ParameterGradients>,
) -> Result<Tensor> {
    let (inside, norm) = (x.detach(), ReadyNorm::of(norm));
    let [gate, up, down] = maps.each_ref().map(Ready::of);
    let maps = [gate?, up?, down?];
    let normed = norm.run(&inside)?;
    let (gate, up) = (maps[0].run(&normed)?, maps[1].run(&normed)?);
    let hidden = gated(&gate, &up, activation)?;
    let y = maps[2].run(&hidden)?;
    let gradients = Arc::clone(gradients);
    let half = FeedForwardHalf { norm, maps, activation, normed, gate, up, hidden, gradients };
    Half::sum(x, y, half)
}

impl Back for FeedForwardHalf {
    fn back(&self, x: &Tensor, d: &Tensor) -> Result<Tensor> {
        let [gate, up, down] = &self.maps;
        let d_hidden = down.back(&self.hidden, d, &self.gradients)?;
        let [d_gate, d_up] = Gated(self.activation).gradients(&self.gate, &self.up, &d_hidden)?;
        let d_normed = up.back(&self.normed, &d_up, &self.gradients)?;
        let d_normed = add(&d_normed, &gate.back(&self.normed, &d_gate, &self.gradients)?)?;
        self.norm.back(x, &d_normed, d)
    }
}
