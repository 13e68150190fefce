//! Linear maps with low-rank updates, and the parts of a layer that go through bf16 (see [`crate::ops::fused`]).

use super::pointwise::{gated_bf16, to_bf16};
use super::rows::rms_norm_bf16;
use super::{DeviceMatrix, Gpu, Mat, Pointer, Precision, Product, add_to_rows, gated, gather_rows, rms_norm};
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, bail};

/// A low-rank update on the GPU: A `[r, in]`, B `[out, r]`, and the rows it acts on.
#[derive(Clone, Copy)]
pub(crate) struct Update {
    pub(crate) a: Pointer,
    pub(crate) b: Pointer,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// Row numbers, ascending, and how many.
    pub(crate) rows: (Pointer, usize),
}

/// A frozen map `[out, in]` with its update.
#[derive(Clone, Copy)]
pub(crate) struct Map<'a> {
    pub(crate) weight: &'a DeviceMatrix,
    /// `(out, in)`.
    pub(crate) dims: (usize, usize),
    pub(crate) update: Option<Update>,
}

/// Gradients of a map with an update.
pub(crate) struct Gradients {
    pub(crate) dx: Option<CudaSlice<f32>>,
    pub(crate) da: CudaSlice<f32>,
    pub(crate) db: CudaSlice<f32>,
}

impl Update {
    /// The rows of `x` `[t, width]` that the update acts on, and what is to be kept for them.
    unsafe fn rows_of(
        &self,
        gpu: &Gpu,
        x: Pointer,
        (t, width): (usize, usize),
    ) -> Result<(Pointer, Option<CudaSlice<f32>>)> {
        if self.rows.1 == t {
            return Ok((x, None));
        }
        // SAFETY: as the caller says: `x` has all rows.
        let rows = unsafe { gather_rows(gpu, (x, false), self.rows, width)? };
        Ok((gpu.pointer(&rows), Some(rows)))
    }

    /// `y[rows] += scale (x_rows A^T) B^T`; `y` `[t, out]`, `x_rows` `[n, in]`.
    ///
    /// # Safety
    /// The pointers lead to tensors of these sizes.
    unsafe fn add(
        &self,
        gpu: &Gpu,
        precision: Precision,
        (x_rows, y): (Pointer, Pointer),
        (t, out, input): (usize, usize, usize),
    ) -> Result<()> {
        let (n, rank) = (self.rows.1, self.rank);
        let down = gpu.alloc::<f32>(n * rank)?;
        let b = Mat::transposed(self.b, rank);
        // SAFETY: as the caller says; what lies between was made of its size.
        unsafe {
            let a = Mat::transposed(self.a, input);
            Product::new(precision, (n, rank, input), Mat::rows(x_rows, input), a, gpu.pointer(&down)).run(gpu)?;
            let down = Mat::rows(gpu.pointer(&down), rank);
            if n == t {
                let product = Product::new(precision, (n, out, rank), down, b, y);
                return Product { alpha: self.scale, add: true, ..product }.run(gpu);
            }
            let up = gpu.alloc::<f32>(n * out)?;
            let product = Product::new(precision, (n, out, rank), down, b, gpu.pointer(&up));
            Product { alpha: self.scale, ..product }.run(gpu)?;
            add_to_rows(gpu, (gpu.pointer(&up), y), self.rows, out)
        }
    }
}

impl Map<'_> {
    /// `y += x W^T` or `y = x W^T`, by rows in the format of the products, and the update from its own rows `[n, in]`.
    unsafe fn run(
        &self,
        gpu: &Gpu,
        (x, x_rows, y): (Pointer, Option<Pointer>, Pointer),
        t: usize,
        add: bool,
    ) -> Result<()> {
        let (out, input) = self.dims;
        // SAFETY: as the caller says.
        unsafe {
            self.weight.product(gpu, (x, y), (t, out, input), add)?;
            if let (Some(update), Some(x_rows)) = (&self.update, x_rows) {
                update.add(gpu, self.weight.update_precision(), (x_rows, y), (t, out, input))?;
            }
        }
        Ok(())
    }

    /// `x W^T` with the update, for f32 rows `[t, in]`.
    ///
    /// # Safety
    /// The pointers lead to tensors of their sizes.
    pub(crate) unsafe fn forward(&self, gpu: &Gpu, x: Pointer, t: usize) -> Result<CudaSlice<f32>> {
        let (out, input) = self.dims;
        // SAFETY: as the caller says.
        unsafe {
            let y = self.weight.forward(gpu, x, (t, out, input))?;
            if let Some(update) = &self.update {
                let (x_rows, _kept) = update.rows_of(gpu, x, (t, input))?;
                update.add(gpu, self.weight.update_precision(), (x_rows, gpu.pointer(&y)), (t, out, input))?;
            }
            Ok(y)
        }
    }

    /// Gradients by `x`, A and B.
    ///
    /// # Safety
    /// `x` leads to `[t, in]` numbers, `dy` to `[t, out]`.
    pub(crate) unsafe fn backward(
        &self,
        gpu: &Gpu,
        (x, dy): (Pointer, Pointer),
        t: usize,
        wants_dx: bool,
    ) -> Result<Gradients> {
        let Some(update) = &self.update else { bail!("linear: gradients of an update that is not there") };
        let ((out, input), precision) = (self.dims, self.weight.update_precision());
        let (n, rank) = (update.rows.1, update.rank);
        let (down, d_down) = (gpu.alloc::<f32>(n * rank)?, gpu.alloc::<f32>(n * rank)?);
        let (da, db) = (gpu.alloc(rank * input)?, gpu.alloc(out * rank)?);
        let (down_at, d_down_at) = (gpu.pointer(&down), gpu.pointer(&d_down));
        // SAFETY: as the caller says; what lies between was made of its size.
        unsafe {
            let (x_rows, _x) = update.rows_of(gpu, x, (t, input))?;
            let (dy_rows, _dy) = update.rows_of(gpu, dy, (t, out))?;
            let scaled =
                |mnk, a, b, c| Product { alpha: update.scale, ..Product::new(precision, mnk, a, b, c) }.run(gpu);
            let a = Mat::transposed(update.a, input);
            scaled((n, rank, input), Mat::rows(x_rows, input), a, down_at)?;
            scaled((n, rank, out), Mat::rows(dy_rows, out), Mat::rows(update.b, rank), d_down_at)?;
            let (dy_t, down) = (Mat::transposed(dy_rows, out), Mat::rows(down_at, rank));
            Product::new(precision, (out, rank, n), dy_t, down, gpu.pointer(&db)).run(gpu)?;
            let (d_down_t, x_rows) = (Mat::transposed(d_down_at, rank), Mat::rows(x_rows, input));
            Product::new(precision, (rank, input, n), d_down_t, x_rows, gpu.pointer(&da)).run(gpu)?;
            if !wants_dx {
                return Ok(Gradients { dx: None, da, db });
            }
            let dx = self.weight.backward(gpu, dy, (t, out, input))?;
            let (d_down, a) = (Mat::rows(d_down_at, rank), Mat::rows(update.a, input));
            if n == t {
                let product = Product::new(precision, (n, input, rank), d_down, a, gpu.pointer(&dx));
                Product { add: true, ..product }.run(gpu)?;
            } else {
                let through = gpu.alloc::<f32>(n * input)?;
                Product::new(precision, (n, input, rank), d_down, a, gpu.pointer(&through)).run(gpu)?;
                add_to_rows(gpu, (gpu.pointer(&through), gpu.pointer(&dx)), update.rows, input)?;
            }
            Ok(Gradients { dx: Some(dx), da, db })
        }
    }
}

/// A norm before a part.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) weight: Pointer,
    pub(crate) eps: f32,
    pub(crate) offset: f32,
}

/// Rows through a norm: all rounded to bf16, and those that an update acts on as f32.
struct Normed {
    rounded: CudaSlice<half::bf16>,
    adapted: Option<CudaSlice<f32>>,
}

impl Normed {
    unsafe fn new(gpu: &Gpu, x: Pointer, norm: Norm, (t, d): (usize, usize), maps: &[Map<'_>]) -> Result<Self> {
        let constants = (norm.eps, norm.offset);
        // SAFETY: as the caller says: `x` has all rows.
        unsafe {
            let rounded = rms_norm_bf16(gpu, (x, norm.weight), (t, d), constants)?;
            let adapted = match maps.iter().find_map(|map| map.update) {
                None => None,
                Some(update) => {
                    let (rows, _kept) = update.rows_of(gpu, x, (t, d))?;
                    Some(rms_norm(gpu, (rows, norm.weight), (update.rows.1, d), constants)?)
                }
            };
            Ok(Self { rounded, adapted })
        }
    }

    unsafe fn through(&self, gpu: &Gpu, map: &Map<'_>, t: usize) -> Result<CudaSlice<f32>> {
        let y = gpu.alloc(t * map.dims.0)?;
        let adapted = self.adapted.as_ref().map(|rows| gpu.pointer(rows));
        // SAFETY: as the caller says; `y` was made of its size.
        unsafe { map.run(gpu, (gpu.pointer(&self.rounded), adapted, gpu.pointer(&y)), t, false)? };
        Ok(y)
    }
}

/// `norm(x) W^T` for each map on bf16 weights; updates act on the same rows in all of them.
///
/// # Safety
/// `x` leads to `[t, d]` numbers, and the maps take d.
pub(crate) unsafe fn norm_linears(
    gpu: &Gpu,
    x: Pointer,
    norm: Norm,
    (t, d): (usize, usize),
    maps: &[Map<'_>],
) -> Result<Vec<CudaSlice<f32>>> {
    // SAFETY: as the caller says.
    unsafe {
        let normed = Normed::new(gpu, x, norm, (t, d), maps)?;
        maps.iter().map(|map| normed.through(gpu, map, t)).collect()
    }
}

/// `y += x W^T` on bf16 weights.
///
/// # Safety
/// `y` leads to `[t, out]` numbers, `x` to `[t, in]`.
pub(crate) unsafe fn add_linear(gpu: &Gpu, (y, x): (Pointer, Pointer), map: Map<'_>, t: usize) -> Result<()> {
    let (_, input) = map.dims;
    // SAFETY: as the caller says.
    unsafe {
        let rounded = to_bf16(gpu, x, t * input)?;
        let (rows, _kept) = match map.update {
            Some(update) => {
                let (rows, kept) = update.rows_of(gpu, x, (t, input))?;
                (Some(rows), kept)
            }
            None => (None, None),
        };
        map.run(gpu, (gpu.pointer(&rounded), rows, y), t, true)
    }
}

/// `x += (act(norm(x) G^T) * norm(x) U^T) D^T` on bf16 weights; updates act on the same rows in all maps.
///
/// # Safety
/// `x` leads to `[t, d]` numbers, and the maps are gate and up `[f, d]` and down `[d, f]`.
pub(crate) unsafe fn feed_forward(
    gpu: &Gpu,
    x: Pointer,
    norm: Norm,
    [gate, up, down]: [Map<'_>; 3],
    (t, activation): (usize, i32),
) -> Result<()> {
    let (d, f) = down.dims;
    // SAFETY: as the caller says; what lies between was made of its size.
    unsafe {
        let normed = Normed::new(gpu, x, norm, (t, d), &[gate, up, down])?;
        let (gates, ups) = (normed.through(gpu, &gate, t)?, normed.through(gpu, &up, t)?);
        let (gates, ups) = (gpu.pointer(&gates), gpu.pointer(&ups));
        let hidden = gated_bf16(gpu, (gates, ups), t * f, activation)?;
        let rows = match &down.update {
            None => None,
            Some(update) => {
                let ((gates, _gates), (ups, _ups)) =
                    (update.rows_of(gpu, gates, (t, f))?, update.rows_of(gpu, ups, (t, f))?);
                Some(gated(gpu, (gates, ups), update.rows.1 * f, activation)?)
            }
        };
        let rows = rows.as_ref().map(|rows| gpu.pointer(rows));
        down.run(gpu, (gpu.pointer(&hidden), rows, x), t, true)
    }
}
