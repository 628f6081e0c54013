"""Writes fixtures/pipelines/bf16.json: how far diffusers' own latents in bfloat16 are from its latents in float32, after
4 LCM steps with the same noise. Run after pipelines.py."""

import diffusers.schedulers.scheduling_lcm as scheduling_lcm
import torch
from common import FIXTURES, seeded, write_json
from diffusers.utils.torch_utils import randn_tensor
from pipelines import CASES, open_pipeline

from safetensors.torch import load_file


def same_noise(shape, generator=None, device=None, dtype=None, layout=None):
    """torch draws other numbers for bfloat16: draw float32 and round."""
    return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def error(case) -> float:
    golden = load_file(FIXTURES / "pipelines" / f"{case.name}.safetensors")["final_latents"]
    pipe = open_pipeline(case.model).to(torch.bfloat16)
    pipe.scheduler = case.scheduler_of(pipe)
    generator = seeded(case.seed)
    start = randn_tensor((1, 4, case.height // 8, case.width // 8), generator=generator)
    latents = pipe(
        case.prompt, num_inference_steps=case.steps, guidance_scale=case.guidance_scale, height=case.height, width=case.width,
        latents=start.to(torch.bfloat16), generator=generator, use_resolution_binning=False, clean_caption=False,
        output_type="latent",
    ).images.float()  # fmt: skip
    return ((latents - golden).norm() / golden.norm()).item()


if __name__ == "__main__":
    scheduling_lcm.randn_tensor = same_noise
    errors = {case.name: error(case) for case in CASES if case.name in ("lcm", "lcm-from-config")}
    print(errors)
    write_json(FIXTURES / "pipelines" / "bf16.json", errors)
