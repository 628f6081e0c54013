"""Single operations at the sizes of XL/2 and its decoder, and a training step of a small transformer, in PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import PixArtTransformer2DModel
from torch.nn import functional

Call = Callable[[], object]


@dataclass(frozen=True)
class Op:
    """`name` is also what pixart's own benchmark calls it."""

    name: str
    flops: int
    prepare: Callable[[torch.dtype], Call]


def gemm(rows: int, inner: int, columns: int) -> Op:
    def prepare(dtype: torch.dtype) -> Call:
        tokens, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        return lambda: functional.linear(tokens, weight)

    return Op(f"gemm {rows}x{inner}x{columns}", 2 * rows * inner * columns, prepare)


def attention(heads: int, tokens: int, width: int) -> Op:
    def prepare(dtype: torch.dtype) -> Call:
        query, key, value = (torch.randn(1, heads, tokens, width, dtype=dtype) for _ in range(3))
        return lambda: functional.scaled_dot_product_attention(query, key, value)

    return Op(f"attention {heads}x{tokens}x{width}", 4 * heads * tokens**2 * width, prepare)


def conv2d(channels: int, side: int) -> Op:
    """3×3 with the channels last, which oneDNN computes fastest."""

    def prepare(dtype: torch.dtype) -> Call:
        image, kernel = torch.randn(1, channels, side, side, dtype=dtype), torch.randn(channels, channels, 3, 3, dtype=dtype)
        image, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (image, kernel))
        return lambda: functional.conv2d(image, kernel, padding=1)

    return Op(f"conv2d {channels}@{side}", 2 * 9 * channels**2 * side**2, prepare)


OPS = [
    gemm(1024, 1152, 4608),
    attention(16, 1024, 72),
    attention(16, 4096, 72),
    conv2d(512, 64),
    conv2d(256, 256),
    conv2d(128, 512),
]

TRAINING_BATCH = 64
TRAINING_TOKENS = 16
TRAINING_WIDTH = 192


def training_step() -> Call:
    """Noise predicted in latents of 16×16, that is 64 tokens; the learned variance has no part in the loss."""
    transformer = PixArtTransformer2DModel(
        num_layers=6,
        num_attention_heads=TRAINING_WIDTH // 64,
        attention_head_dim=64,
        cross_attention_dim=TRAINING_WIDTH,
        caption_channels=TRAINING_WIDTH,
        sample_size=16,
        use_additional_conditions=False,
    )
    latents, noise = torch.randn(2, TRAINING_BATCH, 4, 16, 16)
    text = torch.randn(TRAINING_BATCH, TRAINING_TOKENS, TRAINING_WIDTH)
    timestep = torch.randint(1000, (TRAINING_BATCH,))
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-4, fused=True)  # the fastest of its forms

    def call() -> None:
        predicted = transformer(latents, encoder_hidden_states=text, timestep=timestep).sample
        loss = functional.mse_loss(predicted[:, :4], noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call
