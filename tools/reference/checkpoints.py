"""Writes fixtures/checkpoints: small checkpoints in the exact layouts that people have, with random weights.

The transformers are random, then taught for a few seconds to denoise, so that sampling with them stays in a sensible range
and depends on the text. Everything else is random, scaled so that activations keep the size of one.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import CHECKPOINTS, normal, seeded, write_json
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import tokenizer

OLD_VERSION = "0.22.0.dev0"  # of the diffusers that wrote the published PixArt-α folders
T5_WIDTH = 32

DPM_SOLVER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": OLD_VERSION,
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "lambda_min_clipped": float("-inf"),  # written as the bare word -Infinity
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}
LCM = {
    "_class_name": "LCMScheduler",
    "_diffusers_version": "0.23.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


@dataclass
class Folder:
    """One checkpoint folder: the sizes of its networks and the manners of its files."""

    seed: int
    pipeline: str
    transformer_class: str
    transformer: dict
    text_encoder: dict
    vae: dict
    scheduler: dict
    transformer_extras: dict = field(default_factory=dict)  # keys that the class ignores and published configs have


FOLDERS = {
    "alpha-256": Folder(
        seed=256,
        pipeline="PixArtAlphaPipeline",
        transformer_class="Transformer2DModel",
        transformer={"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8, "sample_size": 32},
        transformer_extras={
            "double_self_attention": False,
            "num_vector_embeds": None,
            "only_cross_attention": False,
            "use_linear_projection": False,
        },
        text_encoder={"num_layers": 2, "num_heads": 4, "d_kv": 8},
        vae={"layers_per_block": 1, "scaling_factor": 0.18215},
        scheduler=DPM_SOLVER,
    ),
    # The size embeddings are a third of the width each, so 3 heads here: a width of 32 has no third.
    "alpha-1024": Folder(
        seed=1024,
        pipeline="PixArtAlphaPipeline",
        transformer_class="PixArtTransformer2DModel",
        transformer={
            "num_layers": 2,
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "sample_size": 128,
            "use_additional_conditions": True,
        },
        text_encoder={"num_layers": 3, "num_heads": 3, "d_kv": 8},
        vae={"layers_per_block": 2},  # as sd-vae-ft-ema's config: no scaling_factor, which then is 0.18215
        scheduler=LCM,
    ),
    "sigma-512": Folder(
        seed=512,
        pipeline="PixArtSigmaPipeline",
        transformer_class="PixArtTransformer2DModel",
        transformer={
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 18,  # like XL/2's 72, no power of two
            "sample_size": 64,
            "interpolation_scale": 1,
            "use_additional_conditions": False,
        },
        text_encoder={"num_layers": 2, "num_heads": 4, "d_kv": 12},
        vae={"layers_per_block": 1, "scaling_factor": 0.13025, "force_upcast": True, "block_out_channels": (4, 8, 8, 8)},
        scheduler=DPM_SOLVER | {"_diffusers_version": "0.28.0.dev0", "final_sigmas_type": "zero", "rescale_betas_zero_snr": False},
    ),
}


# Networks


def transformer_config(folder: Folder) -> dict:
    sizes = folder.transformer
    return {
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_type": "default",
        "caption_channels": T5_WIDTH,
        "cross_attention_dim": sizes["num_attention_heads"] * sizes["attention_head_dim"],
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "out_channels": 8,
        "patch_size": 2,
        "upcast_attention": False,
    } | sizes


def vae_config(folder: Folder) -> dict:
    return {
        "act_fn": "silu",
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    } | folder.vae


def new_vae(folder: Folder) -> AutoencoderKL:
    return AutoencoderKL(**vae_config(folder))


def new_text_encoder(folder: Folder) -> T5EncoderModel:
    config = T5Config(
        vocab_size=tokenizer.VOCAB_SIZE,
        d_model=T5_WIDTH,
        d_ff=64,
        num_decoder_layers=folder.text_encoder["num_layers"],
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        **folder.text_encoder,
    )
    return T5EncoderModel(config).eval()


GAINS = {  # for weights whose standard deviation is not one over the square root of their inputs
    "SelfAttention.q.weight": 0.5,  # T5 does not divide the scores by the square root of the head's width
    "post_quant_conv.weight": 0.18,  # undoes the division by the scaling factor
    "decoder.conv_out.weight": 0.4,  # keeps most pixels inside -1..1
    "adaln_single.linear.weight": 0.5,
}


def randomise(network: nn.Module, seed: int) -> None:
    """Random weights for every parameter, also those that a network starts at zero or one."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            gain = next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1.0)
            if name.endswith("scale_shift_table"):
                random = normal(generator, *weight.shape, std=0.4)
            elif name.endswith(("shared.weight", "relative_attention_bias.weight")):
                random = normal(generator, *weight.shape)
            elif weight.dim() > 1:
                random = normal(generator, *weight.shape, std=gain * weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                random = normal(generator, *weight.shape, std=0.15)
            else:
                random = normal(generator, *weight.shape, std=0.2, mean=1.0)
            weight.copy_(random)


# Teaching a transformer to denoise

SIZES = ((6, 8), (8, 12), (12, 8), (16, 16))  # of the latents: those of the images in fixtures/pipelines, and a larger one


def embed_captions(folder: Path, text_encoder: T5EncoderModel) -> tuple[torch.Tensor, torch.Tensor]:
    captions = ["", "blurry, low quality"] + tokenizer.captions()[:60]
    tokens = T5Tokenizer.from_pretrained(folder)(
        captions, padding="max_length", max_length=60, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask


def teach_to_denoise(
    transformer: PixArtTransformer2DModel, embeds: torch.Tensor, mask: torch.Tensor, seed: int, steps: int = 1000
) -> float:
    """Predicting the noise in latents that are white, around a mean that the caption decides. Returns the last losses' mean."""
    generator = seeded(seed)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)
    pooled = (embeds * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    pooled = (pooled - pooled.mean(0)) / pooled.std(0)
    means = 0.4 * torch.tanh(pooled @ normal(generator, T5_WIDTH, 4, std=T5_WIDTH**-0.5))
    optimizer = torch.optim.Adam(transformer.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(steps):
        height, width = SIZES[step % len(SIZES)]
        pick = torch.randint(len(embeds), (16,), generator=generator)
        timestep = torch.randint(1000, (16,), generator=generator)
        alpha = alphas[timestep].view(-1, 1, 1, 1)
        noise = normal(generator, 16, 4, height, width)
        latents = means[pick, :, None, None] + normal(generator, 16, 4, height, width, std=0.6)
        conditions = {
            "resolution": torch.tensor([[8.0 * height, 8.0 * width]]).repeat(16, 1),
            "aspect_ratio": torch.tensor([[height / width]]).repeat(16, 1),
        }
        predicted = transformer(
            alpha.sqrt() * latents + (1 - alpha).sqrt() * noise,
            encoder_hidden_states=embeds[pick],
            encoder_attention_mask=mask[pick],
            timestep=timestep,
            added_cond_kwargs=conditions,
        ).sample
        weight = ((1 - alpha) / alpha).clamp(1, 100)  # nearer to the error of the latents, which is what adds up in sampling
        loss = (weight * (predicted[:, :4] - noise).square()).mean() / weight.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-50:]) / 50


# Files

TEXT_ENCODER_SHARD_SIZES = {"alpha-256": "60KB", "alpha-1024": "60KB"}  # three files and two

def write_transformer(folder: Folder, transformer: PixArtTransformer2DModel, path: Path, variant: str | None, safe: bool) -> None:
    transformer.save_pretrained(path, variant=variant, safe_serialization=safe)
    config = {"_class_name": folder.transformer_class, "_diffusers_version": folder.scheduler["_diffusers_version"]}
    write_json(path / "config.json", config | dict(sorted((transformer_config(folder) | folder.transformer_extras).items())))


def write_vae(folder: Folder, vae: AutoencoderKL, path: Path, variant: str | None, safe: bool) -> None:
    vae.save_pretrained(path, variant=variant, safe_serialization=safe)
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": folder.scheduler["_diffusers_version"]}
    write_json(path / "config.json", config | dict(sorted(vae_config(folder).items())))


def spell_vae_attention_the_old_way(path: Path) -> None:
    """`to_q` … become `query`, `key`, `value` and `proj_attn`, as in the VAEs of 2022."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        if ".attentions." in name:
            for new_part, old_part in old.items():
                name = name.replace(f".{new_part}.", f".{old_part}.")
        renamed[name] = tensor
    save_file(renamed, path, metadata={"format": "pt"})


def spell_text_encoder_config_the_old_way(path: Path) -> None:
    """The keys of the published config, which transformers 4.21 wrote."""
    config = json.loads(path.read_text())
    for newer in ("dtype", "is_decoder", "scale_decoder_outputs"):
        del config[newer]
    older = {
        "is_encoder_decoder": True,
        "output_past": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.21.1",
        "use_cache": True,
    }
    write_json(path, dict(sorted((config | older).items())))


def write_text_encoder_bin(text_encoder: T5EncoderModel, path: Path, shards: int) -> None:
    """`pytorch_model-0000k-of-0000n.bin` and their index, which today's transformers reads and no longer writes."""
    text_encoder.config.save_pretrained(path)
    state = text_encoder.state_dict()  # has shared.weight also as encoder.embed_tokens.weight, as the old files do
    tied = [name for name in state if name.endswith(("shared.weight", "embed_tokens.weight"))]
    others = [name for name in state if name not in tied]
    cut = len(others) // (shards - 1) + 1
    groups = [tied] + [others[k : k + cut] for k in range(0, len(others), cut)]
    weight_map = {}
    for number, names in enumerate(groups, start=1):
        file = f"pytorch_model-{number:05}-of-{shards:05}.bin"
        torch.save({name: state[name] for name in names}, path / file)
        weight_map |= {name: file for name in names}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_json(path / "pytorch_model.bin.index.json", {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})


def write_model_index(folder: Folder, path: Path, with_text_encoder: bool = True) -> None:
    write_json(
        path / "model_index.json",
        {
            "_class_name": folder.pipeline,
            "_diffusers_version": folder.scheduler["_diffusers_version"],
            "scheduler": ["diffusers", folder.scheduler["_class_name"]],
            "text_encoder": ["transformers", "T5EncoderModel"] if with_text_encoder else [None, None],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", folder.transformer_class],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def write_folder(name: str, folder: Folder) -> None:
    path = CHECKPOINTS / name
    shutil.rmtree(path, ignore_errors=True)
    write_model_index(folder, path)
    write_json(path / "scheduler" / "scheduler_config.json", folder.scheduler)

    spiece = CHECKPOINTS / "alpha-256" / "tokenizer"
    if name == "alpha-256":
        tokenizer.write_spiece_folder(spiece)
    elif name == "alpha-1024":
        shutil.copytree(spiece, path / "tokenizer")
    else:
        tokenizer.write_json_folder(path / "tokenizer", spiece)

    text_encoder = new_text_encoder(folder)
    randomise(text_encoder, folder.seed + 1)
    vae = new_vae(folder)
    randomise(vae, folder.seed + 2)
    transformer = PixArtTransformer2DModel(**transformer_config(folder))
    randomise(transformer, folder.seed + 3)
    loss = teach_to_denoise(transformer, *embed_captions(path / "tokenizer", text_encoder), folder.seed + 4)
    print(f"{name}: the transformer's error is {loss:.3f} of the noise")

    half = name == "alpha-1024"
    safe = name != "sigma-512"
    variant = "fp16" if half else None
    networks = [network.half() if half else network for network in (transformer, vae, text_encoder)]
    write_transformer(folder, networks[0], path / "transformer", variant, safe)
    write_vae(folder, networks[1], path / "vae", variant, safe)
    if name == "alpha-256":
        spell_vae_attention_the_old_way(path / "vae" / "diffusion_pytorch_model.safetensors")
    if safe:
        networks[2].save_pretrained(path / "text_encoder", variant=variant, max_shard_size=TEXT_ENCODER_SHARD_SIZES[name])
        if name == "alpha-256":
            spell_text_encoder_config_the_old_way(path / "text_encoder" / "config.json")
    else:
        write_text_encoder_bin(networks[2], path / "text_encoder", shards=3)


# The original repository's files


def to_original(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """diffusers' names to those of the original PixArt repository, with its fused projections."""

    def linear(new: str, old: str) -> dict[str, torch.Tensor]:
        return {f"{old}.{kind}": state[f"{new}.{kind}"] for kind in ("weight", "bias")}

    def fused(new: list[str], old: str) -> dict[str, torch.Tensor]:
        return {f"{old}.{kind}": torch.cat([state[f"{name}.{kind}"] for name in new]) for kind in ("weight", "bias")}

    original = linear("pos_embed.proj", "x_embedder.proj")
    embedders = {"timestep_embedder": "t_embedder", "resolution_embedder": "csize_embedder", "aspect_ratio_embedder": "ar_embedder"}
    for new, old in embedders.items():
        if f"adaln_single.emb.{new}.linear_1.weight" in state:
            original |= linear(f"adaln_single.emb.{new}.linear_1", f"{old}.mlp.0")
            original |= linear(f"adaln_single.emb.{new}.linear_2", f"{old}.mlp.2")
    original |= linear("adaln_single.linear", "t_block.1")
    original |= linear("caption_projection.linear_1", "y_embedder.y_proj.fc1")
    original |= linear("caption_projection.linear_2", "y_embedder.y_proj.fc2")
    for layer in range(layers):
        new, old = f"transformer_blocks.{layer}", f"blocks.{layer}"
        original[f"{old}.scale_shift_table"] = state[f"{new}.scale_shift_table"]
        original |= fused([f"{new}.attn1.to_{part}" for part in "qkv"], f"{old}.attn.qkv")
        original |= linear(f"{new}.attn1.to_out.0", f"{old}.attn.proj")
        original |= linear(f"{new}.attn2.to_q", f"{old}.cross_attn.q_linear")
        original |= fused([f"{new}.attn2.to_{part}" for part in "kv"], f"{old}.cross_attn.kv_linear")
        original |= linear(f"{new}.attn2.to_out.0", f"{old}.cross_attn.proj")
        original |= linear(f"{new}.ff.net.0.proj", f"{old}.mlp.fc1")
        original |= linear(f"{new}.ff.net.2", f"{old}.mlp.fc2")
    original |= linear("proj_out", "final_layer.linear")
    original["final_layer.scale_shift_table"] = state["scale_shift_table"]
    return original


def random_transformer(name: str, seed: int) -> PixArtTransformer2DModel:
    """The transformer of `original-*.pth` before its names are changed."""
    transformer = PixArtTransformer2DModel(**transformer_config(FOLDERS[name]))
    randomise(transformer, seed)
    return transformer.eval()


ORIGINALS = {"original-256": ("alpha-256", 1256), "original-1024": ("alpha-1024", 2024)}
EMA_SEED_OFFSET = 1


def original_state(name: str, seed: int) -> dict[str, torch.Tensor]:
    transformer = random_transformer(name, seed)
    state = to_original(transformer.state_dict(), transformer.config.num_layers)
    state["y_embedder.y_embedding"] = normal(seeded(seed + 50), 120, T5_WIDTH)
    if name == "alpha-256":  # at 1024 it would be the largest tensor by far; loaders drop it anyway
        state["pos_embed"] = transformer.pos_embed.pos_embed.clone()
    return state


def write_originals() -> None:
    folder, seed = ORIGINALS["original-256"]
    torch.save({"state_dict": original_state(folder, seed), "epoch": 3, "step": 1200}, CHECKPOINTS / "original-256.pth")
    folder, seed = ORIGINALS["original-1024"]
    checkpoint = {"state_dict": original_state(folder, seed), "state_dict_ema": original_state(folder, seed + EMA_SEED_OFFSET)}
    torch.save(checkpoint, CHECKPOINTS / "original-1024.pth")


if __name__ == "__main__":
    for name, folder in FOLDERS.items():
        write_folder(name, folder)
    write_originals()
    for file in CHECKPOINTS.rglob("*.safetensors"):
        file.chmod(0o644)
    total = sum(file.stat().st_size for file in CHECKPOINTS.rglob("*") if file.is_file())
    print(json.dumps({"fixtures/checkpoints": f"{total / 1e6:.2f} MB"}))
