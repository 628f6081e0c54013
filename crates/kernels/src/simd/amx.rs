//! Products of matrices in AMX's tiles: eight registers of 16 rows of 64 bytes, of which four hold sums, two the left
//! operand and two the right one. They take both operands as [`Left`] and packed lines have them.
//!
//! The instructions are written out, since Rust has no names for them yet.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Instant;

use super::{LANES, MATRIX_ROWS};
use crate::gemm::Left;
use crate::memory::{Line, ZERO};

/// Words of a row of an operand's register.
const DEPTH: usize = LANES;

/// Whether this processor has tiles for bf16 and bytes, and the system lets this process use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        /// Bits of CPUID's leaf 7: bf16, tiles, bytes.
        const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        __cpuid_count(7, 0).edx & FEATURES == FEATURES && is_permitted()
    })
}

/// Asks Linux for the registers, which it gives to no process that has not asked.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory of this process; it leaves all but these registers alone.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA, out("rcx") _, out("r11") _,
            options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What the registers of a thread are configured for: rows of the sums, and words of a row of an operand.
type Shape = (usize, usize);

/// As the processor reads it.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    fn new((rows, depth): Shape) -> Self {
        let mut new = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut register = |index: usize, rows: usize, words: usize| {
            // A register without rows has no columns either.
            if rows > 0 {
                (new.rows[index], new.row_bytes[index]) = (rows as u8, 4 * words as u16);
            }
        };
        let halves = [rows.min(LANES), rows.saturating_sub(LANES)];
        for (half, rows) in halves.into_iter().enumerate() {
            register(2 * half, rows, LANES);
            register(2 * half + 1, rows, LANES);
            register(4 + half, rows, depth);
            register(6 + half, depth, LANES);
        }
        new
    }
}

thread_local! {
    static CONFIGURED: Cell<Shape> = const { Cell::new((0, 0)) };
}

/// Configures this thread's registers, unless they are so already; sums are lost where they are not.
#[inline(always)]
fn configure(shape: Shape) {
    CONFIGURED.with(|configured| {
        if configured.get() != shape {
            let configuration = Configuration::new(shape);
            // SAFETY: the configuration is 64 bytes as the instruction reads them. No compiled code uses the registers.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly, preserves_flags)) };
            configured.set(shape);
        }
    });
}

/// Where the operands of one step stand: a register's words of each row of the left matrix, and as many rows of the right one.
#[derive(Clone, Copy)]
struct Step {
    left: *const u32,
    /// Bytes from row to row.
    left_stride: usize,
    right: *const u32,
    right_stride: usize,
}

macro_rules! step {
    ($product:literal, $step:expr, $rows:expr, $vectors:expr) => {
        match ($rows > LANES, $vectors) {
            (false, 1) => asm!(
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{left} + {left_stride}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                left = in(reg) $step.left, left_stride = in(reg) $step.left_stride,
                right = in(reg) $step.right, right_stride = in(reg) $step.right_stride,
                options(nostack, readonly, preserves_flags)
            ),
            (false, _) => asm!(
                "tileloadd tmm4, [{left} + {left_stride}]",
                "tileloadd tmm6, [{right} + {right_stride}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{right} + {right_stride} + 64]",
                concat!($product, " tmm1, tmm4, tmm7"),
                left = in(reg) $step.left, left_stride = in(reg) $step.left_stride,
                right = in(reg) $step.right, right_stride = in(reg) $step.right_stride,
                options(nostack, readonly, preserves_flags)
            ),
            (true, 1) => asm!(
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{left} + {left_stride}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm5, [{lower} + {left_stride}]",
                concat!($product, " tmm2, tmm5, tmm6"),
                left = in(reg) $step.left, left_stride = in(reg) $step.left_stride,
                lower = in(reg) $step.left.byte_add(LANES * $step.left_stride),
                right = in(reg) $step.right, right_stride = in(reg) $step.right_stride,
                options(nostack, readonly, preserves_flags)
            ),
            (true, _) => asm!(
                "tileloadd tmm4, [{left} + {left_stride}]",
                "tileloadd tmm6, [{right} + {right_stride}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{right} + {right_stride} + 64]",
                concat!($product, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{lower} + {left_stride}]",
                concat!($product, " tmm2, tmm5, tmm6"),
                concat!($product, " tmm3, tmm5, tmm7"),
                left = in(reg) $step.left, left_stride = in(reg) $step.left_stride,
                lower = in(reg) $step.left.byte_add(LANES * $step.left_stride),
                right = in(reg) $step.right, right_stride = in(reg) $step.right_stride,
                options(nostack, readonly, preserves_flags)
            ),
        }
    };
}

/// Adds a step to the sums.
///
/// # Safety
/// The registers are configured for these rows and for as many words as stand at `step`.
#[inline(always)]
unsafe fn add(is_bytes: bool, step: Step, rows: usize, vectors: usize) {
    // SAFETY: the caller promises that the operands are there.
    unsafe {
        match is_bytes {
            true => step!("tdpbusd", step, rows, vectors),
            false => step!("tdpbf16ps", step, rows, vectors),
        }
    }
}

/// The right operand: rows of words, one row for each word of a left row.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub start: *const u32,
    /// Words from row to row.
    pub stride: usize,
}

/// Writes to `tile`, whose rows start `tile_stride` lines after each other, the sums of `rows` × (`vectors` · 16) products of
/// pairs of bf16, or of unsigned with signed bytes. `next` is memory that will be read soon, `next_step` bytes of it for each
/// word of depth.
///
/// # Safety
/// The registers are there. `rows` is 1 to [`MATRIX_ROWS`], `vectors` 1 or 2. Every row of `left` lies within its words; `right`
/// has `vectors` lines in a row for every step of every segment; `tile` has `vectors` lines in each of `rows` rows.
#[inline(never)]
pub(crate) unsafe fn multiply(
    is_bytes: bool,
    left: Left,
    right: Rows,
    (rows, vectors): (usize, usize),
    tile: *mut Line,
    tile_stride: usize,
    (mut next, next_step): (*const u8, usize),
) {
    // Few words at a time where they come out even; else sixteen, and what is left is filled up with zeros.
    let parts = left.steps.div_ceil(DEPTH).max(1);
    let depth = if left.steps.is_multiple_of(parts) { left.steps / parts } else { DEPTH };
    if depth == 0 {
        for row in 0..rows {
            for vector in 0..vectors {
                // SAFETY: the caller promises that the tile has this line.
                unsafe { *tile.add(row * tile_stride + vector) = ZERO };
            }
        }
        return;
    }
    configure((rows, depth));
    let (left_stride, right_stride) = (4 * left.row_stride, 4 * right.stride);
    // SAFETY: sums of no rows are zeroed too; they are registers as any other.
    unsafe {
        asm!("tilezero tmm0", options(nomem, nostack, preserves_flags));
        if vectors > 1 {
            asm!("tilezero tmm1", options(nomem, nostack, preserves_flags));
        }
        if rows > LANES {
            asm!("tilezero tmm2", options(nomem, nostack, preserves_flags));
            if vectors > 1 {
                asm!("tilezero tmm3", options(nomem, nostack, preserves_flags));
            }
        }
    }
    let mut row = right.start;
    for &segment in left.segments {
        // SAFETY: the caller promises that what is read lies within the operands.
        unsafe {
            let mut group = left.words.as_ptr().add(left.start + segment);
            for _ in 0..left.steps / depth {
                add(is_bytes, Step { left: group, left_stride, right: row, right_stride }, rows, vectors);
                for line in (0..depth * next_step).step_by(size_of::<Line>()) {
                    asm!("prefetcht0 [{}]", in(reg) next.wrapping_add(line), options(nostack, readonly, preserves_flags));
                }
                next = next.wrapping_add(depth * next_step);
                group = group.add(depth);
                row = row.wrapping_add(depth * right.stride);
            }
            let rest = left.steps % depth;
            if rest > 0 {
                let (mut lefts, mut rights) = ([ZERO; MATRIX_ROWS], [[ZERO; 2]; DEPTH]);
                for (i, line) in lefts.iter_mut().enumerate().take(rows) {
                    group.add(i * left.row_stride).copy_to_nonoverlapping(line.0.as_mut_ptr(), rest);
                }
                for (i, lines) in rights.iter_mut().enumerate().take(rest) {
                    let from = row.add(i * right.stride);
                    from.copy_to_nonoverlapping(lines.as_mut_ptr().cast(), vectors * LANES);
                }
                let step = Step {
                    left: lefts.as_ptr().cast(),
                    left_stride: size_of::<Line>(),
                    right: rights.as_ptr().cast(),
                    right_stride: 2 * size_of::<Line>(),
                };
                add(is_bytes, step, rows, vectors);
                row = row.wrapping_add(rest * right.stride);
            }
        }
    }
    let stride = tile_stride * size_of::<Line>();
    // SAFETY: the caller promises that the tile has these rows.
    unsafe {
        asm!("tilestored [{} + {}], tmm0", in(reg) tile, in(reg) stride, options(nostack, preserves_flags));
        if vectors > 1 {
            asm!("tilestored [{} + {}], tmm1", in(reg) tile.add(1), in(reg) stride, options(nostack, preserves_flags));
        }
        if rows > LANES {
            let tile = tile.wrapping_add(LANES * tile_stride);
            asm!("tilestored [{} + {}], tmm2", in(reg) tile, in(reg) stride, options(nostack, preserves_flags));
            if vectors > 1 {
                asm!("tilestored [{} + {}], tmm3", in(reg) tile.add(1), in(reg) stride, options(nostack, preserves_flags));
            }
        }
    }
}

/// Operations a second, a multiplication and an addition being two, of products whose operands stay in registers, in about
/// `seconds`.
///
/// # Safety
/// The registers are there.
pub(crate) unsafe fn rate(is_bytes: bool, seconds: f64) -> f64 {
    const ROUNDS: usize = 10_000;
    macro_rules! products {
        ($product:literal) => {
            asm!(
                concat!($product, " tmm0, tmm4, tmm6"),
                concat!($product, " tmm1, tmm4, tmm7"),
                concat!($product, " tmm2, tmm5, tmm6"),
                concat!($product, " tmm3, tmm5, tmm7"),
                options(nomem, nostack, preserves_flags)
            )
        };
    }
    // What stands in the registers does not matter: numbers take as long as zeros.
    configure((MATRIX_ROWS, DEPTH));
    let (start, mut rounds) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < seconds {
        for _ in 0..ROUNDS {
            // SAFETY: the registers are configured, and nothing is kept in them between products.
            unsafe {
                match is_bytes {
                    true => products!("tdpbusd"),
                    false => products!("tdpbf16ps"),
                }
            }
        }
        rounds += ROUNDS;
    }
    let group = if is_bytes { 4 } else { 2 };
    let operations = 4 * 2 * LANES * LANES * DEPTH * group;
    (rounds * operations) as f64 / start.elapsed().as_secs_f64()
}
