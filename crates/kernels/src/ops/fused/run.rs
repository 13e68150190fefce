//! What a task does of a part on the CPU: its rows through the blocks of a map, and what is done to each block.

use crate::bf16::{BLOCK, Blocks, ByLine, Format, Outputs, Packed, Rounded};
use crate::ops::rms_norm::RmsNorm;
use crate::ops::row_update::RowUpdate;
use crate::ops::swiglu::Activation;
use std::mem::MaybeUninit;

/// A map on slices.
pub(super) struct Ready<'a> {
    packed: &'a Packed,
    out: usize,
    update: Option<RowUpdate<'a>>,
}

impl<'a> Ready<'a> {
    /// A map of `out` outputs.
    pub(super) fn new(packed: &'a Packed, out: usize, update: Option<RowUpdate<'a>>) -> Self {
        Self { packed, out, update }
    }

    /// What the update adds to its rows comes from these, `[n, r]`; nothing without an update.
    pub(super) fn downs(&self, rows: &[&[f32]]) -> Vec<f32> {
        self.update.as_ref().map(|update| update.downs(rows)).unwrap_or_default()
    }

    fn num_panels(&self) -> usize {
        self.out.div_ceil(BLOCK)
    }

    pub(super) fn format(&self) -> Format {
        self.packed.format()
    }
}

/// The adapted ones of a task's rows: place of a row among them.
pub(super) struct Adapted(Vec<Option<usize>>);

impl Adapted {
    pub(super) fn new(rows: &[u32], first: usize, count: usize) -> Self {
        let mut places = vec![None; count];
        let from = rows.partition_point(|row| (*row as usize) < first);
        for (place, row) in rows[from..].iter().take_while(|row| (**row as usize) < first + count).enumerate() {
            places[*row as usize - first] = Some(place);
        }
        Self(places)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter_map(|(row, place)| place.map(|_| row))
    }

    /// Adds an update to the rows `first..` of a block of outputs.
    #[inline]
    fn add(&self, map: &Ready<'_>, downs: &[f32], (first, panel): (usize, usize), outputs: &mut Outputs) {
        let Some(update) = &map.update else { return };
        let columns = BLOCK.min(map.out - panel * BLOCK);
        for (place, outputs) in self.0[first..].iter().zip(&mut outputs.0) {
            if let Some(place) = place {
                update.add(&downs[place * update.rank..(place + 1) * update.rank], panel, &mut outputs[..columns]);
            }
        }
    }
}

/// Rows of a task that go through a norm: as f32 where they are adapted, and rounded.
pub(super) struct Normed {
    pub(super) rounded: Rounded,
    pub(super) adapted: Vec<f32>,
}

impl Normed {
    pub(super) fn new(format: Format, x: &[f32], norm: (&RmsNorm, &[f32]), adapted: &Adapted) -> Self {
        let width = norm.1.len();
        let mut rounded = Rounded::zeros(format, x.len() / width, width);
        let (mut row_of, mut kept) = (vec![0f32; width], Vec::new());
        for (row, x) in x.chunks_exact(width).enumerate() {
            row_of.iter_mut().zip(norm.0.row(x, norm.1)).for_each(|(y, x)| *y = x);
            rounded.set_row(row, &row_of);
            if adapted.0[row].is_some() {
                kept.extend_from_slice(&row_of);
            }
        }
        Self { rounded, adapted: kept }
    }
}

/// A block of outputs: a panel of columns and the rows from `first` on.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    first: usize,
    rows: usize,
}

/// The blocks of so many rows and panels, a panel at a time.
fn places(rows: usize, panels: usize) -> impl Iterator<Item = Place> {
    let blocks =
        move |panel| (0..rows).step_by(BLOCK).map(move |first| Place { panel, first, rows: BLOCK.min(rows - first) });
    (0..panels).flat_map(blocks)
}

/// The products of `x` with each of the maps, a block at a time, which `done` is given.
#[inline(always)]
fn for_blocks<const N: usize>(
    maps: [&Ready<'_>; N],
    x: &Rounded,
    rows: usize,
    mut done: impl FnMut(Place, &mut [Outputs; N]),
) {
    let units = Blocks::new(maps[0].format()).unwrap_or_else(|| unreachable!("`can_fuse` has said no"));
    let mut sums = [(); N].map(|()| Outputs::new());
    for place in places(rows, maps[0].num_panels()) {
        // All are asked for before the first is needed: tiles take their time.
        for (map, sums) in maps.iter().zip(&mut sums) {
            units.start(x, place.first, map.packed, place.panel, sums);
        }
        for (map, sums) in maps.iter().zip(&mut sums) {
            map.packed.finish(x, (place.first, place.panel), sums);
        }
        done(place, &mut sums);
    }
}

/// Every output of a task's rows, added to what `onto` has, if it has anything.
pub(super) fn product(
    map: &Ready<'_>,
    x: &Rounded,
    (adapted, downs): (&Adapted, &[f32]),
    onto: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    let out = map.out;
    for_blocks([map], x, y.len() / out, |place, [sums]| {
        let (first, panel) = (place.first, place.panel);
        adapted.add(map, downs, (first, panel), sums);
        let columns = BLOCK.min(out - panel * BLOCK);
        for (row, sums) in sums.0.iter().enumerate().take(place.rows) {
            let at = (first + row) * out + panel * BLOCK;
            let (y, onto) = (&mut y[at..at + columns], onto.map(|onto| &onto[at..at + columns]));
            match (y.first_chunk_mut::<BLOCK>(), onto.map(<[f32]>::first_chunk::<BLOCK>)) {
                // Lengths known to the compiler: a few vectors each.
                (Some(y), None) => y.iter_mut().zip(sums).for_each(|(y, sum)| {
                    y.write(*sum);
                }),
                (Some(y), Some(Some(onto))) => {
                    y.iter_mut().zip(onto).zip(sums).for_each(|((y, onto), sum)| {
                        y.write(onto + sum);
                    });
                }
                _ => y.iter_mut().zip(sums).enumerate().for_each(|(column, (y, sum))| {
                    y.write(onto.map_or(*sum, |onto| onto[column] + sum));
                }),
            }
        }
    });
}

pub(super) struct FeedForward<'a> {
    /// Gate, up, down.
    pub(super) maps: [Ready<'a>; 3],
    pub(super) norm: (&'a RmsNorm, &'a [f32]),
}

impl FeedForward<'_> {
    pub(super) fn run(&self, x: &[f32], adapted: &Adapted, y: &mut [MaybeUninit<f32>], activation: Activation) {
        let [gate, up, down] = &self.maps;
        let (d, f) = (down.out, gate.out);
        let rows = x.len() / d;
        let normed = Normed::new(gate.format(), x, self.norm, adapted);
        let normed_adapted: Vec<&[f32]> = normed.adapted.chunks(d).collect();
        let (gate_downs, up_downs) = (gate.downs(&normed_adapted), up.downs(&normed_adapted));
        let mut hidden = ByLine::new(down.format(), rows, f);
        let num_kept = if down.update.is_some() { adapted.rows().count() } else { 0 };
        let mut hidden_adapted = vec![0f32; num_kept * f];
        for_blocks([gate, up], &normed.rounded, rows, |place, [gates, ups]| {
            let (first, panel) = (place.first, place.panel);
            adapted.add(gate, &gate_downs, (first, panel), gates);
            adapted.add(up, &up_downs, (first, panel), ups);
            let columns = BLOCK.min(f - panel * BLOCK);
            for (row, (gates, ups)) in gates.0.iter().zip(&ups.0).enumerate().take(place.rows) {
                let mut line = [0f32; BLOCK];
                activation.line(gates, ups, &mut line);
                hidden.set_line(first + row, panel, &line);
                if let Some(place) = adapted.0[first + row].filter(|_| !hidden_adapted.is_empty()) {
                    hidden_adapted[place * f + panel * BLOCK..][..columns].copy_from_slice(&line[..columns]);
                }
            }
        });
        let down_downs = down.downs(&hidden_adapted.chunks(f).collect::<Vec<_>>());
        product(down, &hidden.finish(), (adapted, &down_downs), Some(x), y);
    }
}
