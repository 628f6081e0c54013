"""Writes a checkpoint folder of PixArt XL/2's real size with random weights, and what diffusers computes with it.

    python full_size.py --output DIR --size 512|1024 [--t5 LAYERS] [--no-golden]

DIR then holds the folder that diffusers opens and, beside its parts, golden.safetensors (which takes the longest; timing
needs none of it). Three gigabytes; no fixture.
"""

import argparse
import gc
import resource
import shutil
import time
from pathlib import Path

import torch
from checkpoints import CHECKPOINTS, LCM, Folder, new_vae, randomise, transformer_config, write_model_index, write_transformer, write_vae
from common import normal, save_tensors, seeded, write_json
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

TEXT_WIDTH = 4096
TOKENS = 120
WORDS = 23  # tokens of the golden text that are not padding
LCM_SEED = 5


def folder_of(size: int) -> Folder:
    return Folder(
        seed=size,
        pipeline="PixArtAlphaPipeline",
        transformer_class="PixArtTransformer2DModel",
        transformer={
            "num_layers": 28,
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "caption_channels": TEXT_WIDTH,
            "sample_size": size // 8,
        },
        text_encoder={},
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
        },
        scheduler=LCM,
    )


def write_checkpoint(folder: Folder, path: Path, t5_layers: int) -> None:
    """One network in memory at a time."""
    write_model_index(folder, path, with_text_encoder=t5_layers > 0)
    write_json(path / "scheduler" / "scheduler_config.json", folder.scheduler)
    shutil.copytree(CHECKPOINTS / "alpha-256" / "tokenizer", path / "tokenizer", dirs_exist_ok=True)

    transformer = PixArtTransformer2DModel(**transformer_config(folder))
    randomise(transformer, folder.seed)
    write_transformer(folder, transformer, path / "transformer", variant=None, safe=True)
    del transformer
    gc.collect()

    vae = new_vae(folder)
    randomise(vae, folder.seed + 1)
    write_vae(folder, vae, path / "vae", variant=None, safe=True)
    del vae

    if t5_layers:
        config = T5Config(
            vocab_size=32128,
            d_model=TEXT_WIDTH,
            d_kv=64,
            d_ff=10240,
            num_heads=64,
            num_layers=t5_layers,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        text_encoder = T5EncoderModel(config)
        randomise(text_encoder, folder.seed + 2)
        text_encoder.save_pretrained(path / "text_encoder", max_shard_size="4GB")
        del text_encoder
    gc.collect()


def golden(folder: Folder, path: Path, size: int) -> dict[str, torch.Tensor]:
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = seeded(folder.seed + 10)
    text = {
        "prompt_embeds": normal(generator, 1, TOKENS, TEXT_WIDTH),
        "prompt_attention_mask": (torch.arange(TOKENS)[None] < WORDS).long(),
    }
    inputs = {"hidden_states": normal(generator, 1, 4, size // 8, size // 8), "timestep": torch.tensor([749])}
    sizes = {"resolution": torch.tensor([[float(size), float(size)]]), "aspect_ratio": torch.tensor([[1.0]])}
    start = time.monotonic()
    with torch.no_grad():
        output = pipe.transformer(
            **inputs,
            encoder_hidden_states=text["prompt_embeds"],
            encoder_attention_mask=text["prompt_attention_mask"],
            added_cond_kwargs=sizes,
        ).sample
    print(f"transformer: {time.monotonic() - start:.1f} s, output of size {output.std():.3f}")
    if size == 1024:
        inputs |= sizes
    tensors = text | {f"transformer.{name}": tensor for name, tensor in inputs.items()} | {"transformer.output": output}

    first_latents = normal(seeded(LCM_SEED), 1, 4, size // 8, size // 8)  # the first draw of the pipeline's generator
    final_latents = pipe(
        prompt=None,
        negative_prompt=None,
        **text,
        num_inference_steps=4,
        guidance_scale=0.0,
        height=size,
        width=size,
        use_resolution_binning=False,
        generator=seeded(LCM_SEED),
        output_type="latent",
    ).images
    print(f"four steps: latents of size {final_latents.std():.3f}")
    tensors |= {"lcm.first_latents": first_latents, "lcm.final_latents": final_latents}

    if pipe.text_encoder is not None:
        tokens = T5Tokenizer.from_pretrained(path / "tokenizer")(
            "A small cactus with a happy face in the Sahara desert.", padding="max_length", max_length=TOKENS, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        tensors |= {"t5.input_ids": tokens.input_ids, "t5.attention_mask": tokens.attention_mask, "t5.last_hidden_state": hidden}

    vae = pipe.vae
    del pipe
    gc.collect()
    latents = normal(generator, 1, 4, size // 8, size // 8, std=1 / vae.config.scaling_factor)
    start = time.monotonic()
    with torch.no_grad():
        decoded = vae.decode(latents).sample
    print(f"VAE decoder: {time.monotonic() - start:.1f} s, image of size {decoded.std():.3f}, to {decoded.abs().max():.2f}")
    return tensors | {"vae.latents": latents, "vae.decoded": decoded}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--size", type=int, choices=(512, 1024), required=True, help="pixels; 1024 has the size conditions")
    parser.add_argument("--t5", type=int, default=0, metavar="LAYERS", help="also a text encoder of XXL's width with so many layers")
    parser.add_argument("--no-golden", action="store_true", help="the checkpoint alone: no passes through its networks")
    options = parser.parse_args()
    folder = folder_of(options.size)
    write_checkpoint(folder, options.output, options.t5)
    if not options.no_golden:
        tensors = golden(folder, options.output, options.size)
        save_tensors(options.output / "golden.safetensors", tensors, size=options.size, lcm_seed=LCM_SEED, lcm_steps=4, guidance_scale=0.0)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
