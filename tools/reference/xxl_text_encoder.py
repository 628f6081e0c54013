"""Writes a text encoder of T5 v1.1 XXL's real size with random float32 weights, in shards as the published one has them.

    python xxl_text_encoder.py --output DIR

DIR/text_encoder then holds 19 GB; no more than a layer is ever in memory. Weights are drawn as transformers initialises
them, embeddings with a spread of 1. For measuring memory and speed, and what 8 bits lose; no fixture.
"""

import argparse
from pathlib import Path

import numpy as np
from common import write_json
from safetensors.numpy import save_file
from transformers import T5Config

WIDTH, HIDDEN, HEADS, HEAD, LAYERS, WORDS, BUCKETS = 4096, 10240, 64, 64, 24, 32128, 32


def shards(random: np.random.Generator):
    def normal(spread: float, *shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(spread)

    yield {"shared.weight": normal(1.0, WORDS, WIDTH), "encoder.final_layer_norm.weight": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        block = f"encoder.block.{layer}.layer"
        attention, feed_forward = f"{block}.0.SelfAttention", f"{block}.1.DenseReluDense"
        inner = HEADS * HEAD
        tensors = {
            f"{block}.0.layer_norm.weight": np.ones(WIDTH, np.float32),
            f"{block}.1.layer_norm.weight": np.ones(WIDTH, np.float32),
            f"{attention}.q.weight": normal((WIDTH * HEAD) ** -0.5, inner, WIDTH),
            f"{attention}.k.weight": normal(WIDTH**-0.5, inner, WIDTH),
            f"{attention}.v.weight": normal(WIDTH**-0.5, inner, WIDTH),
            f"{attention}.o.weight": normal(inner**-0.5, WIDTH, inner),
            f"{feed_forward}.wi_0.weight": normal(WIDTH**-0.5, HIDDEN, WIDTH),
            f"{feed_forward}.wi_1.weight": normal(WIDTH**-0.5, HIDDEN, WIDTH),
            f"{feed_forward}.wo.weight": normal(HIDDEN**-0.5, WIDTH, HIDDEN),
        }
        if layer == 0:
            tensors[f"{attention}.relative_attention_bias.weight"] = normal(WIDTH**-0.5, BUCKETS, HEADS)
        yield tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    folder = parser.parse_args().output / "text_encoder"
    folder.mkdir(parents=True, exist_ok=True)
    config = T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=HEAD, d_ff=HIDDEN, num_heads=HEADS, num_layers=LAYERS, feed_forward_proj="gated-gelu"
    ).to_dict()
    write_json(folder / "config.json", config | {"architectures": ["T5EncoderModel"]})
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards(np.random.default_rng(0)), 1):
        name = f"model-{number:05}-of-{LAYERS + 1:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= {key: name for key in tensors}
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


if __name__ == "__main__":
    main()
