"""Writes fixtures/training/gradients-*.safetensors: the gradients of each network, in float32.

The inputs are those of one case of the network's file in fixtures/networks, and so are the outputs. The loss is the sum over the
outputs of sum(output · weights), with the random `weights.<output>` of the file.
"""

import json
from collections.abc import Callable

import torch
from common import FIXTURES, normal, save_tensors, seeded
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from networks import NETWORKS, load
from safetensors.torch import load_file
from torch import nn
from transformers import T5EncoderModel

TRAINING = FIXTURES / "training"

Tensors = dict[str, torch.Tensor]

WHOLE = 4096  # tensors of at most so many elements are stored whole
STRIDE = 11  # of larger ones, every 11th element: prime to every dimension, so that all rows and columns are met
NEGLIGIBLE = 1e-9  # of the whole gradient: a tensor's share that is rounding alone


def thinned(tensors: Tensors, whole: int = WHOLE) -> Tensors:
    """Large tensors become `<name>.every_11`, elements 0, 11, 22, … in row-major order, and `<name>.sums`: the sum of all
    elements, and of all their squares."""
    kept = {}
    for name, tensor in tensors.items():
        if tensor.numel() <= whole:
            kept[name] = tensor
        else:
            exact = tensor.detach().double()
            kept[f"{name}.every_{STRIDE}"] = tensor.flatten()[::STRIDE]
            kept[f"{name}.sums"] = torch.stack([exact.sum(), exact.square().sum()]).float()
    return kept


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def parameter_gradients(network: nn.Module, loss: torch.Tensor) -> Tensors:
    """Of every parameter that is trained. One that the loss does not reach has zeros."""
    names, parameters = zip(*[(name, weight) for name, weight in network.named_parameters() if weight.requires_grad])
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(weight) if g is None else g for name, weight, g in zip(names, parameters, gradients)}


def largest_norm(tensors: Tensors) -> float:
    return max(tensor.double().norm().item() for tensor in tensors.values())


def difference(single: Tensors, double: Tensors) -> float:
    """The largest distance between two tensors of a name, relative to the norm of the second one; tensors that are rounding
    alone are left out."""
    floor = NEGLIGIBLE * largest_norm(double)
    norms = {name: tensor.norm().item() for name, tensor in double.items()}
    return max((single[name].double() - double[name]).norm().item() / norm for name, norm in norms.items() if norm > floor)


def without_gradient(double: Tensors) -> list[str]:
    """Those whose gradient is zero but for rounding, like the bias of an attention's keys, which moves all scores alike. In
    float64 that shows."""
    floor = NEGLIGIBLE * largest_norm(double)
    return sorted(name for name, tensor in double.items() if tensor.norm().item() <= floor)


def in_double(tensors: Tensors) -> Tensors:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def case_of(file: str, case: str, names: tuple[str, ...]) -> Tensors:
    tensors = load_file(NETWORKS / f"{file}.safetensors")
    prefix = f"{case}." if case else ""
    return {name: tensors[prefix + name] for name in names if prefix + name in tensors}


def write_gradients(
    file: str,
    network: nn.Module,
    forward: Callable[..., Tensors],
    inputs: Tensors,
    differentiated: tuple[str, ...],
    seed: int,
    **origin,
) -> None:
    """`forward` takes `inputs` by name; `differentiated` are those whose gradients are kept. `origin`, in the metadata, tells
    where weights and inputs are."""

    def gradients(inputs: Tensors, weights: Tensors) -> tuple[torch.Tensor, Tensors, Tensors]:
        inputs = {name: x.clone().requires_grad_(name in differentiated) for name, x in inputs.items()}
        loss = sum((output * weights[name]).sum() for name, output in forward(**inputs).items())
        of_inputs = {name: torch.autograd.grad(loss, inputs[name], retain_graph=True)[0] for name in differentiated}
        return loss, of_inputs, parameter_gradients(network, loss)

    generator = seeded(seed)
    with torch.no_grad():
        weights = {name: normal(generator, *output.shape) for name, output in forward(**inputs).items()}
    loss, of_inputs, of_parameters = gradients(inputs, weights)
    network.double()
    loss_64, of_inputs_64, of_parameters_64 = gradients(in_double(inputs), in_double(weights))
    network.float()
    error = difference(of_inputs | of_parameters, of_inputs_64 | of_parameters_64)
    assert error < 1e-4, error

    tensors = prefixed("weights", weights) | prefixed("input_gradient", of_inputs) | {"loss": loss}
    tensors |= prefixed("gradient", thinned(of_parameters))
    save_tensors(
        TRAINING / f"gradients-{file}.safetensors",
        tensors,
        loss="sum over the outputs of sum(output * weights.output)",
        whole=WHOLE,
        stride=STRIDE,
        without_gradient=json.dumps(without_gradient(of_parameters_64)),
        largest_difference_to_float64=f"{error:.1e}",
        **origin,
    )
    print(f"{file:24} loss {loss:9.3f} ({loss_64:9.3f} in float64), gradients differ by {error:.1e}")


def write_network_gradients(
    file: str,
    case: str,
    network: nn.Module,
    forward: Callable[..., Tensors],
    names: tuple[str, ...],
    differentiated: tuple[str, ...],
    seed: int,
) -> None:
    """With the inputs `names` of a file in fixtures/networks."""
    origin = {"checkpoint": file.split("-", 1)[1], "inputs_file": f"networks/{file}.safetensors", "case": case}
    write_gradients(file, network, forward, case_of(file, case, names), differentiated, seed, **origin)


def write_transformer_gradients(name: str, case: str, seed: int) -> None:
    transformer = load(PixArtTransformer2DModel, name, "transformer")

    def forward(resolution=None, aspect_ratio=None, **inputs) -> Tensors:
        sizes = {"resolution": resolution, "aspect_ratio": aspect_ratio}
        return {"output": transformer(**inputs, added_cond_kwargs=sizes).sample}

    names = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep", "resolution", "aspect_ratio")
    write_network_gradients(f"transformer-{name}", case, transformer, forward, names, names[:2], seed)


def write_text_encoder_gradients(name: str, case: str, seed: int) -> None:
    text_encoder = load(T5EncoderModel, name, "text_encoder")

    def forward(**inputs) -> Tensors:
        return {"last_hidden_state": text_encoder(**inputs).last_hidden_state}

    write_network_gradients(f"text_encoder-{name}", case, text_encoder, forward, ("input_ids", "attention_mask"), (), seed)


def write_vae_gradients(name: str, case: str, seed: int) -> None:
    vae = load(AutoencoderKL, name, "vae")

    def forward(image, latents) -> Tensors:
        posterior = vae.encode(image).latent_dist
        return {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": vae.decode(latents).sample}

    names = ("image", "latents")
    write_network_gradients(f"vae-{name}", case, vae, forward, names, names, seed)


if __name__ == "__main__":
    for old in TRAINING.glob("gradients-*"):
        old.unlink()
    write_transformer_gradients("alpha-256", "wide", seed=1)  # without size conditions
    write_transformer_gradients("alpha-1024", "wide", seed=2)  # with them
    write_text_encoder_gradients("alpha-256", "", seed=3)  # its file has but one case
    write_vae_gradients("alpha-256", "even", seed=4)
    for path in sorted(TRAINING.glob("gradients-*")):
        print(f"{path.stat().st_size:8} {path.name}")
