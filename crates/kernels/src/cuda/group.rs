//! Maps on bf16 weights that read the same rows, within a graph: rows are rounded once for all of them, and the updates'
//! As are one matrix.

use super::pointwise::{gated_bf16, to_bf16};
use super::rows::{gather_rows_as_they_are, rms_norm_bf16};
use super::{Arg, BLOCK_THREADS, Gpu, Map, Mat, Pointer, Precision, Product, Update, add_to_rows};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{Result, bail};
use half::bf16;

/// Rows of bf16 numbers on the GPU.
pub(crate) struct RoundedRows {
    gpu: &'static Gpu,
    numbers: CudaSlice<bf16>,
    /// How many, and how wide.
    shape: (usize, usize),
}

impl RoundedRows {
    /// f32 rows of this shape, rounded.
    ///
    /// # Safety
    /// `x` leads to as many numbers.
    pub(crate) unsafe fn of(gpu: &'static Gpu, x: Pointer, shape: (usize, usize)) -> Result<Self> {
        // SAFETY: as the caller says.
        Ok(Self { gpu, numbers: unsafe { to_bf16(gpu, x, shape.0 * shape.1)? }, shape })
    }

    /// f32 rows through a norm, rounded; `constants` as of [`super::rms_norm`].
    ///
    /// # Safety
    /// `x` leads to as many numbers, `w` to one for each column.
    pub(crate) unsafe fn normed(
        gpu: &'static Gpu,
        xw: (Pointer, Pointer),
        shape: (usize, usize),
        constants: (f32, f32),
    ) -> Result<Self> {
        // SAFETY: as the caller says.
        Ok(Self { gpu, numbers: unsafe { rms_norm_bf16(gpu, xw, shape, constants)? }, shape })
    }

    /// `act(gate) * up` of f32 rows, rounded.
    ///
    /// # Safety
    /// Both lead to as many numbers.
    pub(crate) unsafe fn gated(
        gpu: &'static Gpu,
        gate_up: (Pointer, Pointer),
        shape: (usize, usize),
        activation: i32,
    ) -> Result<Self> {
        // SAFETY: as the caller says.
        Ok(Self { gpu, numbers: unsafe { gated_bf16(gpu, gate_up, shape.0 * shape.1, activation)? }, shape })
    }

    /// Gradients of gate and up, rounded, from that of `act(gate) * up`.
    ///
    /// # Safety
    /// All lead to as many numbers.
    pub(crate) unsafe fn gated_backward(
        gpu: &'static Gpu,
        (gate, up, dy): (Pointer, Pointer, Pointer),
        shape: (usize, usize),
        activation: i32,
    ) -> Result<[Self; 2]> {
        let count = shape.0 * shape.1;
        let found = [gpu.alloc(count)?, gpu.alloc(count)?].map(|numbers| Self { gpu, numbers, shape });
        let mut args: Vec<Arg> = [gate, up, dy].map(Arg::Pointer).to_vec();
        args.extend(found.iter().map(|rows| Arg::Pointer(rows.pointer(gpu))));
        args.extend([Arg::Size(count), Arg::Int(activation)]);
        // SAFETY: as the caller says; both gradients were made of that size.
        unsafe { gpu.launch_over("gated_backward_bf16", count, &args)? };
        Ok(found)
    }

    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn pointer(&self, gpu: &Gpu) -> Pointer {
        gpu.pointer(&self.numbers)
    }
}

/// As many runs as `Group` has: A and B of a handful of maps.
const MOST_RUNS: usize = 8;

/// Runs of f32 numbers that are rounded one behind the other, field by field as in cuda/elementwise.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Runs {
    x: [Pointer; MOST_RUNS],
    /// Of each run where it begins in what comes out, and behind the last where that ends.
    from: [u64; MOST_RUNS + 1],
}

// SAFETY: a plain struct of numbers, laid out as its twin in cuda/elementwise.cuh.
unsafe impl DeviceRepr for Runs {}

/// What the forward pass through updates keeps for the backward pass.
pub(crate) struct Group {
    /// bf16: the As one below the other, `[ranks, in]`, and behind them each B, `[out, r]`.
    updates: CudaSlice<bf16>,
    /// The rows that the updates act on, `[n, in]`, where those are not all.
    x_rows: Option<CudaSlice<bf16>>,
    /// What the As made of them, `[n, ranks]`.
    downs: CudaSlice<bf16>,
}

/// Gradients of maps that read the same rows.
pub(crate) struct GroupGradients {
    pub(crate) dx: CudaSlice<f32>,
    /// Of the As one below the other, `[ranks, in]`, and of each B, where there are updates.
    pub(crate) updates: Option<(CudaSlice<f32>, Vec<CudaSlice<f32>>)>,
}

/// The address so many bf16 numbers on.
fn at(pointer: Pointer, numbers: usize) -> Pointer {
    pointer + (numbers * size_of::<bf16>()) as Pointer
}

/// Of each map with an update, in order: the map, the update, and where in the As' rows its own begin.
fn updates<'a, 'b>(maps: &'b [Map<'a>]) -> impl Iterator<Item = (usize, &'b Map<'a>, Update, usize)> {
    let mut from = 0;
    let of_map = move |(i, map): (usize, &'b Map<'a>)| {
        let update = map.update?;
        from += update.rank;
        Some((i, map, update, from - update.rank))
    };
    maps.iter().enumerate().filter_map(of_map)
}

/// The rows that updates act on, and the sum of their ranks.
fn common(maps: &[Map<'_>]) -> Option<((Pointer, usize), usize)> {
    let first = maps.iter().find_map(|map| map.update)?;
    Some((first.rows, updates(maps).map(|(_, _, update, _)| update.rank).sum()))
}

/// The As and Bs as bf16, as [`Group`] has them.
///
/// # Safety
/// The pointers of the updates lead to matrices of their sizes.
unsafe fn round_updates(gpu: &Gpu, maps: &[Map<'_>], input: usize) -> Result<CudaSlice<bf16>> {
    let a = updates(maps).map(|(_, _, update, _)| (update.a, update.rank * input));
    let b = updates(maps).map(|(_, map, update, _)| (update.b, update.rank * map.dims.0));
    let (mut runs, mut count, mut end, mut most) = (Runs::default(), 0, 0, 0);
    for (x, numbers) in a.chain(b) {
        if count == MOST_RUNS {
            bail!("linear: updates of {} maps at once, expected at most {}", maps.len(), MOST_RUNS / 2);
        }
        (runs.x[count], count, end, most) = (x, count + 1, end + numbers, most.max(numbers));
        runs.from[count] = end as u64;
    }
    let rounded = gpu.alloc::<bf16>(end)?;
    let blocks = most.div_ceil(4 * BLOCK_THREADS as usize);
    let args = [Arg::Runs(runs), Arg::Pointer(gpu.pointer(&rounded))];
    // SAFETY: as the caller says; the result was made of the sum of the sizes.
    unsafe { gpu.launch("runs_to_bf16", ((blocks, count, 1), BLOCK_THREADS, 0), &args)? };
    Ok(rounded)
}

/// Of each map with an update, where its B begins behind the As.
fn places_of_bs(gpu: &Gpu, rounded: &CudaSlice<bf16>, maps: &[Map<'_>], as_end: usize) -> Vec<Pointer> {
    let mut from = as_end;
    let of_map = |(_, map, update, _): (usize, &Map<'_>, Update, usize)| {
        let place = at(gpu.pointer(rounded), from);
        from += update.rank * map.dims.0;
        place
    };
    updates(maps).map(of_map).collect()
}

const BF16: Precision = Precision::Bf16;

/// The rows of `x` that updates act on: all, or copies to be kept.
///
/// # Safety
/// The rows' numbers are rows of `x`.
unsafe fn adapted(gpu: &Gpu, x: &RoundedRows, rows: (Pointer, usize)) -> Result<Option<CudaSlice<bf16>>> {
    if rows.1 == x.shape.0 {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    unsafe { gather_rows_as_they_are(gpu, &x.numbers, rows, x.shape.1).map(Some) }
}

/// What each map makes of `x`, `[t, out]` in f32.
///
/// # Safety
/// The maps take rows of the width of `x`; the pointers of updates lead to matrices of their sizes, and all updates act on
/// the same rows of `x`.
pub(crate) unsafe fn forward(
    gpu: &Gpu,
    maps: &[Map<'_>],
    x: &RoundedRows,
) -> Result<(Vec<CudaSlice<f32>>, Option<Group>)> {
    let (t, input) = x.shape;
    let frozen = |map: &Map<'_>| {
        let y = gpu.alloc::<f32>(t * map.dims.0)?;
        // SAFETY: as the caller says; `y` was made of its size.
        unsafe { map.weight.product(gpu, (x.pointer(gpu), gpu.pointer(&y)), (t, map.dims.0, input), false)? };
        Ok(y)
    };
    let ys = maps.iter().map(frozen).collect::<Result<Vec<_>>>()?;
    let Some((rows, ranks)) = common(maps) else { return Ok((ys, None)) };
    let n = rows.1;
    // SAFETY: as the caller says; what lies between was made of its size.
    unsafe {
        let rounded = round_updates(gpu, maps, input)?;
        let bs = places_of_bs(gpu, &rounded, maps, ranks * input);
        let x_rows = adapted(gpu, x, rows)?;
        let x_at = x_rows.as_ref().map_or_else(|| x.pointer(gpu), |rows| gpu.pointer(rows));
        let downs = gpu.alloc::<bf16>(n * ranks)?;
        let (down_at, a) = (gpu.pointer(&downs), Mat::transposed(gpu.pointer(&rounded), input));
        let product = Product::new(BF16, (n, ranks, input), Mat::rows(x_at, input), a, down_at);
        Product { rounds: true, ..product }.run(gpu)?;
        for ((i, map, update, from), b) in updates(maps).zip(bs) {
            let (out, down) = (map.dims.0, Mat::rows(at(down_at, from), ranks));
            let up = |y, add| {
                let b = Mat::transposed(b, update.rank);
                let product = Product::new(BF16, (n, out, update.rank), down, b, y);
                Product { alpha: update.scale, add, ..product }.run(gpu)
            };
            let y = gpu.pointer(&ys[i]);
            if n == t {
                up(y, true)?;
            } else {
                let found = gpu.alloc::<f32>(n * out)?;
                up(gpu.pointer(&found), false)?;
                add_to_rows(gpu, (gpu.pointer(&found), y), rows, out)?;
            }
        }
        Ok((ys, Some(Group { updates: rounded, x_rows, downs })))
    }
}

/// Gradients by `x` and the updates, from that of what each map made of it.
///
/// # Safety
/// As of [`forward`], which gave `group`; a gradient has the shape of what it is of.
pub(crate) unsafe fn backward(
    gpu: &Gpu,
    (maps, group): (&[Map<'_>], Option<&Group>),
    x: &RoundedRows,
    dys: &[&RoundedRows],
) -> Result<GroupGradients> {
    let (t, input) = x.shape;
    let dx = gpu.alloc::<f32>(t * input)?;
    for (i, (map, dy)) in maps.iter().zip(dys).enumerate() {
        let (out, weight) = (map.dims.0, Mat::rows(map.weight.pointer(gpu), input));
        let product = Product::new(BF16, (t, input, out), Mat::rows(dy.pointer(gpu), out), weight, gpu.pointer(&dx));
        // SAFETY: as the caller says; `dx` was made of its size.
        unsafe { Product { add: i > 0, ..product }.run(gpu)? };
    }
    let (Some((rows, ranks)), Some(group)) = (common(maps), group) else {
        return Ok(GroupGradients { dx, updates: None });
    };
    let n = rows.1;
    let d_downs = gpu.alloc::<bf16>(n * ranks)?;
    let (d_down_at, a) = (gpu.pointer(&d_downs), Mat::rows(gpu.pointer(&group.updates), input));
    let x_at = group.x_rows.as_ref().map_or_else(|| x.pointer(gpu), |rows| gpu.pointer(rows));
    // SAFETY: as the caller says; what lies between was made of its size.
    unsafe {
        let mut dbs = Vec::new();
        let bs = places_of_bs(gpu, &group.updates, maps, ranks * input);
        for ((i, map, update, from), b) in updates(maps).zip(bs) {
            let (out, rank) = (map.dims.0, update.rank);
            let kept = adapted(gpu, dys[i], rows)?;
            let dy = kept.as_ref().map_or_else(|| dys[i].pointer(gpu), |rows| gpu.pointer(rows));
            let b = Mat::rows(b, rank);
            let product = Product::new(BF16, (n, rank, out), Mat::rows(dy, out), b, at(d_down_at, from));
            Product { alpha: update.scale, rounds: true, c_stride: ranks, ..product }.run(gpu)?;
            let (db, down) = (gpu.alloc::<f32>(out * rank)?, Mat::rows(at(gpu.pointer(&group.downs), from), ranks));
            let product = Product::new(BF16, (out, rank, n), Mat::transposed(dy, out), down, gpu.pointer(&db));
            Product { alpha: update.scale, ..product }.run(gpu)?;
            dbs.push(db);
        }
        let da = gpu.alloc::<f32>(ranks * input)?;
        let (d_down_t, x_rows) = (Mat::transposed(d_down_at, ranks), Mat::rows(x_at, input));
        Product::new(BF16, (ranks, input, n), d_down_t, x_rows, gpu.pointer(&da)).run(gpu)?;
        let through = |c, add| {
            let product = Product::new(BF16, (n, input, ranks), Mat::rows(d_down_at, ranks), a, c);
            Product { add, ..product }.run(gpu)
        };
        if n == t {
            through(gpu.pointer(&dx), true)?;
        } else {
            let found = gpu.alloc::<f32>(n * input)?;
            through(gpu.pointer(&found), false)?;
            add_to_rows(gpu, (gpu.pointer(&found), gpu.pointer(&dx)), rows, input)?;
        }
        Ok(GroupGradients { dx, updates: Some((da, dbs)) })
    }
}
