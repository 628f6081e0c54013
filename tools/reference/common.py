"""What every script here shares: where the fixtures are, repeatable random numbers, and a safetensors writer."""

import json
import os
import struct
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one order of summation, so one result
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  (after the thread count is set)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "fixtures"
CHECKPOINTS = FIXTURES / "checkpoints"

SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
    return mean + std * torch.randn(*shape, generator=generator)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], **scalars) -> None:
    """Writes safetensors with `scalars` as its metadata, in sorted order: the library's own writer shuffles the metadata."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
    header: dict = {"__metadata__": {name: str(value) for name, value in sorted(scalars.items())}} if scalars else {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.numpy().tobytes())


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
