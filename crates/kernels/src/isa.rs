//! Which vector instructions to use, decided once at run time.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::simd::avx512::{self, Avx512};
use crate::simd::{MATRIX_ROWS, Portable, Simd};

/// A set of vector instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, written so that the compiler vectorises it: every processor.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 with F, BW, DQ and VL.
    Avx512,
    /// The same, and VNNI, for products of bytes.
    Avx512Vnni,
    /// The same, and BF16.
    Avx512Bf16,
    /// The same, and AMX with BF16 and INT8 for products of matrices.
    Amx,
}

impl Isa {
    /// Each with its name, the fastest last.
    const NAMES: [(Self, &str); 6] = [
        (Self::Portable, "portable"),
        (Self::Avx2, "avx2"),
        (Self::Avx512, "avx512"),
        (Self::Avx512Vnni, "avx512vnni"),
        (Self::Avx512Bf16, "avx512bf16"),
        (Self::Amx, "amx"),
    ];

    /// All that this machine has, the fastest last.
    pub fn available() -> Vec<Self> {
        Self::NAMES.into_iter().map(|(isa, _)| isa).filter(|isa| isa.is_available()).collect()
    }

    /// The one in use: what the environment variable `PIXART_CPU` (`portable`, `avx2`, `avx512`, `avx512vnni`,
    /// `avx512bf16` or `amx`) names, else the fastest that this machine has.
    ///
    /// # Errors
    /// `PIXART_CPU` names none of them, or one that this machine lacks.
    pub fn chosen() -> Result<Self, String> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        CHOSEN.get_or_init(|| Self::from_name(std::env::var("PIXART_CPU").ok().as_deref())).clone()
    }

    fn from_name(name: Option<&str>) -> Result<Self, String> {
        let name = match name {
            None | Some("") => return Ok(*Self::available().last().unwrap_or(&Self::Portable)),
            Some(name) => name,
        };
        let Some((isa, _)) = Self::NAMES.into_iter().find(|(_, known)| *known == name) else {
            let known = Self::NAMES.map(|(_, name)| name).join(", ");
            return Err(format!("PIXART_CPU is {name:?}; known are {known}"));
        };
        match isa.is_available() {
            true => Ok(isa),
            false => Err(format!("PIXART_CPU asks for {name}, which this processor does not have")),
        }
    }

    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_available() && crate::simd::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Whether products of bf16 cost less than products of f32: with AMX, and with AMD's vectors, which do twice as many a second. Intel's
    /// do half as many.
    pub fn has_fast_bf16(self) -> bool {
        match self {
            // Tests compute as on AMD's, whatever they run on.
            Self::Avx512Bf16 => cfg!(test) || !is_intel(),
            _ => self == Self::Amx,
        }
    }

    /// Rows of a tile of a matrix product whose words have `group` elements.
    pub(crate) fn tile_rows(self, group: usize) -> usize {
        if self == Self::Amx && group > 1 { MATRIX_ROWS } else { self.tile().0 }
    }

    /// Vectors across a tile of a matrix product.
    pub(crate) fn tile_vectors(self) -> usize {
        self.tile().1
    }

    fn tile(self) -> (usize, usize) {
        fn of<S: Simd>() -> (usize, usize) {
            (S::TILE_ROWS, S::TILE_VECTORS)
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => of::<crate::simd::avx2::Avx2>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => of::<Avx512<false, false>>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => of::<Avx512<true, false>>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 | Self::Amx => of::<Avx512<true, true>>(),
            _ => of::<Portable>(),
        }
    }

    /// Runs `body`, compiled for these instructions. Panics if this machine lacks them, which a value from
    /// [`Isa::available`] or [`Isa::chosen`] rules out.
    pub(crate) fn run<B: Body>(self, body: B) -> B::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                assert!(self.is_available());
                // SAFETY: the features that the function is compiled for have just been found on this machine.
                unsafe { crate::simd::avx2::run(body) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                assert!(self.is_available());
                // SAFETY: as above.
                unsafe { avx512::run(false, body) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                assert!(self.is_available());
                // SAFETY: as above.
                unsafe { avx512::run_vnni(false, body) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 | Self::Amx => {
                assert!(self.is_available());
                // SAFETY: as above.
                unsafe { avx512::run_bf16(self == Self::Amx, body) }
            }
            _ => body.run(Portable),
        }
    }
}

/// Whether Intel made this processor.
fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static IS_INTEL: OnceLock<bool> = OnceLock::new();
        *IS_INTEL.get_or_init(|| {
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A computation that is compiled once for every [`Isa`]. `run` itself and everything that it calls in its loops must be
/// `#[inline(always)]`, or it is compiled without the instructions.
pub trait Body {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn names_choose() {
        assert_eq!(Isa::from_name(Some("portable")), Ok(Isa::Portable));
        assert_eq!(Isa::from_name(None).ok(), Isa::available().last().copied());
        assert!(Isa::from_name(Some("sse9")).is_err_and(|error| error.contains("sse9") && error.contains("avx512")));
    }
}
