use crate::gemm::{Arithmetic, Packed};
use crate::{Element, Isa};

/// The kernels of a convolution, packed.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    /// One; or four, for the output pixels of even and odd rows and columns, where the image is enlarged first.
    pub(super) phases: Vec<Packed>,
    /// Height and width of a kernel on the image as it is.
    pub(super) kernel: usize,
    pub(super) channels_in: usize,
    pub(super) channels_out: usize,
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
        let taps = kernel * kernel;
        assert_eq!(
            weight.len(),
            channels_out * channels_in * taps,
            "weights of {channels_out}×{channels_in}×{kernel}²"
        );
        let element =
            |out: usize, tap: usize, channel: usize| weight[(out * channels_in + channel) * taps + tap].to_f32();
        let packed = Packed::with_taps(isa, arithmetic, channels_out, channels_in, taps, element);
        Self { phases: vec![packed], kernel, channels_in, channels_out }
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
            Packed::with_taps(isa, arithmetic, channels_out, channels_in, 4, element)
        };
        Self { phases: vec![phase(0, 0), phase(0, 1), phase(1, 0), phase(1, 1)], kernel: 3, channels_in, channels_out }
    }

    /// Whether the image is doubled first.
    pub fn doubles(&self) -> bool {
        self.phases.len() == 4
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
        self.phases.iter().map(Packed::size_in_bytes).sum()
    }
}
