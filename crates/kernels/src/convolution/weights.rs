use rayon::prelude::*;

use crate::gemm::{Arithmetic, Packed};
use crate::memory::Shared;
use crate::{Element, Isa, Matrix};

/// The kernels of a convolution, packed.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    /// `step`² of them, row after row: one for each place that an output pixel has in its square of `step`×`step`.
    pub(super) phases: Vec<Phase>,
    /// Output pixels, in height and in width, of one place of the kernel.
    pub(super) step: usize,
    /// Input pixels, in height and in width, that one place of the kernel reaches over.
    pub(super) reach: usize,
    /// Height and width of a kernel on the image as it is.
    pub(super) kernel: usize,
    pub(super) channels_in: usize,
    pub(super) channels_out: usize,
}

/// What some of the output pixels are computed with.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    pub packed: Packed,
    /// Of each tap of `packed`, row and column of the input pixel that it meets, within the kernel's reach.
    pub taps: Vec<[usize; 2]>,
}

/// Where a kernel of 3 falls on an image whose pixels have been doubled: for even pixels and for odd ones, the taps that
/// meet the first and those that meet the second of two neighbours.
const DOUBLED_TAPS: [[&[usize]; 2]; 2] = [[&[0], &[1, 2]], [&[0, 1], &[2]]];

impl ConvWeights {
    /// Packs `weight` `[out, in, kernel, kernel]`.
    ///
    /// # Panics
    /// The slice has another length.
    pub fn new<T: Element>(
        isa: Isa,
        arithmetic: Arithmetic,
        weight: &[T],
        (channels_out, channels_in, kernel): (usize, usize, usize),
    ) -> Self {
        let area = kernel * kernel;
        assert_eq!(
            weight.len(),
            channels_out * channels_in * area,
            "weights of {channels_out}×{channels_in}×{kernel}²"
        );
        let element =
            |out: usize, tap: usize, channel: usize| weight[(out * channels_in + channel) * area + tap].to_f32();
        let packed = Packed::with_taps(isa, arithmetic, channels_out, channels_in, area, element);
        let taps = (0..area).map(|tap| [tap / kernel, tap % kernel]).collect();
        Self { phases: vec![Phase { packed, taps }], step: 1, reach: kernel, kernel, channels_in, channels_out }
    }

    /// Packs `weight` `[out, in, 3, 3]` for an image that is doubled in height and width, by repeating pixels, before the
    /// convolution. An output pixel then meets only 2×2 different pixels, so that weights can be added up beforehand:
    /// 4 products instead of 9.
    ///
    /// # Panics
    /// The slice has another length.
    pub fn doubling<T: Element>(
        isa: Isa,
        arithmetic: Arithmetic,
        weight: &[T],
        (channels_out, channels_in): (usize, usize),
    ) -> Self {
        assert_eq!(weight.len(), channels_out * channels_in * 9, "weights of {channels_out}×{channels_in}×3²");
        let phase = |row: usize, column: usize| {
            let element = |out: usize, tap: usize, channel: usize| -> f32 {
                let of = &weight[(out * channels_in + channel) * 9..][..9];
                let rows = DOUBLED_TAPS[row][tap / 2];
                let columns = DOUBLED_TAPS[column][tap % 2];
                rows.iter().flat_map(|row| columns.iter().map(move |column| of[row * 3 + column].to_f32())).sum()
            };
            Phase {
                packed: Packed::with_taps(isa, arithmetic, channels_out, channels_in, 4, element),
                taps: (0..4).map(|tap| [tap / 2 + row, tap % 2 + column]).collect(),
            }
        };
        let phases = vec![phase(0, 0), phase(0, 1), phase(1, 0), phase(1, 1)];
        Self { phases, step: 2, reach: 3, kernel: 3, channels_in, channels_out }
    }

    /// Packs `weight` `[out, in, kernel, kernel]` for the gradient of a convolution's input: itself a convolution, of
    /// stride 1, of the gradient of the result. With `stride` above 1, an input pixel meets only the taps that lie a
    /// whole number of strides from it, so that there are `stride`² phases. The second result is this convolution's own
    /// padding.
    ///
    /// # Panics
    /// The slice has another length; `padding` is not less than `kernel`.
    pub(super) fn transposed<T: Element>(
        isa: Isa,
        weight: &[T],
        (channels_out, channels_in, kernel): (usize, usize, usize),
        stride: usize,
        padding: usize,
    ) -> (Self, usize) {
        let area = kernel * kernel;
        assert_eq!(
            weight.len(),
            channels_out * channels_in * area,
            "weights of {channels_out}×{channels_in}×{kernel}²"
        );
        assert!(padding < kernel, "a padding of {padding} for a kernel of {kernel}");
        // Tap t of output pixel o falls on input pixel o · stride + t - padding. Input pixel i · stride + phase therefore
        // meets it if t = phase + padding modulo the stride, at output pixel i + (phase + padding - t) / stride. That
        // is `new_padding` less for the last of all taps, and where it stands in the reach is counted from there.
        let new_padding = (kernel - 1 - padding) / stride;
        let place = |phase: usize, tap: usize| {
            let met = (phase + padding + stride * new_padding).checked_sub(tap)?;
            met.is_multiple_of(stride).then_some(met / stride)
        };
        let phase = |phase: usize| {
            let (row, column) = (phase / stride, phase % stride);
            let meeting = |tap: usize| Some((tap, [place(row, tap / kernel)?, place(column, tap % kernel)?]));
            let (met, mut taps): (Vec<_>, Vec<_>) = (0..area).filter_map(meeting).unzip();
            // Pixels that no tap falls on, for which one of zeros stands in.
            if taps.is_empty() {
                taps.push([0, 0]);
            }
            // `[tap, out, in]`, whose transpose packs as it stands.
            let mut rows = vec![0f32; taps.len() * channels_out * channels_in];
            let shared = &Shared::new(&mut rows);
            weight.par_chunks_exact(channels_in * area).enumerate().for_each(|(out, kernels)| {
                for (i, tap) in met.iter().enumerate() {
                    // SAFETY: rows of an output channel belong to its thread alone.
                    let row = unsafe { shared.part((i * channels_out + out) * channels_in, channels_in) };
                    for (x, kernel) in row.iter_mut().zip(kernels.chunks_exact(area)) {
                        *x = kernel[*tap].to_f32();
                    }
                }
            });
            let matrix = Matrix::new(&rows, taps.len() * channels_out, channels_in).transposed();
            let mut packed = Packed::new(isa, Arithmetic::F32, matrix);
            (packed.depth, packed.taps) = (channels_out, taps.len());
            Phase { packed, taps }
        };
        let weights = Self {
            phases: (0..stride * stride).map(phase).collect(),
            step: stride,
            reach: new_padding + padding.div_ceil(stride) + 1,
            kernel,
            channels_in: channels_out,
            channels_out: channels_in,
        };
        (weights, new_padding)
    }

    /// The weights that were packed, `[out, in, kernel, kernel]`, rounded as packing rounds them, for gradients through weights that are
    /// kept packed only; of an image that is doubled first only their sums are left.
    pub fn unpack(&self) -> Option<Vec<f32>> {
        let [Phase { packed, taps }] = &self.phases[..] else { return None };
        let mut weight = packed.unpack();
        if taps.len() > 1 {
            let of_an_output = self.channels_in * taps.len();
            for by_tap in weight.chunks_exact_mut(of_an_output) {
                let by_channel: Vec<f32> =
                    (0..of_an_output).map(|i| by_tap[i % taps.len() * self.channels_in + i / taps.len()]).collect();
                by_tap.copy_from_slice(&by_channel);
            }
        }
        Some(weight)
    }

    /// Whether the image is doubled first.
    pub fn doubles(&self) -> bool {
        self.step == 2
    }

    /// Channels of the input and of the result.
    pub fn channels(&self) -> (usize, usize) {
        (self.channels_in, self.channels_out)
    }

    /// Height and width of a kernel.
    pub fn kernel(&self) -> usize {
        self.kernel
    }

    /// Memory it takes.
    pub fn size_in_bytes(&self) -> usize {
        self.phases.iter().map(|phase| phase.packed.size_in_bytes()).sum()
    }
}
