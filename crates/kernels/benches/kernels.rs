//! Times the kernels at the sizes of XL/2 at 512×512 pixels, of the autoencoder, and of a small transformer in training,
//! beside the arithmetic peak of this machine, measured just before each in a loop that touches only registers.
//!
//! `cargo bench -p pixart-kernels --bench kernels [-- [--tsv] [--runs N] [FILTER]]`. A line with `--tsv` is name, dtype, median
//! milliseconds, GFLOP/s and per cent of the peak.

#[path = "../../cli/src/allocator.rs"]
#[expect(dead_code, reason = "a benchmark keeps its memory")]
mod allocator;

use std::time::Instant;

use half::bf16;
use pixart_kernels::{
    Activation, Arithmetic, ByteMatrix, ConvWeights, Element, Epilogue, Gate, Geometry, Heads, Images, Isa, Matrix,
    Normalise, Packed, Residual, Scratch, arithmetic_peak, attention, attention_backward, conv2d, gemm, outer_product,
};

struct Bench {
    isa: Isa,
    scratch: Scratch,
    tsv: bool,
    runs: usize,
    filter: Option<String>,
}

fn main() {
    allocator::keep_large_pages();
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    let isa = Isa::chosen().unwrap_or_else(|error| fail(&error));
    let mut bench = Bench { isa, scratch: Scratch::new(), tsv: false, runs: 9, filter: None };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--tsv" => bench.tsv = true,
            "--runs" => match arguments.next().and_then(|runs| runs.parse().ok()) {
                Some(runs @ 1..) => bench.runs = runs,
                _ => fail("--runs takes a number above 0"),
            },
            _ => bench.filter = Some(argument),
        }
    }
    if !bench.tsv {
        println!("{isa:?}, {} threads", rayon::current_num_threads());
    }
    bench.products();
    bench.attentions();
    bench.convolutions();
    bench.training();
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(2);
}

/// Numbers between -0.5 and 0.5 without a pattern.
fn numbers<T: Element>(len: usize) -> Vec<T> {
    (0..len as u32).map(|i| T::from_f32((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5)).collect()
}

impl Bench {
    /// Times `run`, which does `operations`, unless the filter leaves it out.
    fn time(&self, name: &str, arithmetic: Arithmetic, operations: usize, mut run: impl FnMut()) {
        let dtype = format!("{arithmetic:?}").to_lowercase();
        if self.filter.as_ref().is_some_and(|filter| !format!("{name} {dtype}").contains(filter.as_str())) {
            return;
        }
        run();
        let (mut seconds, mut peaks) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            peaks.push(arithmetic_peak(self.isa, arithmetic, 0.01));
            let start = Instant::now();
            run();
            seconds.push(start.elapsed().as_secs_f64());
        }
        let (seconds, peak) = (median(seconds), median(peaks));
        let rate = operations as f64 / seconds;
        let (milliseconds, rate, percent) = (seconds * 1e3, rate / 1e9, 100.0 * rate / peak);
        match self.tsv {
            true => println!("{name}\t{dtype}\t{milliseconds:.3}\t{rate:.1}\t{percent:.1}"),
            false => println!("{name:28} {dtype:5} {milliseconds:9.3} ms {rate:8.1} GFLOP/s {percent:6.1} % of peak"),
        }
    }

    fn products(&self) {
        let sizes = [
            (1024, 1152, 4608),
            (1024, 4608, 1152),
            (1024, 1152, 1152),
            (1024, 1152, 3456),
            (120, 4096, 1152),
            (120, 4096, 10240),
        ];
        for (rows, depth, columns) in sizes {
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
                match arithmetic {
                    Arithmetic::F32 => self.product::<f32>(arithmetic, rows, depth, columns),
                    _ => self.product::<bf16>(arithmetic, rows, depth, columns),
                }
            }
        }
    }

    fn product<T: Element>(&self, arithmetic: Arithmetic, rows: usize, depth: usize, columns: usize) {
        let (left, right, bias) = (numbers::<T>(rows * depth), numbers::<f32>(columns * depth), numbers(columns));
        let mut out = vec![T::default(); rows * columns];
        let packed = Packed::new(self.isa, arithmetic, Matrix::new(&right, columns, depth));
        let left = Matrix::new(&left, rows, depth);
        let (xs, gate) = (numbers::<f32>(out.len()), numbers(columns));
        let mut time = |name: &str, activation| {
            let epilogue = Epilogue { bias: Some(&bias), activation, ..Epilogue::default() };
            self.time(&format!("{name} {rows}x{depth}x{columns}"), arithmetic, 2 * rows * depth * columns, || {
                gemm(self.isa, &self.scratch, left, &packed, &epilogue, &mut out);
            });
        };
        time("gemm", Activation::None);
        if columns == 4608 {
            time("gemm+gelu", Activation::GeluTanh);
        }
        if arithmetic != Arithmetic::F32 {
            // Weights as they stand in a file in 8 bits.
            let bytes = ByteMatrix::quantise(self.isa, Matrix::new(&right, columns, depth));
            let packed = Packed::from_bytes(self.isa, arithmetic, bytes);
            let name = format!("gemm, bytes {rows}x{depth}x{columns}");
            self.time(&name, arithmetic, 2 * rows * depth * columns, || {
                gemm(self.isa, &self.scratch, left, &packed, &Epilogue::default(), &mut out);
            });
        }
        if columns == 1152 {
            // As a block adds to the residual stream, which is f32.
            let gate = Some(Gate { values: &gate, rows });
            let residual = Some(Residual { xs: &xs, gate });
            let epilogue = Epilogue { bias: Some(&bias), residual, ..Epilogue::default() };
            let mut out = vec![0f32; xs.len()];
            let name = format!("gemm+residual {rows}x{depth}x{columns}");
            self.time(&name, arithmetic, 2 * rows * depth * columns, || {
                gemm(self.isa, &self.scratch, left, &packed, &epilogue, &mut out);
            });
        }
    }
}

impl Bench {
    fn attentions(&self) {
        for (heads, queries, keys, size) in
            [(16, 1024, 1024, 72), (16, 4096, 4096, 72), (16, 1024, 120, 72), (1, 4096, 4096, 512)]
        {
            let name = match queries == keys {
                true => format!("attention {heads}x{queries}x{size}"),
                false => format!("attention {heads}x{queries}x{size}, {keys} keys"),
            };
            self.attention::<f32>(Arithmetic::F32, &name, heads, queries, keys, size);
            self.attention::<bf16>(Arithmetic::Bf16, &name, heads, queries, keys, size);
            self.attention::<bf16>(Arithmetic::Int8, &name, heads, queries, keys, size);
        }
    }

    fn attention<T: Element>(
        &self,
        arithmetic: Arithmetic,
        name: &str,
        heads: usize,
        queries: usize,
        keys: usize,
        size: usize,
    ) {
        let width = heads * size;
        let (q, k, v) = (numbers::<T>(queries * width), numbers::<T>(keys * width), numbers::<T>(keys * width));
        let heads = Heads {
            q: Matrix::new(&q, queries, width),
            k: Matrix::new(&k, keys, width),
            v: Matrix::new(&v, keys, width),
            batch: 1,
            heads,
            scale: (size as f32).powf(-0.5),
            bias: None,
        };
        let mut out = vec![T::default(); queries * width];
        self.time(name, arithmetic, 4 * queries * keys * width, || {
            attention(self.isa, &self.scratch, arithmetic, &heads, &mut out);
        });
    }
}

impl Bench {
    fn convolutions(&self) {
        for (channels, side) in [(512, 64), (256, 256), (128, 512)] {
            for doubles in [false, true] {
                self.convolution::<f32>(Arithmetic::F32, channels, side, doubles);
                self.convolution::<bf16>(Arithmetic::Bf16, channels, side, doubles);
                self.convolution::<bf16>(Arithmetic::Int8, channels, side, doubles);
            }
        }
    }

    /// A 3×3 convolution whose result has `side` rows and columns; its work is counted as that on the enlarged image even
    /// where it is not done there.
    fn convolution<T: Element>(&self, arithmetic: Arithmetic, channels: usize, side: usize, doubles: bool) {
        let (name, input) = match doubles {
            true => (format!("upsample+conv2d {channels}@{side}"), side / 2),
            false => (format!("conv2d {channels}@{side}"), side),
        };
        let (data, weight, bias) =
            (numbers::<T>(input * input * channels), numbers::<f32>(channels * channels * 9), numbers(channels));
        let weights = match doubles {
            true => ConvWeights::doubling(self.isa, arithmetic, &weight, (channels, channels)),
            false => ConvWeights::new(self.isa, arithmetic, &weight, (channels, channels, 3)),
        };
        let images = Images { data: &data, batch: 1, height: input, width: input, channels };
        let geometry = Geometry { stride: 1, padding: 1, height: side, width: side };
        let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
        let mut out = vec![T::default(); side * side * channels];
        self.time(&name, arithmetic, 2 * 9 * channels * channels * side * side, || {
            conv2d(self.isa, &self.scratch, &images, None, &weights, &geometry, &epilogue, &mut out);
        });
        if !doubles {
            let coefficients = numbers(2 * channels);
            let normalise = Normalise { coefficients: &coefficients, activation: Activation::Silu };
            self.time(&format!("norm+silu+{name}"), arithmetic, 2 * 9 * channels * channels * side * side, || {
                conv2d(self.isa, &self.scratch, &images, Some(&normalise), &weights, &geometry, &epilogue, &mut out);
            });
        }
    }
}

/// Pictures of a worker's part of a batch, and tokens of each.
const BATCH: usize = 16;
const TOKENS: usize = 256;

/// A transformer of width 192 with heads of 32.
impl Bench {
    fn training(&self) {
        let rows = BATCH * TOKENS;
        for (depth, columns) in [(192, 192), (192, 768), (768, 192)] {
            self.product::<f32>(Arithmetic::F32, rows, depth, columns);
            self.outer_product::<f32>(Arithmetic::F32, rows, depth, columns);
            self.product::<bf16>(Arithmetic::Bf16, rows, depth, columns);
            self.outer_product::<bf16>(Arithmetic::Bf16, rows, depth, columns);
        }
        self.attention_backward::<f32>(Arithmetic::F32, 6, 32);
        self.attention_backward::<bf16>(Arithmetic::Bf16, 6, 32);
    }

    /// The gradient of a weight of `columns` × `depth`.
    fn outer_product<T: Element>(&self, arithmetic: Arithmetic, rows: usize, depth: usize, columns: usize) {
        let (left, right) = (numbers::<T>(rows * columns), numbers::<T>(rows * depth));
        let (left, right) = (Matrix::new(&left, rows, columns), Matrix::new(&right, rows, depth));
        let mut out = vec![0f32; columns * depth];
        self.time(&format!("outer {rows}x{columns}x{depth}"), arithmetic, 2 * rows * depth * columns, || {
            outer_product(self.isa, &self.scratch, arithmetic, left, right, &mut out);
        });
    }

    fn attention_backward<T: Element>(&self, arithmetic: Arithmetic, heads: usize, size: usize) {
        let (rows, width) = (BATCH * TOKENS, heads * size);
        let [q, k, v, d_out] = std::array::from_fn(|_| numbers::<T>(rows * width));
        let inputs = Heads {
            q: Matrix::new(&q, rows, width),
            k: Matrix::new(&k, rows, width),
            v: Matrix::new(&v, rows, width),
            batch: BATCH,
            heads,
            scale: (size as f32).powf(-0.5),
            bias: None,
        };
        let mut gradients: [Vec<T>; 3] = std::array::from_fn(|_| vec![T::default(); rows * width]);
        let name = format!("{BATCH}x{heads}x{TOKENS}x{size}");
        let operations = 4 * BATCH * TOKENS * TOKENS * width;
        let mut out = vec![T::default(); rows * width];
        self.time(&format!("attention {name}"), arithmetic, operations, || {
            attention(self.isa, &self.scratch, arithmetic, &inputs, &mut out);
        });
        // Scores anew, and a product for each gradient and for that of the weights.
        self.time(&format!("attention_backward {name}"), arithmetic, operations / 2 * 5, || {
            let [d_q, d_k, d_v] = &mut gradients;
            attention_backward(self.isa, &self.scratch, arithmetic, &inputs, &d_out, d_q, d_k, d_v);
        });
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
