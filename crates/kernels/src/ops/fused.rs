//! Parts of a decoder layer in one piece, outside any graph, on frozen weights packed as bf16 or int8: what lies between two
//! products stays in a core's cache instead of going through memory. Each part gives the bits of the operations that it
//! stands for, row by row in any company.

use super::linear::{LowRank, Weight};
use super::rms_norm::RmsNorm;
use super::row_update::RowUpdate;
use super::swiglu::Activation;
use crate::bf16::{BLOCK, FEW_ROWS, Format, Packed, Rounded, Units};
use crate::cpu::{filled, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use run::{Adapted, FeedForward, Normed, Ready, product};
use std::mem::MaybeUninit;

mod run;

/// A linear map with its update.
#[derive(Debug, Clone, Copy)]
pub struct Map<'a> {
    /// Frozen, packed, without bias.
    pub weight: &'a Weight,
    /// Acts on the same tokens in all maps of a part.
    pub update: Option<&'a LowRank>,
}

/// Root-mean-square norm before a part, as [`super::rms_norm`] has it.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[D]`.
    pub weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
}

impl<'a> Map<'a> {
    fn packed(&self) -> Option<&'a Packed> {
        match self.weight {
            Weight::Frozen(matrix) => matrix.packed(),
            Weight::Dense(_) => None,
        }
    }

    /// The map on slices; `run` is given it.
    fn with<R>(&self, run: impl FnOnce(Ready<'_>) -> R) -> Result<R> {
        let (out, _) = self.weight.dims()?;
        let Some(packed) = self.packed() else { bail!("fused: expected a frozen weight, packed") };
        let Some(update) = self.update.filter(|update| !update.rows.is_empty()) else {
            return Ok(run(Ready::new(packed, out, None)));
        };
        let rank = update.a.dim(0)?;
        with_values(&update.a, |a| {
            with_values(&update.b, |b| run(Ready::new(packed, out, Some(RowUpdate::new((a, b), rank, update.scale)))))
        })?
    }
}

/// Whether parts of this module can stand for operations on `x` and these maps: no gradient is wanted, the weights are
/// packed in one format, the machine has units for it, and there are rows enough for all threads; on a GPU any number will do.
pub fn can_fuse(x: &Tensor, maps: &[Map<'_>]) -> bool {
    let is_plain = |map: &Map<'_>| {
        let no_gradient = map.update.is_none_or(|update| !update.a.track_op() && !update.b.track_op());
        map.packed().is_some() && no_gradient
    };
    let enough = x.dim(0).is_ok_and(|t| t >= BLOCK * rayon::current_num_threads());
    let formats = || maps.iter().filter_map(Map::packed).map(Packed::format);
    let has_units = formats().next().is_some_and(|format| {
        let has_units = Units::best(format) != Units::Portable;
        formats().all(|other| other == format) && (x.device().is_cuda() || (enough && has_units))
    });
    has_units && !x.track_op() && maps.iter().all(is_plain)
}

/// Maps on the GPU, with what is to be kept while they are used.
#[cfg(feature = "cuda")]
struct OnGpu<'a, const N: usize> {
    maps: [cuda::Map<'a>; N],
    _updates: Vec<cuda::Read>,
}

#[cfg(feature = "cuda")]
impl<'a, const N: usize> OnGpu<'a, N> {
    fn new(gpu: &cuda::Gpu, maps: &[Map<'a>; N]) -> Result<Self> {
        let (mut ready, mut updates) = (Vec::with_capacity(N), Vec::new());
        for map in maps {
            let Weight::Frozen(weight) = map.weight else { bail!("fused: expected a frozen weight packed as bf16") };
            let update = match map.update.filter(|update| !update.rows.is_empty()) {
                None => None,
                Some(update) => {
                    let (a, b) = (cuda::Read::of(&update.a)?, cuda::Read::of(&update.b)?);
                    let (rank, rows) = (update.a.dim(0)?, update.rows.on(gpu)?);
                    let ready = cuda::Update { a: a.pointer, b: b.pointer, rank, scale: update.scale, rows };
                    updates.extend([a, b]);
                    Some(ready)
                }
            };
            ready.push(cuda::Map { weight: weight.on(gpu)?, dims: (weight.rows(), weight.cols()), update });
        }
        let maps = <[cuda::Map<'a>; N]>::try_from(ready).map_err(|_| candle_core::Error::Msg("fused: maps".into()))?;
        Ok(Self { maps, _updates: updates })
    }
}

#[cfg(feature = "cuda")]
impl Norm<'_> {
    /// The norm on the GPU; the tensor outlives what is asked of it.
    fn on_gpu(&self) -> Result<(cuda::Norm, cuda::Read)> {
        let weight = cuda::Read::of(self.weight)?;
        Ok((cuda::Norm { weight: weight.pointer, eps: self.eps, offset: self.offset }, weight))
    }
}

/// Rows of a task: with what is between the products they stay in a core's second-level cache.
fn task_rows(t: usize) -> usize {
    t.div_ceil(rayon::current_num_threads()).next_multiple_of(BLOCK).min(FEW_ROWS)
}

fn rows_of<'a>(maps: &[Map<'a>]) -> &'a [u32] {
    maps.iter().find_map(|map| map.update).map_or(&[], |update| &update.rows)
}

fn check(what: &str, x: &Tensor, maps: &[Map<'_>], shapes: &[(usize, usize)]) -> Result<()> {
    if !can_fuse(x, maps) {
        bail!("{what}: asked for what `can_fuse` refuses");
    }
    let rows = rows_of(maps);
    if !rows.is_sorted_by(|a, b| a < b) || rows.last().is_some_and(|row| *row as usize >= x.dims()[0]) {
        bail!("{what}: an update at rows beyond {}", x.dims()[0]);
    }
    for (map, expected) in maps.iter().zip(shapes) {
        let fits = |update: &LowRank| {
            let rank = update.a.dims().first().copied().unwrap_or(0);
            update.a.dims() == [rank, expected.1] && update.b.dims() == [expected.0, rank] && update.rows[..] == *rows
        };
        if map.weight.dims()? != *expected || !map.update.is_none_or(fits) {
            bail!("{what}: expected a map {expected:?}, found {:?}, or updates of other rows", map.weight.dims()?);
        }
    }
    Ok(())
}

fn check_norm(what: &str, norm: Norm<'_>, d: usize) -> Result<()> {
    if norm.weight.elem_count() != d || norm.weight.track_op() {
        bail!("{what}: expected a frozen norm of {d}, found one of {:?}", norm.weight.shape());
    }
    Ok(())
}

/// `norm(x) W^T` for each map.
///
/// # Shapes
/// `x: [T, D]`, maps of D inputs -> `[T, out]` each.
///
/// # Errors
/// When shapes disagree, or [`can_fuse`] would say no.
pub fn norm_linears<const N: usize>(x: &Tensor, norm: Norm<'_>, maps: [Map<'_>; N]) -> Result<[Tensor; N]> {
    let (t, d) = x.dims2()?;
    let outs: Vec<usize> = maps.iter().map(|map| Ok(map.weight.dims()?.0)).collect::<Result<_>>()?;
    check("norm_linears", x, &maps, &outs.iter().map(|out| (*out, d)).collect::<Vec<_>>())?;
    check_norm("norm_linears", norm, d)?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = cuda::Gpu::with(x)? {
        let (read, (norm, _norm), on_gpu) = (cuda::Read::of(x)?, norm.on_gpu()?, OnGpu::new(gpu, &maps)?);
        // SAFETY: `check` has compared the shapes.
        let found = unsafe { cuda::norm_linears(gpu, read.pointer, norm, (t, d), &on_gpu.maps)? };
        let outputs: Vec<Tensor> = found.into_iter().zip(&outs).map(|(y, out)| gpu.tensor(y, (t, *out))).collect();
        return outputs.try_into().map_err(|_| candle_core::Error::Msg("norm_linears: another number of maps".into()));
    }
    let rms = RmsNorm { eps: norm.eps, offset: norm.offset };
    let (rows, format) = (rows_of(&maps), maps[0].packed().map_or(Format::Bf16, Packed::format));
    let outputs = with_values(x, |x| {
        with_values(norm.weight, |w| {
            // The rows are normed and rounded once for all maps.
            let per_task = task_rows(t);
            let tasks: Vec<(Adapted, Normed)> = x
                .par_chunks(per_task * d)
                .enumerate()
                .map(|(task, x)| {
                    let adapted = Adapted::new(rows, task * per_task, x.len() / d);
                    let normed = Normed::new(format, x, (&rms, w), &adapted);
                    (adapted, normed)
                })
                .collect();
            maps.iter()
                .zip(&outs)
                .map(|(map, out)| {
                    let run = |map: Ready<'_>| {
                        let fill = |y: &mut [MaybeUninit<f32>]| {
                            y.par_chunks_mut(per_task * out).zip(&tasks).for_each(|(y, (adapted, normed))| {
                                let downs = map.downs(&normed.adapted.chunks(d).collect::<Vec<_>>());
                                product(&map, &normed.rounded, (adapted, &downs), None, y);
                            });
                        };
                        // SAFETY: the tasks have all rows, and `product` writes each number of its rows.
                        unsafe { filled(t * out, fill) }
                    };
                    tensor(map.with(run)?, (t, *out))
                })
                .collect::<Result<Vec<Tensor>>>()
        })?
    })??;
    outputs.try_into().map_err(|_| candle_core::Error::Msg("norm_linears: another number of maps".into()))
}

/// `residual + x W^T`. On a GPU the sum takes the place of `residual`: all who share its memory see it.
///
/// # Shapes
/// `residual: [T, out]`, `x: [T, in]` -> `[T, out]`.
///
/// # Errors
/// When shapes disagree, or [`can_fuse`] would say no.
pub fn add_linear(residual: Tensor, x: &Tensor, map: Map<'_>) -> Result<Tensor> {
    let ((t, d), (rows, out)) = (x.dims2()?, residual.dims2()?);
    check("add_linear", x, &[map], &[(out, d)])?;
    if rows != t || residual.track_op() {
        bail!("add_linear: {t} rows onto {:?}", residual.shape());
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = cuda::Gpu::with(x)? {
        let sum = residual.contiguous()?;
        let (onto, read, on_gpu) = (cuda::Read::of(&sum)?, cuda::Read::of(x)?, OnGpu::new(gpu, &[map])?);
        if onto.pointer == read.pointer {
            bail!("add_linear: the rows share the memory of the residual, which the sum takes");
        }
        // SAFETY: `check` has compared the shapes.
        unsafe { cuda::add_linear(gpu, (onto.pointer, read.pointer), on_gpu.maps[0], t)? };
        return Ok(sum);
    }
    let run = |residual: &[f32], x: &[f32], map: Ready<'_>, rows: &[u32]| {
        let per_task = task_rows(t);
        let fill = |y: &mut [MaybeUninit<f32>]| {
            let inputs = x.par_chunks(per_task * d).zip(residual.par_chunks(per_task * out));
            y.par_chunks_mut(per_task * out).zip(inputs).enumerate().for_each(|(task, (y, (x, residual)))| {
                let adapted = Adapted::new(rows, task * per_task, x.len() / d);
                let downs = map.downs(&adapted.rows().map(|row| &x[row * d..(row + 1) * d]).collect::<Vec<_>>());
                product(&map, &Rounded::of(map.format(), x, d), (&adapted, &downs), Some(residual), y);
            });
        };
        // SAFETY: the tasks have all rows, and `product` writes each number of its rows.
        unsafe { filled(t * out, fill) }
    };
    let y = with_values(&residual, |residual| {
        with_values(x, |x| map.with(|ready| run(residual, x, ready, rows_of(&[map]))))
    })???;
    tensor(y, (t, out))
}

/// `x + (act(norm(x) G^T) * norm(x) U^T) D^T`: the feed-forward half of a layer. On a GPU the sum takes
/// the place of `x`: all who share its memory see it.
///
/// # Shapes
/// `x: [T, D]`, maps gate and up `[F, D]`, down `[D, F]` -> `[T, D]`.
///
/// # Errors
/// When shapes disagree, or [`can_fuse`] would say no.
pub fn feed_forward(x: Tensor, norm: Norm<'_>, maps: [Map<'_>; 3], activation: Activation) -> Result<Tensor> {
    let ((t, d), f) = (x.dims2()?, maps[0].weight.dims()?.0);
    check("feed_forward", &x, &maps, &[(f, d), (f, d), (d, f)])?;
    check_norm("feed_forward", norm, d)?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = cuda::Gpu::with(&x)? {
        let sum = x.contiguous()?;
        let (read, (norm, _norm), on_gpu) = (cuda::Read::of(&sum)?, norm.on_gpu()?, OnGpu::new(gpu, &maps)?);
        // SAFETY: `check` has compared the shapes.
        unsafe { cuda::feed_forward(gpu, read.pointer, norm, on_gpu.maps, (t, activation.number()))? };
        return Ok(sum);
    }
    let rms = RmsNorm { eps: norm.eps, offset: norm.offset };
    let rows = rows_of(&maps);
    let run = |x: &[f32], w: &[f32], maps: [Ready<'_>; 3]| {
        let part = FeedForward { maps, norm: (&rms, w) };
        let per_task = task_rows(t);
        let fill = |y: &mut [MaybeUninit<f32>]| {
            y.par_chunks_mut(per_task * d).zip(x.par_chunks(per_task * d)).enumerate().for_each(|(task, (y, x))| {
                let adapted = Adapted::new(rows, task * per_task, x.len() / d);
                part.run(x, &adapted, y, activation);
            });
        };
        // SAFETY: the tasks have all rows, and each writes every number of its rows.
        unsafe { filled(t * d, fill) }
    };
    let [gate, up, down] = maps;
    let y = with_values(&x, |x| {
        with_values(norm.weight, |w| gate.with(|gate| up.with(|up| down.with(|down| run(x, w, [gate, up, down]))))?)?
    })???;
    tensor(y, (t, d))
}
