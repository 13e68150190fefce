//! What the machine can do, and what our products reach of it, for `cargo xtask bench`: fused multiply-adds of f32 and of
//! bf16 numbers in registers, reading memory, and products of the shapes in a model's layers. Prints one JSON object:
//! operations a second (a multiply-add is two) and bytes a second, of all threads together (`RAYON_NUM_THREADS`).

use kernels::ops::{RoundedProduct, Weight, linear};
use kernels::{Device, Matrix, StorageType, Tensor};
use rayon::prelude::*;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Outputs and inputs of the linear maps of SmolLM2-135M: query and output, key and value, gate and up, down.
const SHAPES: [(usize, usize); 4] = [(576, 576), (192, 576), (1536, 576), (576, 1536)];
const TOKENS: usize = 2048;
/// Weights that a token is multiplied with: of SmolLM2-135M as it is shipped, and of the shape of Llama 3.2 1B.
const OF_ONE_ROW: [(StorageType, usize, usize); 6] = [
    (StorageType::Q4_1, 1536, 576),
    (StorageType::Q4_0, 8192, 2048),
    (StorageType::Q4_1, 8192, 2048),
    (StorageType::Q8_0, 8192, 2048),
    (StorageType::Q4_K, 8192, 2048),
    (StorageType::Q6_K, 8192, 2048),
];
/// Bytes of weights that are multiplied one after the other: more than the caches near the cores hold.
const WEIGHTS: usize = 256 << 20;
/// Each figure is the best of so many tries: others use the machine too.
const TRIES: usize = 9;

#[global_allocator]
static ALLOCATOR: kernels::Allocator = kernels::Allocator;

fn main() -> Result<(), kernels::Error> {
    kernels::prepare_process();
    kernels::on_pool(print_all)
}

fn print_all() -> Result<(), kernels::Error> {
    let threads = rayon::current_num_threads();
    let units = units();
    let mut lines: Vec<String> = units.iter().map(|(name, flops)| format!("\"{name}\": {flops:.4e}")).collect();
    lines.push(format!("\"read_bytes\": {:.4e}", read_bandwidth(threads)));
    for (out, input) in SHAPES {
        for bf16 in [false, true] {
            let name = if bf16 { "bf16" } else { "f32" };
            lines.push(format!("\"product_{name}_{out}x{input}\": {:.4e}", product(out, input, bf16)?));
        }
        if let Some(rate) = product_of_rounded(out, input)? {
            lines.push(format!("\"product_bf16_rows_{out}x{input}\": {rate:.4e}"));
        }
    }
    for (storage_type, out, input) in OF_ONE_ROW {
        let bytes = read_by_products(storage_type, out, input)?;
        lines.push(format!("\"read_by_{storage_type:?}_{out}x{input}_bytes\": {bytes:.4e}"));
    }
    println!("{{\"threads\": {threads}, {}}}", lines.join(", "));
    Ok(())
}

/// The best rate of `work`, which does `amount` each time it runs.
fn best(amount: f64, mut work: impl FnMut()) -> f64 {
    work();
    let rate = |_| {
        let clock = Instant::now();
        work();
        amount / clock.elapsed().as_secs_f64()
    };
    (0..TRIES).map(rate).fold(0.0, f64::max)
}

/// Bytes a second that are read from an array larger than the caches near the cores.
fn read_bandwidth(threads: usize) -> f64 {
    let numbers = vec![1u64; 1 << 26]; // 512 MiB
    let share = numbers.len().div_ceil(threads);
    best((numbers.len() * 8) as f64, || {
        let sum: u64 =
            numbers.par_chunks(share).map(|chunk| chunk.iter().fold(0, |sum: u64, x| sum.wrapping_add(*x))).sum();
        black_box(sum);
    })
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

/// Operations a second of `[TOKENS, input] x [input, out]`, which `work` does.
fn rate(out: usize, input: usize, mut work: impl FnMut()) -> f64 {
    best(4.0 * (2 * TOKENS * input * out) as f64, || (0..4).for_each(|_| work()))
}

/// Operations a second of a product with f32 rows.
fn product(out: usize, input: usize, bf16: bool) -> Result<f64, kernels::Error> {
    let matrix = Matrix::from_f32(numbers(out * input), out, input)?;
    let weight = Weight::Frozen(Arc::new(if bf16 { matrix.to_bf16() } else { matrix }));
    let x = Tensor::from_vec(numbers(TOKENS * input), (TOKENS, input), &Device::Cpu)?;
    linear(&x, &weight, None, None)?;
    Ok(rate(out, input, || {
        black_box(linear(&x, &weight, None, None).ok());
    }))
}

/// Operations a second of a product with rows that are bf16 already, where there are units for them.
fn product_of_rounded(out: usize, input: usize) -> Result<Option<f64>, kernels::Error> {
    let matrix = Matrix::from_f32(numbers(out * input), out, input)?.to_bf16();
    let product = RoundedProduct::new(&numbers(TOKENS * input), &matrix);
    Ok(product.map(|product| {
        rate(out, input, || {
            black_box(product.run());
        })
    }))
}

/// Bytes of weights a second that products with one row read, from memory: matrices in turn.
fn read_by_products(storage_type: StorageType, out: usize, input: usize) -> Result<f64, kernels::Error> {
    let bytes = out * input / storage_type.block_size() * storage_type.type_size();
    // Numbers of any size but no infinity, which some patterns would stand for.
    let stored: Vec<u8> = (0..bytes).map(|i| (i * 7919 % 251) as u8 & 0x3b).collect();
    let matrices =
        (0..WEIGHTS / bytes).map(|_| Ok(Weight::Frozen(Arc::new(Matrix::new(storage_type, out, input, &stored)?))));
    let matrices = matrices.collect::<Result<Vec<_>, kernels::Error>>()?;
    let x = Tensor::from_vec(numbers(input), (1, input), &Device::Cpu)?;
    linear(&x, &matrices[0], None, None)?;
    Ok(best((bytes * matrices.len()) as f64, || {
        matrices.iter().for_each(|matrix| {
            black_box(linear(&x, matrix, None, None).ok());
        });
    }))
}

#[cfg(not(target_arch = "x86_64"))]
fn units() -> Vec<(&'static str, f64)> {
    Vec::new()
}

/// The multiply-add units of the machine, with their rates.
#[cfg(target_arch = "x86_64")]
fn units() -> Vec<(&'static str, f64)> {
    use std::arch::is_x86_feature_detected as has;
    let mut found = Vec::new();
    if has!("avx2") && has!("fma") {
        // SAFETY: the machine has the instructions.
        found.push(("f32_avx2", everywhere(8.0, || unsafe { x86::f32_avx2() })));
    }
    if has!("avx512f") {
        // SAFETY: as above.
        found.push(("f32_avx512", everywhere(16.0, || unsafe { x86::f32_avx512() })));
    }
    if has!("avx512f") && has!("avx512bf16") {
        // SAFETY: as above.
        found.push(("bf16_avx512", everywhere(32.0, || unsafe { x86::bf16_avx512() })));
    }
    if x86::has_tiles() {
        // SAFETY: as above, and the system lets this process use them.
        found.push(("bf16_amx", everywhere(x86::TILE_WIDTH, || unsafe { x86::bf16_amx() })));
    }
    found
}

/// Operations a second of all threads, each running `chains`, which does [`x86::STEPS`] times [`x86::CHAINS`]
/// multiply-adds of `width` numbers.
#[cfg(target_arch = "x86_64")]
fn everywhere(width: f64, chains: impl Fn() + Sync) -> f64 {
    let threads = rayon::current_num_threads();
    let amount = 2.0 * width * (x86::STEPS * x86::CHAINS * threads) as f64;
    best(amount, || (0..threads).into_par_iter().with_max_len(1).for_each(|_| chains()))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::hint::black_box;

    /// Sums that do not wait for each other: enough to fill two units of four or five cycles.
    pub(super) const CHAINS: usize = 12;
    pub(super) const STEPS: usize = 4_000_000;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2() {
        let x = black_box(_mm256_set1_ps(0.5));
        let mut sums = [_mm256_set1_ps(1.0); CHAINS];
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(x, x, *sum));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512() {
        let x = black_box(_mm512_set1_ps(0.5));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(x, x, *sum));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512() {
        // SAFETY: both are 512 bits; two bf16 halves in each lane.
        let x: __m512bh = unsafe { std::mem::transmute(black_box(_mm512_set1_epi32(0x3f00_3f00))) };
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
        }
        black_box(sums);
    }

    /// Multiply-adds of all steps here, four products of tiles each, over the [`STEPS`] times [`CHAINS`] of the others.
    pub(super) const TILE_WIDTH: f64 = (16 * 16 * 32 * 4 * TILE_STEPS) as f64 / (STEPS * CHAINS) as f64;
    const TILE_STEPS: usize = 1_000_000;

    /// Whether there are bf16 tiles that this process may use.
    #[cfg(target_os = "linux")]
    pub(super) fn has_tiles() -> bool {
        const REQUEST_PERMISSION: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        let (bf16, tile) = (1 << 22, 1 << 24);
        let flags = std::arch::x86_64::__cpuid_count(7, 0).edx;
        // SAFETY: a system call that takes two numbers and touches no memory of ours.
        flags & (bf16 | tile) == bf16 | tile
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn has_tiles() -> bool {
        false
    }

    #[repr(C, align(64))]
    struct Config([u8; 64]);

    /// Products of tiles in registers.
    pub(super) unsafe fn bf16_amx() {
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = 16;
        }
        // SAFETY: there are tiles, says the caller; 64 bytes are read, and no tile outlives the block.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "tilerelease",
                config = in(reg) &raw const config,
                steps = inout(reg) TILE_STEPS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
