"""The transformer and the autoencoder's decoder of a checkpoint folder, as PyTorch and OpenVINO run them."""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from machine import cpu_flags
from torch import nn

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# What OpenVINO computes with; in int8 that is whatever NNCF leaves unquantised. Without instructions for bf16 it takes fifteen
# times as long in that as in f32.
FEWEST_BITS = "bf16" if "avx512_bf16" in cpu_flags() else "f32"
OPENVINO_PRECISIONS = {"f32": "f32", "bf16": "bf16", "int8": FEWEST_BITS}
LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8
TIMESTEP = 500

diffusers_logging.set_verbosity_error()  # it warns of old config keys, and that accelerate would load faster

Call = Callable[[], object]
Inputs = tuple[torch.Tensor, ...]


class Pass(nn.Module):
    """The transformer with inputs in a fixed order, as tracing wants them. Nothing is masked, as in `pixart bench`."""

    def __init__(self, transformer: PixArtTransformer2DModel, pixels: int):
        super().__init__()
        self.transformer = transformer
        conditioned = transformer.config.use_additional_conditions
        self.register_buffer("resolution", torch.tensor([[float(pixels), float(pixels)]]) if conditioned else None)
        self.register_buffer("aspect_ratio", torch.tensor([[1.0]]) if conditioned else None)

    def forward(self, latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sizes = {"resolution": self.resolution, "aspect_ratio": self.aspect_ratio}
        return self.transformer(
            latents, encoder_hidden_states=text, timestep=timestep, added_cond_kwargs=sizes, return_dict=False
        )[0]


class Decode(nn.Module):
    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


def text_tokens(folder: Path) -> int:
    """The length to which the folder's pipeline pads every prompt."""
    pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
    return 300 if pipeline == "PixArtSigmaPipeline" else 120


def load(part: str, folder: Path, pixels: int) -> tuple[nn.Module, Inputs]:
    side = pixels // PIXELS_PER_LATENT
    latents = torch.randn(1, LATENT_CHANNELS, side, side)
    if part == "vae":
        return Decode(AutoencoderKL.from_pretrained(folder / "vae")).eval(), (latents,)
    config = PixArtTransformer2DModel.load_config(folder / "transformer")
    # Of any other size than its sample_size, diffusers computes the position embedding anew in every pass.
    conditioned = config.get("use_additional_conditions")
    if conditioned is None:
        conditioned = config["sample_size"] == 128  # the class's own rule
    transformer = PixArtTransformer2DModel.from_pretrained(
        folder / "transformer", sample_size=side, use_additional_conditions=conditioned
    )
    text = torch.randn(1, text_tokens(folder), transformer.config.caption_channels)
    return Pass(transformer, pixels).eval(), (latents, text, torch.tensor([TIMESTEP]))


def torch_call(network: nn.Module, inputs: Inputs, dtype: str) -> Call:
    network.to(TORCH_DTYPES[dtype], memory_format=torch.channels_last)  # decodes some 4 % faster so
    inputs = tuple(tensor.to(TORCH_DTYPES[dtype]) if tensor.is_floating_point() else tensor for tensor in inputs)

    @torch.inference_mode()
    def call() -> None:
        network(*inputs)

    return call


def openvino_call(network: nn.Module, inputs: Inputs, dtype: str, threads: int) -> Call:
    import openvino

    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # tracing warns of every branch on a shape; ours are fixed
        model = openvino.convert_model(network, example_input=inputs, input=[tuple(tensor.shape) for tensor in inputs])
    arrays = [tensor.numpy() for tensor in inputs]
    if dtype == "int8":
        model = quantise(model, arrays, is_transformer=isinstance(network, Pass))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[dtype],
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(arrays)


def quantise(model, arrays: list, is_transformer: bool):
    """Weights and activations in 8 bits. One random input calibrates it: that changes the values, and not the time."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    names = [each.get_any_name() for each in model.inputs]
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset([dict(zip(names, arrays))]),
            subset_size=1,
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        )


def peers(part: str, folder: Path, pixels: int, dtype: str, threads: int, names: list[str]) -> dict[str, Call]:
    """Each of `names` ("pytorch", "openvino") that can compute `part` in `dtype`, and what runs it once."""
    if names == ["pytorch"] and dtype not in TORCH_DTYPES:
        return {}
    network, inputs = load(part, folder, pixels)
    calls = {}
    if "openvino" in names:  # first: it takes the network in f32, which `torch_call` changes in place
        calls["openvino"] = openvino_call(network, inputs, dtype, threads)
    if "pytorch" in names and dtype in TORCH_DTYPES:
        calls["pytorch"] = torch_call(network, inputs, dtype)
    return calls
