"""Golden draws of torch.Generator("cpu"), for the noise tests.

Writes fixtures/generator/draws.json and draws.safetensors. The JSON holds
  single     one randn of `size` after manual_seed(seed)   -> "single.<i>"
  uniform    one rand of `size` after manual_seed(seed)    -> "uniform.<i>"
  sequences  several draws in a row from one generator     -> "sequence.<i>",
             their float32 results joined end to end; each draw is [kind, size]
             with kind "randn", "rand", "randn64" or "rand64" (float64 draws,
             kept as float64 in "sequence.<i>.double", in order)
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)

OUT = Path(__file__).resolve().parents[2] / "fixtures" / "generator"

SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 5, 2**63 - 1]
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 100, 1000]
LONG = [(42, 4 * 128 * 128 // 16), (7, 4096)]


def randn(*sizes):
    return [["randn", n] for n in sizes]


SEQUENCES = [
    (0, randn(3, 16, 5, 1, 17, 64, 2)),
    (42, randn(1, 1, 1, 1)),
    (42, randn(2, 2)),
    (42, randn(4)),
    (1, randn(16, 16)),
    (1, randn(32)),
    (1, randn(1, 16, 1, 16, 1, 1)),
    (5, randn(17, 15, 33, 7, 7, 100)),
    (2**32 + 5, randn(17, 15, 33, 7, 7, 100)),
    # More draws than one block of the twister (624 words).
    (3, randn(600, 30, 15, 1, 640)),
    (9, [["rand", 3], ["randn", 1], ["rand", 2], ["randn", 1], ["rand", 1], ["randn", 3], ["randn", 16]]),
    (11, [["randn", 15], ["rand", 17], ["randn", 15], ["rand", 16], ["randn", 18]]),
    (13, [["randn64", 3], ["randn", 3], ["randn64", 17], ["rand64", 5], ["randn", 2]]),
]

DRAWS = {
    "randn": (torch.randn, torch.float32),
    "rand": (torch.rand, torch.float32),
    "randn64": (torch.randn, torch.float64),
    "rand64": (torch.rand, torch.float64),
}


def draw(generator, kind, size):
    function, dtype = DRAWS[kind]
    return function(size, generator=generator, dtype=dtype)


def generator_for(seed):
    return torch.Generator("cpu").manual_seed(seed)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tensors, index = {}, {"torch": torch.__version__, "single": [], "uniform": [], "sequences": []}

    def single(kind, listing, name, seed, size):
        key = f"{name}.{len(index[listing])}"
        tensors[key] = draw(generator_for(seed), kind, size)
        index[listing].append({"key": key, "seed": seed, "size": size})

    for seed in SEEDS:
        for size in SIZES:
            # The longest size shows nothing new for each seed.
            if size < 1000 or seed in (0, 2**63 - 1):
                single("randn", "single", "single", seed, size)
        for size in (1, 5, 40):
            single("rand", "uniform", "uniform", seed, size)
    for seed, size in LONG:
        single("randn", "single", "single", seed, size)

    for seed, draws in SEQUENCES:
        key = f"sequence.{len(index['sequences'])}"
        generator = generator_for(seed)
        results = [draw(generator, kind, size) for kind, size in draws]
        tensors[key] = torch.cat([r for r in results if r.dtype == torch.float32])
        doubles = [r for r in results if r.dtype == torch.float64]
        if doubles:
            tensors[f"{key}.double"] = torch.cat(doubles)
        index["sequences"].append({"key": key, "seed": seed, "draws": draws})

    save_file(tensors, OUT / "draws.safetensors")
    (OUT / "draws.json").write_text(json.dumps(index) + "\n")
    print(f"{len(tensors)} tensors")


if __name__ == "__main__":
    main()
