"""Writes fixtures/networks: what diffusers and transformers compute with each checkpoint of fixtures/checkpoints, in float32."""

import shutil
from pathlib import Path

import torch
from checkpoints import EMA_SEED_OFFSET, FOLDERS, ORIGINALS, T5_WIDTH, random_transformer
from common import CHECKPOINTS, FIXTURES, normal, save_tensors, seeded
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.image_processor import PixArtImageProcessor
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

NETWORKS = FIXTURES / "networks"

CAPTIONS = [
    "A small cactus with a happy face in the Sahara desert, oil painting, 8k, highly detailed. " * 8,  # more than 120 tokens
    "two blue circles above a red square",
]


def load(network: type[nn.Module], name: str, part: str) -> nn.Module:
    variant = "fp16" if name == "alpha-1024" else None
    return network.from_pretrained(CHECKPOINTS / name / part, variant=variant, dtype=torch.float32).eval()


class Outputs:
    """Keeps what the watched modules return during a forward pass."""

    def __init__(self, modules: dict[str, nn.Module], prefix: str = ""):
        self.tensors: dict[str, torch.Tensor] = {}
        self.hooks = [module.register_forward_hook(self.keeper(prefix + name)) for name, module in modules.items()]

    def keeper(self, name: str):
        def keep(module, inputs, output):
            self.tensors[name] = (output if torch.is_tensor(output) else output[0]).clone()

        return keep

    def __enter__(self) -> dict[str, torch.Tensor]:
        return self.tensors

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


# The transformer

TRANSFORMER_CASES = {  # latent height and width, timesteps, tokens, tokens that are not padding
    "wide": ((8, 12), torch.tensor([999, 20]), 20, (20, 7)),
    "tall": ((36, 6), torch.tensor([967.5, 0.25]), 9, (1, 9)),  # more rows than alpha-256's base grid; fractional timesteps
}


def mask_of(lengths: tuple[int, ...], tokens: int) -> torch.Tensor:
    return (torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]).long()


def position_embedding(transformer: PixArtTransformer2DModel, height: int, width: int) -> torch.Tensor:
    """Of latents of this size: what the patch embedding makes of zeros, without its bias."""
    return transformer.pos_embed(torch.zeros(1, 4, height, width)) - transformer.pos_embed.proj.bias


def transformer_tensors(transformer: PixArtTransformer2DModel, seed: int, inside: bool) -> dict[str, torch.Tensor]:
    """Inputs and outputs, and with `inside` also what the parts return in the first case."""
    generator = seeded(seed)
    everything = {}
    for case, ((height, width), timestep, tokens, lengths) in TRANSFORMER_CASES.items():
        inputs = {
            "hidden_states": normal(generator, 2, 4, height, width),
            "encoder_hidden_states": normal(generator, 2, tokens, T5_WIDTH),
            "encoder_attention_mask": mask_of(lengths, tokens),
            "timestep": timestep,
        }
        sizes = {
            "resolution": torch.tensor([[8.0 * height, 8.0 * width], [1024.0, 768.0]]),
            "aspect_ratio": torch.tensor([[height / width], [1024 / 768]]),
        }
        watched = {
            "time_embedding": transformer.adaln_single.emb,  # before SiLU and Linear
            "modulation": transformer.adaln_single,  # after them: six times the width
            "caption_projection": transformer.caption_projection,
            "patch_embedding": transformer.pos_embed,  # with the position embedding added
            "block_0": transformer.transformer_blocks[0],
        }
        if not inside or case != "wide":
            watched = {}
        with Outputs(watched, f"{case}.") as seen:
            output = transformer(**inputs, added_cond_kwargs=sizes).sample
        if transformer.use_additional_conditions:
            inputs |= sizes
        everything |= {f"{case}.{name}": tensor for name, tensor in inputs.items()} | seen | {f"{case}.output": output}
    if inside:
        everything["wide.pos_embed"] = position_embedding(transformer, *TRANSFORMER_CASES["wide"][0])
    return everything


def write_transformers() -> None:
    for name, folder in FOLDERS.items():
        tensors = transformer_tensors(load(PixArtTransformer2DModel, name, "transformer"), folder.seed + 10, inside=True)
        save_tensors(NETWORKS / f"transformer-{name}.safetensors", tensors, checkpoint=name)
    for name, (folder, seed) in ORIGINALS.items():
        tensors = transformer_tensors(random_transformer(folder, seed), seed + 10, inside=False)
        if name == "original-1024":  # the same inputs through the weights under state_dict_ema
            ema = transformer_tensors(random_transformer(folder, seed + EMA_SEED_OFFSET), seed + 10, inside=False)
            tensors |= {"wide.output_ema": ema["wide.output"]}
        save_tensors(NETWORKS / f"transformer-{name}.safetensors", tensors, checkpoint=f"{name}.pth", config_of=folder)


# The text encoder


def text_encoder_tensors(name: str) -> dict[str, torch.Tensor]:
    text_encoder = load(T5EncoderModel, name, "text_encoder")
    tokenizer = T5Tokenizer.from_pretrained(CHECKPOINTS / name / "tokenizer")
    if name == "sigma-512":  # one sequence without padding, longer than the largest distance that has a bucket of its own
        tokens = tokenizer(CAPTIONS[0] * 2, max_length=200, truncation=True, return_tensors="pt")
    else:
        tokens = tokenizer(CAPTIONS, padding="max_length", max_length=120, truncation=True, return_tensors="pt")
    with Outputs({"block_0": text_encoder.encoder.block[0]} if name == "alpha-256" else {}) as seen:
        output = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "last_hidden_state": output} | seen


# The autoencoder

POSTERIOR_SEED = 7


def vae_tensors(name: str, seed: int) -> dict[str, torch.Tensor]:
    vae = load(AutoencoderKL, name, "vae")
    generator = seeded(seed)
    everything = {}
    for case, (batch, height, width) in {"even": (2, 16, 32), "odd": (1, 40, 24)}.items():  # odd: 5 by 3 latents
        latents = normal(generator, batch, 4, height // 8, width // 8, std=1 / vae.config.scaling_factor)
        image = torch.tanh(normal(generator, batch, 3, height, width))
        watched = {"decoder_mid_block": vae.decoder.mid_block, "encoder_mid_block": vae.encoder.mid_block}
        with Outputs(watched, f"{case}.") as seen:
            decoded = vae.decode(latents).sample
            posterior = vae.encode(image).latent_dist
        tensors = {
            "latents": latents,
            "decoded": decoded,
            "image": image,
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "std": posterior.std,
            "posterior_sample": posterior.sample(seeded(POSTERIOR_SEED)),
        }
        everything |= {f"{case}.{key}": tensor for key, tensor in tensors.items()} | seen
    return everything


# Resizing of binned images

RESIZES = [(14, 20), (11, 17), (7, 10), (23, 28), (14, 11), (3, 20)]


def write_resizes(path: Path) -> None:
    image = normal(seeded(99), 1, 3, 14, 20)
    tensors = {"image": image}
    for height, width in RESIZES:
        tensors[f"to_{height}x{width}"] = PixArtImageProcessor.resize_and_crop_tensor(image, width, height)
    save_tensors(path, tensors)


if __name__ == "__main__":
    shutil.rmtree(NETWORKS, ignore_errors=True)
    torch.set_grad_enabled(False)
    write_transformers()
    for name, folder in FOLDERS.items():
        save_tensors(NETWORKS / f"text_encoder-{name}.safetensors", text_encoder_tensors(name), checkpoint=name)
        save_tensors(
            NETWORKS / f"vae-{name}.safetensors",
            vae_tensors(name, folder.seed + 20),
            checkpoint=name,
            posterior_seed=POSTERIOR_SEED,
            scaling_factor=load(AutoencoderKL, name, "vae").config.scaling_factor,
        )
    write_resizes(NETWORKS / "resize.safetensors")
    for file in sorted(NETWORKS.iterdir()):
        print(f"{file.stat().st_size:8} {file.name}")
