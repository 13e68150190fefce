//! Blocks of outputs on the tile units of x86-64 (Intel AMX: Intel SDM volume 1, chapter 18).
//!
//! The intrinsics are not stable in Rust, so the instructions are written out. No tile outlives one `asm` block.

use crate::bf16::{BLOCK, FEW_ROWS, Format};
use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether the CPU has tiles of the format and the system lets this process use them.
pub(crate) fn is_available(format: Format) -> bool {
    static AVAILABLE: OnceLock<[bool; 2]> = OnceLock::new();
    AVAILABLE.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        let permitted = leaf.edx & TILE != 0 && permitted();
        [BF16, INT8].map(|numbers| leaf.edx & numbers != 0 && permitted)
    })[format as usize]
}

/// Asks the kernel for the tile state, which it allocates for processes that ask alone.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a system call that takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The argument of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// How many [`Tiles`] of this thread live.
    static LIVING: Cell<usize> = const { Cell::new(0) };
}

/// Eight tiles of 16 rows of 64 bytes, for this thread while this or another of the thread's lives.
pub(crate) struct Tiles {
    /// Tiles are those of the thread that set them up.
    _of_thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Sets the tiles up; [`is_available`] has said yes to one of the formats.
    pub(crate) fn new() -> Self {
        assert!(is_available(Format::Bf16) || is_available(Format::Int8), "tiles on a machine without them");
        if LIVING.replace(LIVING.get() + 1) == 0 {
            let mut config =
                Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
            config.bytes_per_row[..8].fill(64);
            config.rows[..8].fill(16);
            // SAFETY: the instruction exists here, and reads the 64 bytes of `config`.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags)) };
        }
        Self { _of_thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if LIVING.replace(LIVING.get() - 1) == 1 {
            // SAFETY: the instruction exists here, or `new` would have stopped.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }
}

/// Weights that are fetched while a block is computed, into the second-level cache or the nearest: they are more than those
/// hold.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    next: *const u16,
    lines: Lines,
}

// Four lines with each step of so many blocks are a panel; a step of a panel is 32 lines, 2,048 bytes.
const _: () = assert!(FEW_ROWS / BLOCK * 4 == BLOCK && BLOCK == 32);

/// What is fetched with each step.
#[derive(Clone, Copy)]
enum Lines {
    None,
    Four,
}

impl Ahead {
    /// The share of block `block` in fetching the panel at `panel`, which the same rows meet next: an eighth. Many rows meet
    /// panels that have stayed. The panel need not be one of ours: what is asked for is not read.
    pub(crate) fn new(panel: *const u16, (block, num_blocks): (usize, usize), steps: usize) -> Self {
        const FEW: usize = FEW_ROWS / BLOCK;
        let lines = if num_blocks <= FEW { Lines::Four } else { Lines::None };
        Self { next: panel.wrapping_add(block * steps * 4 * BLOCK), lines }
    }
}

/// The sums of a block are zero, or with `keep` what is there.
macro_rules! start {
    () => {
        "test {keep:e}, {keep:e}
         jnz 2f
         tilezero tmm0
         tilezero tmm1
         tilezero tmm2
         tilezero tmm3
         jmp 3f
         2:
         tileloadd tmm0, [{c} + {c_stride}*1]
         tileloadd tmm1, [{c} + {c_stride}*1 + 64]
         tileloadd tmm2, [{c_low} + {c_stride}*1]
         tileloadd tmm3, [{c_low} + {c_stride}*1 + 64]"
    };
}

/// The sums of a block are written.
macro_rules! end {
    () => {
        "tilestored [{c} + {c_stride}*1], tmm0
         tilestored [{c} + {c_stride}*1 + 64], tmm1
         tilestored [{c_low} + {c_stride}*1], tmm2
         tilestored [{c_low} + {c_stride}*1 + 64], tmm3"
    };
}

/// The four products of two tiles of rows and two of columns.
macro_rules! dots {
    ($dot:literal) => {
        concat!(
            concat!($dot, " tmm0, tmm4, tmm6\n"),
            concat!($dot, " tmm1, tmm4, tmm7\n"),
            concat!($dot, " tmm2, tmm5, tmm6\n"),
            concat!($dot, " tmm3, tmm5, tmm7"),
        )
    };
}

/// The sums of a block, with instructions that fetch among those of a step. A macro, because a loop over a number of lines
/// takes a twentieth of a product that does not wait for memory.
macro_rules! sums {
    ($dot:literal, [$($fetch:literal),*], [$($more:literal),*], $of:ident) => {{
        let ((a, a_stride), (b, next), steps, (c, c_stride, keep)) = $of;
        asm!(
            start!(),
            "3:",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            $($fetch,)*
            "tileloadd tmm6, [{b} + {b_stride}*1]",
            "tileloadd tmm7, [{b} + {b_stride}*1 + 64]",
            $($more,)*
            "tileloadd tmm5, [{a_low} + {a_stride}*1]",
            dots!($dot),
            "add {a}, 64",
            "add {a_low}, 64",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            end!(),
            keep = inout(reg) u32::from(keep) => _,
            a = inout(reg) a => _,
            a_low = inout(reg) a.byte_add(16 * a_stride) => _,
            a_stride = in(reg) a_stride,
            b = inout(reg) b => _,
            next = inout(reg) next => _,
            b_stride = in(reg) 128usize,
            steps = inout(reg) steps => _,
            c = in(reg) c,
            c_low = in(reg) c.add(16 * c_stride),
            c_stride = in(reg) c_stride * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

/// The same with each kind of fetching.
macro_rules! fetching {
    // An operand must be named.
    (none, $dot:literal, $of:ident) => {
        sums!($dot, [], ["/* {next} */"], $of)
    };
    (four, $dot:literal, $of:ident) => {
        sums!(
            $dot,
            ["prefetcht1 [{next}]", "prefetcht1 [{next} + 64]"],
            ["prefetcht1 [{next} + 128]", "prefetcht1 [{next} + 192]", "add {next}, 256"],
            $of
        )
    };
    (all, $dot:literal, $of:ident) => {
        sums!(
            $dot,
            [
                "mov {keep:e}, 32",
                "4:",
                "prefetcht1 [{next}]",
                "prefetcht0 [{next} - 2048]",
                "add {next}, 64",
                "dec {keep:e}",
                "jnz 4b"
            ],
            [],
            $of
        )
    };
}

/// `c = a b`, or `c += a b` with `keep`: 32 rows of `steps` lines at `a`, so many bytes apart, by a panel of 32 columns at
/// `b`; rows of `c` so many numbers apart, which are whole ones of 32 bits where those of `a` and `b` have eight. Some of
/// what comes next is fetched with each step.
///
/// # Safety
/// [`Tiles`] are set up on this thread; `a` has 32 rows, `b` has `32 * steps` lines, `c` 32 rows of 32 numbers, which hold
/// numbers if they are kept; `steps` is at least 1.
#[inline]
pub(crate) unsafe fn block(
    format: Format,
    a: (*const u16, usize),
    (b, ahead): (*const u16, Ahead),
    steps: usize,
    output: (*mut f32, usize, bool),
) {
    let of = (a, (b, ahead.next), steps, output);
    // SAFETY: the instructions exist here; they read and write what the caller says is there.
    unsafe {
        match (format, ahead.lines) {
            (Format::Bf16, Lines::None) => fetching!(none, "tdpbf16ps", of),
            (Format::Int8, Lines::None) => fetching!(none, "tdpbssd", of),
            (Format::Bf16, Lines::Four) => fetching!(four, "tdpbf16ps", of),
            (Format::Int8, Lines::Four) => fetching!(four, "tdpbssd", of),
        }
    }
}

/// As [`block`], of rows that are all there are, so that all that is read of `b` is waited for: each step asks for the second
/// behind it, and once more, into the nearest cache, for the first.
///
/// # Safety
/// As of [`block`].
#[inline]
pub(crate) unsafe fn block_alone(
    format: Format,
    a: (*const u16, usize),
    b: *const u16,
    steps: usize,
    output: (*mut f32, usize, bool),
) {
    let of = (a, (b, b.wrapping_add(2 * BLOCK * BLOCK)), steps, output);
    // SAFETY: as of `block`.
    unsafe {
        match format {
            Format::Bf16 => fetching!(all, "tdpbf16ps", of),
            Format::Int8 => fetching!(all, "tdpbssd", of),
        }
    }
}

/// Pieces of a number, each of bf16.
pub(crate) const PIECES: usize = 3;
/// Lines of the pieces of 32 rows or columns over 32 summands.
pub(crate) const LINES_OF_STEP: usize = PIECES * BLOCK;
/// Lines that are fetched into the second-level cache with each such step.
pub(crate) const FETCHED_LINES: usize = 24;

// What `block_of_pieces` has written out.
const _: () = assert!(FETCHED_LINES == 6 * 4 && BLOCK == 32);

/// Two tiles, those of one piece of the rows or of the columns.
macro_rules! piece {
    ($first:literal, $second:literal, $of:literal, $piece:literal) => {
        concat!(
            concat!("tileloadd ", $first, ", [{", $of, "} + {line}*1 + 2048*", $piece, "]\n"),
            concat!("tileloadd ", $second, ", [{", $of, "} + {line}*1 + 2048*", $piece, " + 1024]"),
        )
    };
}

/// The four products of what is loaded, and a sixth of what a step fetches.
macro_rules! products {
    () => {
        concat!(
            "prefetcht1 [{next}]
             prefetcht1 [{next} + 64]
             prefetcht1 [{next} + 128]
             prefetcht1 [{next} + 192]
             add {next}, 256\n",
            dots!("tdpbf16ps")
        )
    };
}

/// `c = a b`, or `c += a b` with `keep`, of numbers in pieces: 32 rows by 32 columns, `steps` times 32 summands. A step of
/// `a` is its pieces, of each the lines of 32 rows; one of `b` its pieces, of each the sixteen lines of pairs of summands for
/// the left sixteen columns, then for the right. From `next` on, [`FETCHED_LINES`] for each step are asked for.
///
/// # Safety
/// [`Tiles`] are set up on this thread; `a` and `b` have [`LINES_OF_STEP`] lines for each step, of which there is at least
/// one; `c` has 32 rows of 32 numbers, `c_stride` numbers apart, which hold numbers if they are kept.
#[inline]
pub(crate) unsafe fn block_of_pieces(
    a: *const u16,
    (b, next): (*const u16, *const u16),
    steps: usize,
    (c, c_stride, keep): (*mut f32, usize, bool),
) {
    // The order changes one operand at a time, and has the small products come before the large one.
    // SAFETY: the instructions exist here; they read and write what the caller says is there.
    unsafe {
        asm!(
            start!(),
            "3:",
            piece!("tmm4", "tmm5", "a", 2),
            piece!("tmm6", "tmm7", "b", 0),
            products!(),
            piece!("tmm4", "tmm5", "a", 1),
            products!(),
            piece!("tmm6", "tmm7", "b", 1),
            products!(),
            piece!("tmm4", "tmm5", "a", 0),
            products!(),
            piece!("tmm6", "tmm7", "b", 2),
            products!(),
            piece!("tmm6", "tmm7", "b", 0),
            products!(),
            "add {a}, {step}",
            "add {b}, {step}",
            "dec {steps}",
            "jnz 3b",
            end!(),
            keep = in(reg) u32::from(keep),
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            next = inout(reg) next => _,
            line = in(reg) 64usize,
            step = const LINES_OF_STEP * 64,
            steps = inout(reg) steps => _,
            c = in(reg) c,
            c_low = in(reg) c.add(16 * c_stride),
            c_stride = in(reg) c_stride * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
