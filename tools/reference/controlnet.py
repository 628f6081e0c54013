"""Writes fixtures/control: control of a transformer by an image, as in PixArt-δ's ControlNet-Transformer, and HED, which finds
the edges that the published one follows. Run after gradients.py.

base, base-sizes       transformers, without and with size conditions
adapter, adapter-all   copies of base's first two and first three blocks, in the layout of diffusers' research example
adapter-sizes          a copy of base-sizes' first block
original.pth           base and adapter in the layout of the original repository
values.safetensors     what they compute
hed-network.pth        HED in the layout of ControlNetHED.pth, with narrow layers
hed.safetensors        images and their edges
../training/gradients-control.safetensors   gradients of the first case

Every weight is one that half precision holds. The adapters are stored in float32, all else in half precision for its size, so
original.pth has exactly the weights of base and adapter. Everything is computed in float32.
"""

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from checkpoints import FOLDERS, T5_WIDTH, Folder, randomise, to_original, transformer_config, write_transformer
from common import FIXTURES, normal, save_tensors, seeded, write_json
from diffusers import PixArtTransformer2DModel
from gradients import TRAINING, Tensors, prefixed, write_gradients
from networks import mask_of
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

CONTROL = FIXTURES / "control"

# The transformers under control

SIZES = {"num_layers": 4, "attention_head_dim": 8}
BASES = {  # one without and one with size conditions, whose width needs a third
    "base": SIZES | {"num_attention_heads": 2, "sample_size": 16, "use_additional_conditions": False},
    "base-sizes": SIZES | {"num_attention_heads": 3, "sample_size": 128, "use_additional_conditions": True},
}
BASE_SEEDS = {"base": 3001, "base-sizes": 3002}


def folder_of(base: str) -> Folder:
    return replace(FOLDERS["sigma-512"], transformer=BASES[base])


def round_to_half(network: nn.Module) -> None:
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.half())


def base_transformer(base: str) -> PixArtTransformer2DModel:
    transformer = PixArtTransformer2DModel(**transformer_config(folder_of(base)))
    randomise(transformer, BASE_SEEDS[base])
    round_to_half(transformer)
    return transformer.eval()


# The control


class ControlBlock(nn.Module):
    """A copy of one of the base's blocks. Projections lead out of it, and for the first copy also into it."""

    def __init__(self, block: nn.Module, width: int, first: bool):
        super().__init__()
        self.transformer_block = copy.deepcopy(block)
        if first:
            self.before_proj = nn.Linear(width, width)
        self.after_proj = nn.Linear(width, width)


class Controlled(nn.Module):
    """A frozen transformer whose blocks 1 to `layers` are corrected by copies of the blocks before them."""

    def __init__(self, base: PixArtTransformer2DModel, layers: int):
        super().__init__()
        assert layers < len(base.transformer_blocks)  # the last block's copy would have no block to correct
        self.base = base.requires_grad_(False)
        self.controlnet_blocks = nn.ModuleList(
            ControlBlock(block, base.inner_dim, first=k == 0) for k, block in enumerate(base.transformer_blocks[:layers])
        ).requires_grad_(True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        scale: float = 1.0,
        resolution: torch.Tensor | None = None,
        aspect_ratio: torch.Tensor | None = None,
    ) -> torch.Tensor:
        base, patch = self.base, self.base.config.patch_size
        batch, _, height, width = hidden_states.shape
        x, control = base.pos_embed(hidden_states), base.pos_embed(condition)
        sizes = {"resolution": resolution, "aspect_ratio": aspect_ratio}
        modulation, embedded_timestep = base.adaln_single(timestep, sizes, batch_size=batch, hidden_dtype=x.dtype)
        text = base.caption_projection(encoder_hidden_states)
        padding = -10000.0 * (1 - encoder_attention_mask[:, None].to(x.dtype))  # added to the scores

        def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return block(x, encoder_hidden_states=text, encoder_attention_mask=padding, timestep=modulation)

        x = run(base.transformer_blocks[0], x)
        for k, block in enumerate(base.transformer_blocks[1:]):
            if k < len(self.controlnet_blocks):
                copied = self.controlnet_blocks[k]
                control = run(copied.transformer_block, x + copied.before_proj(control) if k == 0 else control)
                x = x + scale * copied.after_proj(control)
            x = run(block, x)

        shift, gain = (base.scale_shift_table + embedded_timestep[:, None]).chunk(2, dim=1)
        patches = base.proj_out(base.norm_out(x) * (1 + gain) + shift)
        patches = patches.view(batch, height // patch, width // patch, patch, patch, base.out_channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, base.out_channels, height, width)

    def adapter_state(self) -> Tensors:
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith("controlnet_blocks.")}


@dataclass
class Adapter:
    base: str
    layers: int
    seed: int

    def load(self) -> Controlled:
        """Projections are random, and copies have moved from their blocks."""
        controlled = Controlled(base_transformer(self.base), self.layers)
        generator = seeded(self.seed)
        with torch.no_grad():
            for block in controlled.controlnet_blocks:
                for weight in block.transformer_block.parameters():
                    weight.add_(normal(generator, *weight.shape, std=0.05))
                for name, projection in block.named_children():
                    if name != "transformer_block":
                        randomise(projection, int(torch.randint(2**31, (1,), generator=generator)))
        round_to_half(controlled.controlnet_blocks)
        return controlled.eval()


ADAPTERS = {
    "adapter": Adapter("base", layers=2, seed=3011),
    "adapter-all": Adapter("base", layers=3, seed=3012),
    "adapter-sizes": Adapter("base-sizes", layers=1, seed=3013),
}


def write_bases() -> None:
    for name in BASES:
        write_transformer(folder_of(name), base_transformer(name).half(), CONTROL / name, variant=None, safe=True)


def write_adapter(path: Path, controlled: Controlled) -> None:
    layers = len(controlled.controlnet_blocks)
    write_json(
        path / "config.json",
        {"_class_name": "PixArtControlNetAdapterModel", "_diffusers_version": "0.32.0.dev0", "num_layers": layers},
    )
    save_file(controlled.adapter_state(), path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def write_adapters() -> None:
    for name, adapter in ADAPTERS.items():
        write_adapter(CONTROL / name, adapter.load())


def write_original() -> None:
    controlled = ADAPTERS["adapter"].load()
    base = controlled.base.state_dict()
    copies, projections = {}, {}
    for name, tensor in controlled.adapter_state().items():
        if ".transformer_block." in name:
            _, layer, _, rest = name.split(".", 3)
            copies[f"transformer_blocks.{layer}.{rest}"] = tensor
        else:
            projections[name.replace("controlnet_blocks.", "controlnet.")] = tensor

    original = to_original(base, controlled.base.config.num_layers)
    original["pos_embed"] = controlled.base.pos_embed.pos_embed
    original["y_embedder.y_embedding"] = normal(seeded(3021), 120, T5_WIDTH)
    state = prefixed("base_model", original)
    for name, tensor in to_original(base | copies, ADAPTERS["adapter"].layers).items():  # as if they were the base's own
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            state[f"controlnet.{layer}.copied_block.{rest}"] = tensor
    torch.save({"state_dict": {name: tensor.half() for name, tensor in (state | projections).items()}}, CONTROL / "original.pth")


# What they compute


@dataclass
class Case:
    adapter: str
    scale: float
    size: tuple[int, int]  # of the latents
    timestep: torch.Tensor
    lengths: tuple[int, int]  # tokens that are not padding
    seed: int

    def inputs(self) -> Tensors:
        generator = seeded(self.seed)
        (height, width), tokens = self.size, max(self.lengths)
        inputs = {
            "hidden_states": normal(generator, 2, 4, height, width),
            "condition": normal(generator, 2, 4, height, width),
            "timestep": self.timestep,
            "encoder_hidden_states": normal(generator, 2, tokens, T5_WIDTH),
            "encoder_attention_mask": mask_of(self.lengths, tokens),
        }
        if BASES[ADAPTERS[self.adapter].base]["use_additional_conditions"]:
            inputs["resolution"] = torch.tensor([[8.0 * height, 8.0 * width], [1024.0, 768.0]])
            inputs["aspect_ratio"] = torch.tensor([[height / width], [1024 / 768]])
        return inputs


CASES = {
    "two": Case("adapter", 1.0, (8, 12), torch.tensor([999, 20]), (9, 4), seed=3031),
    "weak": Case("adapter", 0.6, (8, 6), torch.tensor([500, 1]), (1, 7), seed=3032),
    "all": Case("adapter-all", 1.0, (20, 6), torch.tensor([967.5, 0.25]), (5, 8), seed=3033),  # more rows than the base's grid
    "sizes": Case("adapter-sizes", 1.0, (6, 10), torch.tensor([999, 250]), (6, 3), seed=3034),
}


def check_that_untrained_control_does_nothing(controlled: Controlled, inputs: Tensors) -> None:
    """And that `Controlled` repeats the computation of diffusers."""
    untrained = copy.deepcopy(controlled)
    for block in untrained.controlnet_blocks:
        nn.init.zeros_(block.after_proj.weight)
        nn.init.zeros_(block.after_proj.bias)
    plain = {name: tensor for name, tensor in inputs.items() if name not in ("condition", "resolution", "aspect_ratio")}
    sizes = {name: inputs.get(name) for name in ("resolution", "aspect_ratio")}
    assert torch.equal(untrained(**inputs), untrained.base(**plain, added_cond_kwargs=sizes).sample)


@torch.no_grad()
def write_values() -> None:
    tensors, origin = {}, {}
    for name, case in CASES.items():
        controlled, inputs = ADAPTERS[case.adapter].load(), case.inputs()
        check_that_untrained_control_does_nothing(controlled, inputs)
        output = controlled(**inputs, scale=case.scale)
        tensors |= prefixed(name, inputs | {"output": output})
        origin |= {f"{name}.base": ADAPTERS[case.adapter].base, f"{name}.adapter": case.adapter, f"{name}.scale": case.scale}

        share = (output - controlled(**inputs, scale=0.0)).norm() / output.norm()
        other = (output - controlled(**inputs | {"condition": -inputs["condition"]}, scale=case.scale)).norm() / output.norm()
        print(f"{name:5} output {output.std():.2f}, of which control makes {share:.2f}; with another condition {other:.2f} apart")
    save_tensors(CONTROL / "values.safetensors", tensors, **origin)


def write_control_gradients() -> None:
    case = CASES["two"]
    controlled = ADAPTERS[case.adapter].load()
    write_gradients(
        "control",
        controlled,
        lambda **inputs: {"output": controlled(**inputs, scale=case.scale)},
        case.inputs(),
        ("hidden_states", "condition"),
        seed=3041,
        base="control/base",
        adapter=f"control/{case.adapter}",
        inputs_file="control/values.safetensors",
        case="two",
        scale=case.scale,
    )


# Edges

WIDTHS, CONVOLUTIONS = (4, 6, 8, 8, 8), (2, 2, 3, 3, 3)  # the published network's widths are 64, 128, 256, 512 and 512
PIXEL_MEANS = (124.0, 117.0, 104.0)


class EdgeBlock(nn.Module):
    def __init__(self, inputs: int, width: int, convolutions: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width if k else inputs, width, 3, padding=1) for k in range(convolutions))
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convs:
            x = functional.relu(convolution(x))
        return x


class Hed(nn.Module):
    """Holistically-nested edge detection: pictures from 0 to 255 in, edges from 0 to 1 out."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for k, (inputs, width, convolutions) in enumerate(zip((3, *WIDTHS), WIDTHS, CONVOLUTIONS), start=1):
            self.add_module(f"block{k}", EdgeBlock(inputs, width, convolutions))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x, scores = image - self.norm, []
        for k, block in enumerate(self.children()):
            x = block(functional.max_pool2d(x, 2) if k else x)  # an odd row or column at the end is lost
            score = block.projection(x)
            scores.append(functional.interpolate(score, image.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(scores, dim=1).mean(1, keepdim=True).sigmoid()


@torch.no_grad()
def random_hed(seed: int) -> Hed:
    """Scores stay where the sigmoid is steep."""
    network, generator = Hed(), seeded(seed)
    for name, weight in network.named_parameters():
        if name == "norm":
            weight.copy_(torch.tensor(PIXEL_MEANS).view(1, 3, 1, 1) + normal(generator, 1, 3, 1, 1, std=3.0))
        elif name.endswith("bias"):
            weight.copy_(normal(generator, *weight.shape, std=0.1))
        else:
            weight.copy_(normal(generator, *weight.shape, std=(2 / weight[0].numel()) ** 0.5))
    network.block1.convs[0].weight.div_(64)
    for block in network.children():
        block.projection.weight.mul_(3)
    round_to_half(network)
    return network


def picture(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Soft spots under a little noise, in whole numbers."""
    spots = functional.interpolate(normal(generator, 1, 3, 6, 8, std=70.0), (height, width), mode="bilinear", align_corners=False)
    return (spots + 128 + normal(generator, 1, 3, height, width, std=12.0)).round().clamp(0, 255)


@torch.no_grad()
def write_hed() -> None:
    network, generator = random_hed(3051), seeded(3052)
    torch.save({name: tensor.half() for name, tensor in network.state_dict().items()}, CONTROL / "hed-network.pth")
    tensors = {}
    for case, size in {"odd": (37, 50), "even": (64, 48)}.items():
        image = picture(generator, *size)
        edges = network(image)
        tensors |= {f"{case}.image": image.half(), f"{case}.edges": edges}
        print(f"{case:5} edges from {edges.min():.2f} to {edges.max():.2f}")
    sizes = {"widths": list(WIDTHS), "convolutions": list(CONVOLUTIONS)}
    save_tensors(CONTROL / "hed.safetensors", tensors, network="hed-network.pth", **sizes)


if __name__ == "__main__":
    shutil.rmtree(CONTROL, ignore_errors=True)
    write_bases()
    write_adapters()
    write_original()
    write_values()
    write_control_gradients()
    write_hed()
    files = [file for file in sorted(CONTROL.rglob("*")) if file.is_file()]
    for file in files:
        file.chmod(0o644)
        print(f"{file.stat().st_size:8} {file.relative_to(CONTROL)}")
    print(f"{sum(file.stat().st_size for file in files):8} in all")
    gradients = TRAINING / "gradients-control.safetensors"
    print(f"{gradients.stat().st_size:8} {gradients.name}")
