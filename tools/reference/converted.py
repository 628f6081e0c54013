"""Loads what `pixart convert` made of the original .pth fixtures with diffusers, and compares its outputs with the golden ones.

    python converted.py PIXART       where PIXART is the program, such as ../../target/release/pixart
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import CHECKPOINTS, FIXTURES
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file


def relative_error(transformer: PixArtTransformer2DModel, golden: dict[str, torch.Tensor]) -> float:
    inputs = {name: golden[f"wide.{name}"] for name in ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep")}
    sizes = {name: golden.get(f"wide.{name}") for name in ("resolution", "aspect_ratio")}
    with torch.no_grad():
        output = transformer(**inputs, added_cond_kwargs=sizes).sample
    wanted = golden["wide.output"]
    return float((output - wanted).abs().max() / wanted.abs().max())


def main(pixart: str) -> None:
    for name, base in (("original-256", "alpha-256"), ("original-1024", "alpha-1024")):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "converted"
            command = [pixart, "convert", CHECKPOINTS / f"{name}.pth", "--model", CHECKPOINTS / base, "--output", output]
            subprocess.run(command, check=True)
            golden = load_file(FIXTURES / "networks" / f"transformer-{name}.safetensors")
            transformer = PixArtTransformer2DModel.from_pretrained(output / "transformer", dtype=torch.float32).eval()
            print(f"{name}: relative error {relative_error(transformer, golden):.1e}")
            if base == "alpha-256":  # the other folder has fp16 files only, which need variant="fp16"
                pipeline = PixArtAlphaPipeline.from_pretrained(output)
                print(f"{name}: opens as {type(pipeline).__name__}")


if __name__ == "__main__":
    main(sys.argv[1])
