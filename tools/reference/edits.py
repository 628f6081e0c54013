"""Writes fixtures/edits: changed images and images under control, from the folders in fixtures/checkpoints, in float32.

diffusers has no pipeline that does this with PixArt. So the loop stands here, around the parts of its PixArtAlphaPipeline and with its
schedulers, and computes what its Stable Diffusion and LCM pipelines do with a network of four input channels, but for two things in
inpainting: LCM has the schedule that it has in image to image, and nothing is drawn for the masked image, which such a network ignores. Control is that of controlnet.py, between the same steps as in diffusers' pipelines with a ControlNet.
"""

import shutil
from dataclasses import asdict, dataclass, field, replace
from inspect import signature

import diffusers
import torch
from common import FIXTURES, normal, save_tensors, seeded, write_json
from controlnet import Controlled, round_to_half, write_adapter
from diffusers import DiffusionPipeline, LCMScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from pipelines import BLURRY, CACTUS, CIRCLES, open_pipeline
from torch.nn.functional import interpolate

EDITS = FIXTURES / "edits"

DISC, SQUARE, MASK, EDGES = "disc.png", "square.png", "mask.png", "edges.png"


@dataclass
class Control:
    """The map EDGES is followed from one share of the steps to another."""

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def applies(self, step: int, steps: int) -> bool:
        return not (step / steps < self.start or (step + 1) / steps > self.end)


@dataclass
class Case:
    """One image. A scheduler is made with `from_config` of the folder's own, plus `scheduler_kwargs`."""

    name: str
    scheduler: str | None = None
    model: str = "alpha-256"
    prompt: str = CACTUS
    negative_prompt: str | None = None  # null: the pipeline's default, ""
    image: str | None = SQUARE  # null: noise, of the size of the map that is followed
    mask: str | None = None  # null: all of the image may change
    steps: int = 6
    strength: float = 0.5
    guidance_scale: float = 4.5
    seed: int = 0
    control: Control | None = None
    scheduler_kwargs: dict = field(default_factory=dict)

    def scheduler_of(self, pipe: DiffusionPipeline):
        own = type(pipe.scheduler) if self.scheduler is None else getattr(diffusers, self.scheduler)
        return own.from_config(pipe.scheduler.config, **self.scheduler_kwargs)


def inpaint(name: str, scheduler: str | None = None, **changes) -> Case:
    return Case(f"inpaint-{name}", scheduler, mask=MASK, **changes)


def follow(name: str, scheduler: str | None = None, **changes) -> Case:
    return Case(f"control-{name}", scheduler, **{"control": Control(), "image": None, "strength": 1.0} | changes)


LCM = {"model": "alpha-1024", "guidance_scale": 0.0, "steps": 4}
DATA = {"algorithm_type": "data_prediction"}

CASES = [
    Case("dpm-solver", strength=0.6, negative_prompt=BLURRY, seed=50),
    Case("dpm-solver-full", strength=1.0, image=DISC, steps=4, seed=51),
    Case("dpm-solver-one-step", strength=0.2, image=DISC, seed=52),
    Case("dpm-solver-karras", strength=0.6, image=DISC, scheduler_kwargs={"use_karras_sigmas": True}, seed=53),
    Case("ddim", "DDIMScheduler", seed=54),
    Case("ddpm", "DDPMScheduler", image=DISC, seed=55),
    Case("euler", "EulerDiscreteScheduler", seed=56),
    Case("euler-ancestral", "EulerAncestralDiscreteScheduler", image=DISC, seed=57),
    Case("heun", "HeunDiscreteScheduler", image=DISC, seed=58),
    Case("unipc", "UniPCMultistepScheduler", seed=59),
    Case("sa-solver", "SASolverScheduler", scheduler_kwargs=DATA, image=DISC, steps=8, seed=60),
    Case("lcm-half", seed=61, **LCM),
    Case("lcm-0.58", strength=0.58, prompt=CIRCLES, image=DISC, seed=62, **LCM),  # 50 * 0.58 is 28.999999999999996
    Case("lcm-0.8", strength=0.8, image=DISC, seed=63, **LCM),
    inpaint("dpm-solver-full", strength=1.0, negative_prompt=BLURRY, steps=5, seed=70),
    inpaint("dpm-solver", strength=0.7, seed=71),
    inpaint("ddim", "DDIMScheduler", strength=0.7, scheduler_kwargs={"clip_sample": False}, seed=72),
    inpaint("ddpm", "DDPMScheduler", strength=0.6, seed=73),
    inpaint("euler-full", "EulerDiscreteScheduler", strength=1.0, steps=5, seed=74),
    inpaint("euler", "EulerDiscreteScheduler", strength=0.6, seed=75),
    inpaint("euler-ancestral", "EulerAncestralDiscreteScheduler", strength=0.6, seed=76),
    inpaint("heun", "HeunDiscreteScheduler", strength=0.6, steps=5, seed=77),
    inpaint("unipc", "UniPCMultistepScheduler", strength=0.7, seed=78),
    inpaint("sa-solver", "SASolverScheduler", strength=0.6, scheduler_kwargs=DATA, steps=8, seed=79),
    inpaint("lcm-full", strength=1.0, seed=80, **LCM),
    inpaint("lcm", strength=0.7, prompt=CIRCLES, seed=81, **LCM),
    follow("dpm-solver", negative_prompt=BLURRY, seed=90),
    follow("ddim-between", "DDIMScheduler", steps=8, control=Control(0.7, 0.25, 0.75), seed=91),
    follow("lcm", seed=92, **LCM),
    follow("lcm-weak", prompt=CIRCLES, control=Control(scale=0.4), seed=93, **LCM),
    follow("euler-image", "EulerDiscreteScheduler", image=SQUARE, strength=0.6, seed=94),
    follow("lcm-mask", image=SQUARE, mask=MASK, control=Control(end=0.5), seed=95, **LCM),
]

CONTROL_SEEDS = {"alpha-256": 3051, "alpha-1024": 3052}


def draw() -> None:
    """The images: a shape on a gradient, 64 by 64 and 96 wide by 64 high, and a mask for the wide one, no edge on a latent's, and a
    map of two outlines as large."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    disc = (x - 30) ** 2 + (y - 35) ** 2 < 400
    square = ((x - 60).abs() < 21) & ((y - 27).abs() < 17)
    grey = torch.tensor([126, 127, 128])[x // 32]  # of which only the last counts as white
    for name, shape, width in ((DISC, disc, 64), (SQUARE, square, 96)):
        background = torch.stack([2 * x + 30, 4 * y, 255 - x - 2 * y], dim=-1)
        pixels = torch.where(shape[..., None], background.flip(-1) // 2 + torch.tensor([100, 20, 0]), background)
        Image.fromarray(pixels[:, :width].to(torch.uint8).numpy()).save(EDITS / name)
    mask = torch.where(y < 45, 255 * ((x - 50) ** 2 + (y - 20) ** 2 < 500), grey)
    Image.fromarray(mask.to(torch.uint8).numpy()).save(EDITS / MASK)
    ring = ((x - 28) ** 2 + (y - 33) ** 2 - 400).abs() < 40
    outline = ((x - 70).abs().maximum((y - 22).abs()) - 14).abs() < 1
    Image.fromarray((255 * (ring | outline)).to(torch.uint8).numpy()).save(EDITS / EDGES)


def steered(pipe: DiffusionPipeline, model: str) -> Controlled:
    """The folder's transformer, under the control of a random copy of its first block."""
    controlled, generator = Controlled(pipe.transformer, 1), seeded(CONTROL_SEEDS[model])
    for name, weight in controlled.controlnet_blocks.named_parameters():
        if "transformer_block." in name:
            weight.add_(normal(generator, *weight.shape, std=0.02))
        else:
            weight.copy_(normal(generator, *weight.shape, std=0.06 / weight.shape[-1] ** 0.5))
    round_to_half(controlled.controlnet_blocks)
    return controlled.eval()


def start(scheduler, case: Case) -> torch.Tensor:
    """Sets the scheduler to begin where the strength has it, and returns the timesteps from there on."""
    if isinstance(scheduler, LCMScheduler):  # as many steps, of a shorter schedule
        scheduler.set_timesteps(case.steps, strength=case.strength)
        return scheduler.timesteps
    scheduler.set_timesteps(case.steps)
    skipped = (case.steps - min(int(case.steps * case.strength), case.steps)) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return scheduler.timesteps[skipped:]


def encode(pipe: DiffusionPipeline, file: str):
    """The distribution of an image's latents, not scaled, and its height and width."""
    image = pipe.image_processor.preprocess(Image.open(EDITS / file).convert("RGB"))
    return pipe.vae.encode(image).latent_dist, image.shape[2:]


def network(pipe: DiffusionPipeline, controlled: Controlled, case: Case, height: int, width: int):
    """The transformer as a function of latents, timestep and whether control applies: guided by the case's prompt, without the
    variance's channels."""
    guided = case.guidance_scale > 1
    embeds, mask, negative_embeds, negative_mask = pipe.encode_prompt(
        case.prompt, guided, negative_prompt=case.negative_prompt or "", clean_caption=False
    )
    if guided:
        embeds, mask = torch.cat([negative_embeds, embeds]), torch.cat([negative_mask, mask])
    sizes = {"resolution": None, "aspect_ratio": None}
    if pipe.transformer.config.sample_size == 128:
        sizes["resolution"] = torch.tensor([[height, width]], dtype=torch.float32).repeat(len(embeds), 1)
        sizes["aspect_ratio"] = torch.tensor([[height / width]]).repeat(len(embeds), 1)
    condition = None
    if case.control is not None:
        condition = pipe.vae.config.scaling_factor * encode(pipe, EDGES)[0].mode()

    def noise_of(latents: torch.Tensor, timestep: torch.Tensor, follows: bool) -> torch.Tensor:
        inputs = {"encoder_hidden_states": embeds, "encoder_attention_mask": mask, "timestep": timestep.expand(len(embeds))}
        latents = torch.cat([latents] * len(embeds))
        if follows:
            conditions = torch.cat([condition] * len(embeds))
            output = controlled(latents, conditions, **inputs, scale=case.control.scale, **sizes)
        else:
            output = pipe.transformer(latents, **inputs, added_cond_kwargs=sizes).sample
        output = output.chunk(2, dim=1)[0]
        if not guided:
            return output
        without, with_prompt = output.chunk(2)
        return without + case.guidance_scale * (with_prompt - without)

    return noise_of


def edit(pipe: DiffusionPipeline, controlled: Controlled, case: Case) -> dict[str, torch.Tensor]:
    generator = seeded(case.seed)
    scheduler = case.scheduler_of(pipe)
    timesteps = start(scheduler, case)

    distribution, size = encode(pipe, case.image or EDGES)
    tensors = {"timesteps": timesteps.float()}
    if case.image is not None:
        init_latents = pipe.vae.config.scaling_factor * distribution.sample(generator)
        tensors["init_latents"] = init_latents
    noise = torch.randn(distribution.mean.shape, generator=generator)
    tensors["noise"] = noise
    if case.mask is not None:
        processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        mask = interpolate(processor.preprocess(Image.open(EDITS / case.mask)), size=noise.shape[2:])
        tensors["mask"] = mask

    if case.image is None or (case.mask is not None and case.strength == 1.0):
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(init_latents, noise, timesteps[:1])
    tensors["start"] = latents

    noise_of = network(pipe, controlled, case, *size)
    settings = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    steps = []
    for number, timestep in enumerate(timesteps):
        follows = case.control is not None and case.control.applies(number, len(timesteps))
        output = noise_of(scheduler.scale_model_input(latents, timestep), timestep, follows)
        latents = scheduler.step(output, timestep, latents, **settings, return_dict=False)[0]
        if case.mask is not None:
            kept = init_latents
            if number + 1 < len(timesteps):
                kept = scheduler.add_noise(init_latents, noise, timesteps[number + 1 : number + 2])
            latents = (1 - mask) * kept + mask * latents
        steps.append(latents)
    return tensors | {"steps": torch.cat(steps), "latents": latents}


def run(pipe: DiffusionPipeline, controlled: Controlled, case: Case) -> dict:
    """Writes the case's tensors, and returns its entry in cases.json."""
    tensors = edit(pipe, controlled, case)
    assert all(tensor.isfinite().all() for tensor in tensors.values()), case.name
    save_tensors(EDITS / f"{case.name}.safetensors", tensors)
    told = f"{case.name:24} {len(tensors['steps'])} steps  latents {tensors['latents'].std():6.3f}"
    if case.image is not None:
        told += f"  changed {(tensors['latents'] - tensors['init_latents']).std():6.3f}"
    if case.control is not None:
        free = edit(pipe, controlled, replace(case, control=None))["latents"]
        told += f"  by control {(tensors['latents'] - free).std():6.3f}"
    print(told)
    return asdict(case)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    shutil.rmtree(EDITS, ignore_errors=True)
    EDITS.mkdir(parents=True)
    draw()
    entries = []
    for model in dict.fromkeys(case.model for case in CASES):
        pipe = open_pipeline(model)
        controlled = steered(pipe, model)
        write_adapter(EDITS / f"controlnet-{model}", controlled)
        entries += [run(pipe, controlled, case) for case in CASES if case.model == model]
    write_json(EDITS / "cases.json", entries)
    print(f"{sum(file.stat().st_size for file in EDITS.iterdir()) / 1e6:.2f} MB")
