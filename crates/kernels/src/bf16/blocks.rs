//! Products a block at a time.

use super::{BLOCK, Line, Packed, Units, round, round_line};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512};
use std::marker::PhantomData;

/// Rows rounded to bf16, each padded with zeros to whole lines, and rows of zeros up to whole blocks.
pub(crate) struct Rounded {
    pub(super) lines: Vec<Line>,
    pub(super) steps: usize,
}

impl Rounded {
    /// Rows of zeros, `width` numbers each.
    pub(crate) fn zeros(rows: usize, width: usize) -> Self {
        let steps = width.div_ceil(BLOCK);
        Self { lines: vec![Line([0; BLOCK]); rows.next_multiple_of(BLOCK) * steps], steps }
    }

    /// Rows of `width` numbers.
    pub(crate) fn of(x: &[f32], width: usize) -> Self {
        let (rows, steps) = (x.len() / width, width.div_ceil(BLOCK));
        let mut lines = Vec::with_capacity(rows.next_multiple_of(BLOCK) * steps);
        x.chunks_exact(width).for_each(|x| lines.extend(round_row(x)));
        lines.resize(rows.next_multiple_of(BLOCK) * steps, Line([0; BLOCK]));
        Self { lines, steps }
    }

    pub(crate) fn set_row(&mut self, row: usize, x: &[f32]) {
        for (to, line) in self.lines[row * self.steps..(row + 1) * self.steps].iter_mut().zip(round_row(x)) {
            *to = line;
        }
    }

    /// Numbers `32 * at..` of a row.
    pub(crate) fn set_line(&mut self, row: usize, at: usize, x: &[f32; BLOCK]) {
        self.lines[row * self.steps + at] = round_line(x);
    }
}

fn round_row(x: &[f32]) -> impl Iterator<Item = Line> {
    let (whole, rest) = x.as_chunks::<BLOCK>();
    let last = (!rest.is_empty()).then(|| Line(std::array::from_fn(|i| rest.get(i).map_or(0, |x| round(*x)))));
    whole.iter().map(round_line).chain(last)
}

/// 32 x 32 outputs, row by row; a half row is a cache line.
#[repr(C, align(64))]
pub(crate) struct Outputs(pub(crate) [[f32; BLOCK]; BLOCK]);

impl Outputs {
    pub(crate) fn new() -> Self {
        Self([[0.0; BLOCK]; BLOCK])
    }
}

/// The units of this thread, for products a block at a time, so that more can be done to outputs while they are in the
/// nearest cache. Each block has the bits that [`Packed::product`] gives.
pub(crate) struct Blocks {
    units: Units,
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::Tiles>,
    /// Tiles are those of the thread that set them up.
    _of_thread: PhantomData<*const ()>,
}

impl Blocks {
    /// None where the machine has no units for bf16. One at a time on a thread, and no [`Packed::product`] beside it: the
    /// end of either takes the tiles away.
    pub(crate) fn new() -> Option<Self> {
        let units = Units::best();
        (units != Units::Portable).then(|| Self {
            units,
            #[cfg(target_arch = "x86_64")]
            _tiles: (units == Units::Amx).then(amx::Tiles::new),
            _of_thread: PhantomData,
        })
    }

    /// Rows `first..first + 32` of `x` by a panel of 32 columns of `b`; columns beyond the matrix are zero.
    #[inline]
    pub(crate) fn product(&self, x: &Rounded, first: usize, b: &Packed, panel: usize, out: &mut Outputs) {
        let steps = x.steps;
        assert_eq!(steps, b.k.div_ceil(BLOCK), "product: rows of another width");
        let a = x.lines[first * steps..(first + BLOCK) * steps].as_ptr().cast::<u16>();
        let b = b.lines[panel * steps * BLOCK..(panel + 1) * steps * BLOCK].as_ptr().cast::<u16>();
        let c = out.0.as_mut_ptr().cast::<f32>();
        match self.units {
            #[cfg(target_arch = "x86_64")]
            Units::Amx => {
                // While the first eight blocks of rows go by, the next panel comes near.
                let next = b.wrapping_add(steps * BLOCK * BLOCK + first / BLOCK * steps * 4 * BLOCK);
                // SAFETY: the units were found to be there and the tiles are set up on this thread; the slices above
                // have the rows and lines that are read, `out` the numbers that are written.
                unsafe { amx::block((a, steps * 64), (b, next), steps, (c, BLOCK), false) };
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Units::Avx512 => unsafe { avx512::block((a, steps * 64), b, steps, (c, BLOCK), false) },
            Units::Portable => unreachable!("`new` has none of these ({a:?}, {b:?}, {c:?})"),
        }
    }
}
