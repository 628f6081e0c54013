//! Times the operations at the sizes that XL/2 has at 512×512 pixels, one block of the transformer, and the decoder's
//! parts. `cargo bench -p pixart-nn`; `pixart bench` times whole models.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use criterion::{Criterion, criterion_group, criterion_main};
use pixart_nn::ops::{self, Padding};
use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};

fn normal(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor of this size fits into memory")
}

fn operations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ops");
    group.sample_size(10);
    let (tokens, wide) = (normal((1, 1024, 1152)), normal((1, 1024, 4608)));
    let (up, bias) = (normal((4608, 1152)), normal(4608));
    group.bench_function("linear 1024x1152x4608", |b| b.iter(|| ops::linear(&tokens, &up, Some(&bias))));
    group.bench_function("gelu 1024x4608", |b| b.iter(|| ops::gelu_tanh(&wide)));
    group.bench_function("attention 16x1024x72", |b| {
        b.iter(|| ops::attention(&tokens, &tokens, &tokens, 16, 0.118, None))
    });
    let row = normal((1, 1, 1152));
    group.bench_function("layer norm, modulate 1024x1152", |b| {
        b.iter(|| ops::layer_norm_modulate(&tokens, &row, &row, 1e-6))
    });
    for (channels, side) in [(512, 64), (256, 256), (128, 512)] {
        let (image, kernel) = (normal((1, channels, side, side)), normal((channels, channels, 3, 3)));
        let (weight, bias) = (normal(channels), normal(channels));
        group.bench_function(format!("conv2d 3x3 {channels}@{side}²"), |b| {
            b.iter(|| ops::conv2d(&image, &kernel, Some(&bias), 1, Padding::Same(1)))
        });
        group.bench_function(format!("group norm, silu {channels}@{side}²"), |b| {
            b.iter(|| ops::group_norm_silu(&image, 32, &weight, &bias, 1e-6))
        });
    }
    group.finish();
}

fn transformer(criterion: &mut Criterion) {
    let mut run = || -> Result<()> {
        let config = TransformerConfig {
            num_layers: 1,
            sample_size: 64,
            caption_channels: Some(4096),
            ..TransformerConfig::default()
        };
        let transformer = PixArtTransformer::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu))?;
        let text = transformer.project_text(&normal((1, 120, 4096)), None)?;
        let (latents, timestep) = (normal((1, 4, 64, 64)), Tensor::new(&[500f32], &Device::Cpu)?);
        let mut group = criterion.benchmark_group("transformer");
        group.sample_size(10);
        group.bench_function("XL/2 with 1 of its 28 blocks, 512x512", |b| {
            b.iter(|| transformer.forward(&latents, &timestep, &text, None))
        });
        group.finish();
        Ok(())
    };
    run().expect("the network is built of zeros");
}

criterion_group!(benches, operations, transformer);
criterion_main!(benches);
