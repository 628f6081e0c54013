//! Times one block of the transformer with what stands around it, at 512×512 pixels: `cargo bench -p pixart-nn --bench
//! networks`. The kernels have their own bench (`-p pixart-kernels`); `pixart bench` times whole models.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use criterion::{Criterion, criterion_group, criterion_main};
use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};

fn normal(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor of this size fits into memory")
}

fn transformer(criterion: &mut Criterion) {
    let mut run = || -> Result<()> {
        let config = TransformerConfig {
            num_layers: 1,
            sample_size: 64,
            caption_channels: Some(4096),
            ..TransformerConfig::default()
        };
        let transformer = PixArtTransformer::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu).into())?;
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

criterion_group!(benches, transformer);
criterion_main!(benches);
