//! Attention under an arbitrary visibility, grouped heads (arXiv 2305.13245), past keys without gradient.
//!
//! Visibility is a list of key intervals per query: no `[T, S]` mask exists, hidden keys cost nothing, and the
//! softmax is in f32. Keys are numbered over `[past | new]`.

use crate::bf16::{BLOCK, Format, Units};
use crate::cpu::{filled, output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::kv::KvLayer;
use blocks::{Block, Scratch};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::Mutex;
use tiles::Group;

/// Numbers of a head for which a GPU's registers hold sums of 16 rows beside what they are multiplied with.
pub const WIDEST_ROUNDED: usize = 128;

pub use mask::AttentionMask;
pub use tiles::MANY_KEYS;

mod backward;
mod blocks;
#[cfg(feature = "cuda")]
mod gpu;
mod mask;
mod tiles;

/// What attention needs beside its tensors.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// Who sees whom.
    pub mask: Arc<AttentionMask>,
    /// Scores are `scale * q.k`.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Products may be of bf16 numbers where the machine has units for them: on a CPU over many keys and outside any graph,
    /// on a GPU, within a graph for heads of up to [`WIDEST_ROUNDED`] numbers.
    pub bf16: bool,
}

/// Keys and values over `[past | new]`, each `[_, K, H]`.
struct Keys<'a> {
    past: Option<(&'a [f32], &'a [f32])>,
    new_keys: &'a [f32],
    new_values: &'a [f32],
    num_past: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Keys<'_> {
    fn at(&self, key: usize, head: usize) -> (&[f32], &[f32]) {
        let (keys, values) = self.from(key, head);
        (&keys[..self.head_dim], &values[..self.head_dim])
    }

    /// Runs of keys that lie together in the cache or among the new ones, in the order of the intervals: the first key,
    /// numbers of keys and values from it on, and how many keys.
    fn runs<'b>(
        &'b self,
        intervals: &'b [(u32, u32)],
        head: usize,
    ) -> impl Iterator<Item = (usize, [&'b [f32]; 2], usize)> {
        let border = self.num_past as u32;
        let cut = move |(from, to): &(u32, u32)| {
            [(*from, (*to).min(border)), ((*from).max(border), *to)].into_iter().filter(|(from, to)| from < to)
        };
        intervals.iter().flat_map(cut).map(move |(from, to)| {
            let (k, v) = self.from(from as usize, head);
            (from as usize, [k, v], (to - from) as usize)
        })
    }

    /// Keys and values of a head from a key on to the end of the cache or of the new keys, tokens
    /// `kv_heads * head_dim` numbers apart.
    fn from(&self, key: usize, head: usize) -> (&[f32], &[f32]) {
        let (keys, values, token) = match self.past {
            Some((keys, values)) if key < self.num_past => (keys, values, key),
            _ => (self.new_keys, self.new_values, key - self.num_past),
        };
        let from = (token * self.kv_heads + head) * self.head_dim;
        (&keys[from..], &values[from..])
    }
}

/// Consecutive queries whose outputs are computed together.
enum Part<'a> {
    Block(&'a Block),
    Group(Group),
}

/// With queries, and where outputs go.
type PartOfRows<'a> = (Part<'a>, &'a [f32], &'a mut [MaybeUninit<f32>]);

impl Part<'_> {
    fn queries(&self) -> &Range<usize> {
        match self {
            Self::Block(block) => &block.queries,
            Self::Group(group) => &group.queries,
        }
    }
}

impl AttentionSpec {
    /// `[T, N, H]` from queries of the same shape.
    fn forward(&self, q: &[f32], heads: usize, keys: &Keys<'_>) -> Vec<f32> {
        let width = heads * keys.head_dim;
        let fill = |mut rest: &mut [MaybeUninit<f32>]| {
            let parts: Vec<PartOfRows<'_>> = (self.parts(heads / keys.kv_heads).into_iter())
                .map(|part| {
                    let (of_part, others) = std::mem::take(&mut rest).split_at_mut(part.queries().len() * width);
                    rest = others;
                    let q = &q[part.queries().start * width..part.queries().end * width];
                    (part, q, of_part)
                })
                .collect();
            parts.into_par_iter().for_each_init(<(Scratch, tiles::Scratch)>::default, |scratch, (part, q, out)| {
                match part {
                    Part::Block(block) => self.forward_block(block, keys, (q, out), &mut scratch.0),
                    Part::Group(group) => self.forward_group(&group, keys, (q, out), &mut scratch.1),
                }
            });
        };
        // SAFETY: the parts have all queries, and each writes every number of its own.
        unsafe { filled(q.len(), fill) }
    }

    /// All queries in order: in groups where products may be of bf16 numbers and there are rows enough for a block of
    /// them, `per_key` rows for each query.
    fn parts(&self, per_key: usize) -> Vec<Part<'_>> {
        let may_round = self.bf16 && self.softcap.is_none() && Units::best(Format::Bf16) != Units::Portable;
        let mut parts = Vec::new();
        let mut rest = self.mask.blocks.as_slice();
        // The first key of a block whose queries all begin there and see many.
        let from = |block: &Block| {
            let mut firsts = block.queries.clone().map(|query| self.mask.intervals(query)[0].0);
            let first = firsts.next().filter(|_| may_round && block.sees_many)?;
            firsts.all(|key| key == first).then_some(first)
        };
        while let Some(first) = rest.first() {
            let (from_first, last) = (from(first), first.queries.start + tiles::QUERIES);
            let together = |block: &&Block| from(block) == from_first && block.queries.end <= last;
            let (blocks, others) = rest.split_at(rest.iter().take_while(together).count());
            rest = others;
            let queries = first.queries.start..blocks.last().map_or(first, |block| block).queries.end;
            match from_first {
                Some(from) if queries.len() * per_key >= BLOCK => {
                    parts.push(Part::Group(Group { queries, from: from as usize }));
                }
                _ => parts.extend(blocks.iter().map(Part::Block)),
            }
        }
        parts
    }
}

fn check(spec: &AttentionSpec, q: &Tensor, kv: (usize, usize), num_keys: usize) -> Result<()> {
    let (t, heads, h) = q.dims3()?;
    let (kv_heads, width) = kv;
    if t != spec.mask.num_queries()
        || width != h
        || kv_heads == 0
        || heads % kv_heads != 0
        || spec.mask.end() > num_keys
    {
        bail!(
            "attention: queries {:?}, {kv_heads} key heads of {width}, {num_keys} keys, mask of {} queries over {} keys",
            q.shape(),
            spec.mask.num_queries(),
            spec.mask.end()
        );
    }
    Ok(())
}

/// What attention over past and new keys asks of its operands.
fn check_new(spec: &AttentionSpec, [q, k, v]: [&Tensor; 3], past: Option<&Arc<KvLayer>>) -> Result<()> {
    let (new, kv_heads, h) = k.dims3()?;
    check_width(past.map(Arc::as_ref), kv_heads * h)?;
    if v.dims() != k.dims() {
        bail!("attention: keys {:?}, values {:?}", k.shape(), v.shape());
    }
    if past.is_some_and(|past| !past.keys().is_beside(q)) {
        bail!("attention: past keys on another device than the queries");
    }
    check(spec, q, (kv_heads, h), new + past.map_or(0, |past| past.num_tokens()))
}

fn check_width(cache: Option<&KvLayer>, width: usize) -> Result<()> {
    match cache {
        Some(cache) if cache.num_tokens() > 0 && cache.width() != width => {
            bail!("attention: a cache of {} numbers per token, keys of {width}", cache.width())
        }
        _ => Ok(()),
    }
}

pub(super) struct Attention {
    spec: AttentionSpec,
    past: Option<Arc<KvLayer>>,
    /// What a backward pass on the GPU needs of the forward pass; `None` where there will be none.
    #[cfg(feature = "cuda")]
    sums: Option<Mutex<Option<cuda::AttentionSums>>>,
    /// Whether products within a graph are of bf16 numbers on a GPU.
    #[cfg(feature = "cuda")]
    rounds: bool,
}

/// `softmax(scale q k^T) v` over the allowed keys of each query; past keys and values get no gradient.
///
/// # Shapes
/// `q: [T, N, H]`, `k`, `v`: `[S_new, K, H]` -> `[T, N, H]`; K divides N.
///
/// # Errors
/// When shapes disagree or the mask reaches beyond the keys.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    past: Option<&Arc<KvLayer>>,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    check_new(spec, [q, k, v], past)?;
    let in_graph = q.track_op() || k.track_op() || v.track_op();
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention::new(past, spec, in_graph))
}

/// As [`attention`], outside any graph, with what its backward pass takes.
pub(super) fn attention_to_go_back(
    [q, k, v]: [&Tensor; 3],
    past: Option<&Arc<KvLayer>>,
    spec: &AttentionSpec,
) -> Result<(Tensor, Attention)> {
    check_new(spec, [q, k, v], past)?;
    let op = Attention::new(past, spec, true);
    Ok((q.apply_op3_no_bwd(k, v, &op)?, op))
}

/// As [`attention`], with every key in the cache and no gradient.
///
/// # Shapes
/// `q: [T, N, H]`, cache `[S, K, H]` -> `[T, N, H]`.
///
/// # Errors
/// When shapes disagree or the mask reaches beyond the keys.
pub fn attention_cached(q: &Tensor, cache: &KvLayer, kv_heads: usize, spec: &AttentionSpec) -> Result<Tensor> {
    let (_, heads, h) = q.dims3()?;
    check_width(Some(cache), kv_heads * h)?;
    check(spec, q, (kv_heads, h), cache.num_tokens())?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = cuda::Gpu::with(q)? {
        return gpu::attention_cached(gpu, q, cache, kv_heads, spec);
    }
    let (new_keys, new_values) = (cache.keys().host()?, cache.values().host()?);
    let keys = Keys { past: None, new_keys, new_values, num_past: 0, kv_heads, head_dim: h };
    tensor(with_values(q, |q| spec.forward(q, heads, &keys))?, q.shape())
}

impl Attention {
    fn new(past: Option<&Arc<KvLayer>>, spec: &AttentionSpec, in_graph: bool) -> Self {
        Self {
            spec: AttentionSpec { bf16: spec.bf16 && !in_graph, ..spec.clone() },
            past: past.cloned(),
            #[cfg(feature = "cuda")]
            sums: in_graph.then(Mutex::default),
            #[cfg(feature = "cuda")]
            rounds: spec.bf16,
        }
    }

    fn keys<'a>(&'a self, k: &'a [f32], v: &'a [f32], kv_heads: usize, head_dim: usize) -> Result<Keys<'a>> {
        let past = self.past.as_deref();
        let num_past = past.map_or(0, KvLayer::num_tokens);
        let past = past.map(|past| Ok::<_, candle_core::Error>((past.keys().host()?, past.values().host()?)));
        Ok(Keys { past: past.transpose()?, new_keys: k, new_values: v, num_past, kv_heads, head_dim })
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(s1, l1, "attention")?, slice(s2, l2, "attention")?, slice(s3, l3, "attention")?);
        let keys = self.keys(k, v, l2.dims()[1], l2.dims()[2])?;
        Ok(output(self.spec.forward(q, l1.dims()[1], &keys), l1.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward_on([(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = self.backward([q, k, v], (y, dy), [q, k, v].map(Tensor::track_op))?;
        Ok((dq, dk, dv))
    }
}

impl Attention {
    /// Gradients by queries, new keys and new values, those that are wanted.
    pub(super) fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        (_y, dy): (&Tensor, &Tensor),
        wants: [bool; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dy)? {
            return self.backward_on(gpu, [q, k, v], (_y, dy), wants);
        }
        let ((t, heads, h), (new, kv_heads, _)) = (q.dims3()?, k.dims3()?);
        let group = heads / kv_heads;
        let by_heads = |q: &[f32], k: &[f32], v: &[f32], dy: &[f32]| {
            let keys = self.keys(k, v, kv_heads, h)?;
            let of_head = |head| self.spec.backward_head(q, dy, heads, &keys, head);
            Ok::<_, candle_core::Error>((0..kv_heads).into_par_iter().map(of_head).collect())
        };
        let by_head: Vec<[Vec<f32>; 3]> = with_values(q, |q| {
            with_values(k, |k| with_values(v, |v| with_values(dy, |dy| by_heads(q, k, v, dy))))
        })?????;
        let interleave = |which: usize, tokens: usize, width: usize| {
            let mut all = Vec::with_capacity(tokens * kv_heads * width);
            for token in 0..tokens {
                for head in &by_head {
                    all.extend_from_slice(&head[which][token * width..(token + 1) * width]);
                }
            }
            all
        };
        let wanted = |wants: bool, which: usize, tokens: usize, width: usize, of: &Tensor| {
            wants.then(|| tensor(interleave(which, tokens, width), of.shape())).transpose()
        };
        Ok([wanted(wants[0], 0, t, group * h, q)?, wanted(wants[1], 1, new, h, k)?, wanted(wants[2], 2, new, h, v)?])
    }
}
