//! All layers of a decoder for a few tokens, as in generation, in one launch on a GPU: layer by layer the host would take
//! far longer to ask for operations than they take. On a CPU there is no such thing, and [`can_run`] says no.

use super::{Activation, AttentionMask, RopeTable, Weight};
#[cfg(feature = "cuda")]
use crate::bf16::Format;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::kv::KvLayer;
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// A layer without biases, whose weights are packed as bf16, whose state goes through a norm before each half and whose
/// heads are as the products give them.
#[derive(Debug)]
pub struct Layer<'a> {
    /// Before attention and before feed-forward, `[D]`.
    pub norms: [&'a Tensor; 2],
    /// q, k, v, o, gate, up, down.
    pub maps: [&'a Weight; 7],
    /// Angles of the tokens; none: heads are not rotated.
    pub rope: Option<&'a RopeTable>,
    /// Which keys each token sees, its own among them.
    pub mask: &'a AttentionMask,
    /// Takes the tokens' keys and values.
    pub kv: &'a mut KvLayer,
}

/// What layers have alike.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// N, K and H.
    pub heads: (usize, usize, usize),
    /// Added to the mean square of a norm.
    pub eps: f32,
    /// Added to the weight of a norm.
    pub offset: f32,
    /// Times the products of queries and keys.
    pub scale: f32,
    /// Cap on scores.
    pub softcap: Option<f32>,
    /// Of gates.
    pub activation: Activation,
}

#[cfg(feature = "cuda")]
impl Spec {
    /// The kernel's argument for so many tokens of D numbers, without what is on the GPU.
    fn sizes(&self, (t, d): (usize, usize), inner: usize) -> cuda::FewRows {
        let (heads, kv_heads, head_dim) = self.heads;
        cuda::FewRows {
            rows: t as i32,
            width: d as i32,
            inner: inner as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            activation: self.activation.number(),
            eps: self.eps,
            offset: self.offset,
            scale: self.scale,
            softcap: self.softcap.unwrap_or(0.0),
            ..cuda::FewRows::default()
        }
    }
}

/// Whether [`run`] can take these layers for `x`, given the maps of each.
#[cfg(feature = "cuda")]
pub fn can_run<'a>(x: &Tensor, spec: &Spec, maps: impl Iterator<Item = [&'a Weight; 7]>) -> bool {
    let Ok((t, d)) = x.dims2() else { return false };
    let is_bf16 = |map: &&Weight| {
        let Weight::Frozen(matrix) = map else { return false };
        matrix.packed().is_some_and(|packed| packed.format() == Format::Bf16)
    };
    let mut inners = maps.map(|maps| maps[4].dims().ok().filter(|_| maps.iter().all(is_bf16)).map(|(inner, _)| inner));
    let Some(Some(inner)) = inners.next() else { return false };
    let is_alike = inners.all(|other| other == Some(inner));
    x.device().is_cuda() && !x.track_op() && is_alike && spec.sizes((t, d), inner).fits()
}

/// Whether [`run`] can take these layers for `x`: not on a CPU.
#[cfg(not(feature = "cuda"))]
pub fn can_run<'a>(_: &Tensor, _: &Spec, _: impl Iterator<Item = [&'a Weight; 7]>) -> bool {
    false
}

/// What layers share, in the words that go to the GPU.
#[cfg(feature = "cuda")]
#[derive(Default)]
struct Words<'a> {
    pack: cuda::Pack,
    tables: Vec<(&'a RopeTable, usize)>,
    masks: Vec<(&'a AttentionMask, usize)>,
}

#[cfg(feature = "cuda")]
impl<'a> Words<'a> {
    /// Where cosines and sines of a table lie.
    fn angles(&mut self, table: Option<&'a RopeTable>) -> [cuda::Pointer; 2] {
        let Some(table) = table else { return [cuda::NONE; 2] };
        let [cos, sin] = table.all();
        let known = self.tables.iter().find(|(other, _)| std::ptr::eq(*other, table)).map(|(_, first)| *first);
        let first = known.unwrap_or_else(|| {
            let first = self.pack.add(cos.iter().chain(sin).map(|x| x.to_bits()));
            self.tables.push((table, first));
            first
        });
        [first as cuda::Pointer, (first + cos.len()) as cuda::Pointer]
    }

    /// Where offsets and intervals of a mask lie.
    fn mask(&mut self, mask: &'a AttentionMask) -> [cuda::Pointer; 2] {
        let num_offsets = mask.offsets().len();
        let known = self.masks.iter().find(|(other, _)| std::ptr::eq(*other, mask)).map(|(_, first)| *first);
        let first = known.unwrap_or_else(|| {
            let first = self.pack.add(mask.offsets().iter().copied());
            let intervals = (0..mask.num_queries()).flat_map(|token| mask.intervals(token));
            self.pack.add(intervals.flat_map(|(from, to)| [*from, *to]));
            self.masks.push((mask, first));
            first
        });
        // What is added begins at an even word.
        [first, first + num_offsets.next_multiple_of(2)].map(|word| word as cuda::Pointer)
    }
}

/// The state of T tokens after all layers; their keys and values go to T places of each layer's, of which each run of
/// `places` has the next.
///
/// # Shapes
/// `x: [T, D]` -> `[T, D]`.
///
/// # Errors
/// When shapes disagree, or [`can_run`] would say no.
#[cfg(feature = "cuda")]
pub fn run(x: &Tensor, spec: &Spec, layers: Vec<Layer<'_>>, places: &[Range<usize>]) -> Result<Tensor> {
    let (t, d) = x.dims2()?;
    if !can_run(x, spec, layers.iter().map(|layer| layer.maps)) {
        bail!("few_rows: asked for what `can_run` refuses");
    }
    let (Some(gpu), Some(first)) = (cuda::Gpu::with(x)?, layers.first()) else { return Ok(x.clone()) };
    let inner = first.maps[4].dims()?.0;
    let places: Vec<u32> = places.iter().cloned().flatten().map(|place| place as u32).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        bail!("few_rows: two tokens at one place of {places:?}");
    }
    let (mut words, mut num_keys, mut kept, mut on_gpu) = (Words::default(), 0, Vec::new(), Vec::new());
    for layer in layers {
        let end = layer.check((t, d, inner), spec, &places)?;
        let [before, between] = [cuda::Read::of(layer.norms[0])?, cuda::Read::of(layer.norms[1])?];
        if [&before, &between].iter().any(|norm| norm.pointer % 16 != 0) {
            bail!("few_rows: expected norms that begin at a multiple of 16 bytes");
        }
        let mut maps = [0; 7];
        for (to, map) in maps.iter_mut().zip(layer.maps) {
            let Weight::Frozen(matrix) = map else { bail!("few_rows: expected a frozen weight packed as bf16") };
            *to = matrix.on(gpu)?.pointer(gpu);
        }
        let seen = |token| layer.mask.intervals(token).iter().map(|(from, to)| to - from).sum::<u32>() as usize;
        num_keys = (0..t).map(seen).max().unwrap_or(0).max(num_keys);
        // Where all places up to the end are written, nothing has to be cleared.
        let num_held = layer.kv.num_tokens();
        let is_filled = places.iter().filter(|place| **place as usize >= num_held).count() == end - num_held;
        on_gpu.push(cuda::FewLayer {
            norms: [before.pointer, between.pointer],
            maps,
            kv: layer.kv.room(gpu, end, is_filled)?,
            angles: words.angles(layer.rope),
            mask: words.mask(layer.mask),
        });
        kept.extend([before, between]);
    }
    let (read, y) = (cuda::Read::of(x)?, gpu.alloc(t * d)?);
    let sizes = cuda::FewRows { x: gpu.pointer(&y), ..spec.sizes((t, d), inner) };
    // SAFETY: `check` has compared the shapes of each layer, its mask and the places with its keys; `y` has the size of `x`.
    unsafe {
        gpu.copy(read.pointer, sizes.x, t * d)?;
        sizes.run(gpu, (words.pack, on_gpu), &places, num_keys)?;
    }
    Ok(gpu.tensor(y, (t, d)))
}

/// The state after all layers: not on a CPU.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn run(_: &Tensor, _: &Spec, _: Vec<Layer<'_>>, _: &[Range<usize>]) -> Result<Tensor> {
    bail!("few_rows: asked for what `can_run` refuses")
}

#[cfg(feature = "cuda")]
impl Layer<'_> {
    /// Keys that there will be, after the shapes have been compared.
    fn check(&self, (t, d, inner): (usize, usize, usize), spec: &Spec, places: &[u32]) -> Result<usize> {
        let (heads, kv_heads, h) = spec.heads;
        let (q, kv) = (heads * h, kv_heads * h);
        for (map, expected) in
            self.maps.iter().zip([(q, d), (kv, d), (kv, d), (d, q), (inner, d), (inner, d), (d, inner)])
        {
            if map.dims()? != expected {
                bail!("few_rows: expected a map {expected:?}, found {:?}", map.dims()?);
            }
        }
        let end = places.iter().map(|place| *place as usize + 1).max().unwrap_or(0).max(self.kv.num_tokens());
        if self.norms.iter().any(|norm| norm.elem_count() != d)
            || self.rope.is_some_and(|table| (table.num_tokens(), 2 * table.half()) != (t, h))
            || (self.mask.num_queries(), places.len()) != (t, t)
            || self.mask.end() > end
            || self.kv.width() != kv
        {
            bail!(
                "few_rows: {t} tokens of {d}, norms {:?}, a mask of {} queries over {} of {end} keys of {}, {} places",
                self.norms.map(Tensor::shape),
                self.mask.num_queries(),
                self.mask.end(),
                self.kv.width(),
                places.len()
            );
        }
        Ok(end)
    }
}
