"""Loads what `pixart train` made with diffusers and peft, and compares the pictures that both draw.

    python trained.py PIXART MODEL [--transformer FOLDER | --lora FOLDER] [--scheduler lcm]

PIXART is the program, MODEL a pipeline folder; the others are the `network` folders of runs on it. With `--scheduler lcm`, 4 steps and
no guidance, else 14 steps with guidance.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy
import torch
from diffusers import LCMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from peft import PeftModel
from PIL import Image

PROMPTS = ["a red circle to the left of a blue star", "three yellow hearts at night", "a small white house"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pixart")
    parser.add_argument("model")
    for name in ("--transformer", "--lora", "--scheduler"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    pipeline = PixArtAlphaPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    options = ["--dtype", "f32", "--seed", "7"]
    for name in ("transformer", "lora", "scheduler"):
        if value := getattr(arguments, name):
            options += [f"--{name}", value]
    if arguments.transformer:
        pipeline.transformer = PixArtTransformer2DModel.from_pretrained(arguments.transformer, dtype=torch.float32)
    if arguments.lora:
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, arguments.lora).merge_and_unload()
    if arguments.scheduler == "lcm":
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    consistent = isinstance(pipeline.scheduler, LCMScheduler)
    steps, guidance = (4, 0.0) if consistent else (14, 4.5)
    options += ["--steps", str(steps), "--guidance-scale", str(guidance)]
    for prompt in PROMPTS:
        generator = torch.Generator().manual_seed(7)
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "use_resolution_binning": False}
        theirs = pipeline(prompt, generator=generator, **settings).images[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ours.png"
            command = [arguments.pixart, "generate", prompt, "--model", arguments.model, "--output", path, "--quiet", *options]
            subprocess.run(command, check=True)
            ours = Image.open(path).convert("RGB")
        difference = numpy.asarray(theirs, dtype=float) - numpy.asarray(ours, dtype=float)
        error = (difference**2).mean()
        print(f"{prompt}: largest difference {abs(difference).max():.0f} of 255, {10 * numpy.log10(255**2 / max(error, 1e-9)):.1f} dB")


if __name__ == "__main__":
    main()
