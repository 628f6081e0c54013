"""Writes fixtures/pipelines: whole images by diffusers' own pipelines, from the folders in fixtures/checkpoints, in float32."""

import shutil
from dataclasses import asdict, dataclass, field

import diffusers
import torch
from common import CHECKPOINTS, FIXTURES, normal, save_tensors, seeded, write_json
from diffusers import DiffusionPipeline

PIPELINES = FIXTURES / "pipelines"

CACTUS = "A small cactus with a happy face in the Sahara desert."
CIRCLES = "two blue circles above a red square"
BLURRY = "blurry, low quality"
MESSY = 'A <b>naïve</b> painter &amp; 2 cats   (see https://example.com/art.png) #12345 -- "café" @artist, 640x480 IMG_1234.jpeg!!'


@dataclass
class Case:
    """One call of a pipeline. A scheduler is made with `from_config` of the folder's own, plus `scheduler_kwargs`."""

    name: str
    model: str = "alpha-256"
    prompt: str | list[str] | None = CACTUS
    negative_prompt: str | None = None  # null: the pipeline's default, ""
    steps: int | None = 4
    timesteps: list[int] | None = None  # instead of steps
    guidance_scale: float = 4.5
    eta: float = 0.0
    height: int = 48
    width: int = 64
    use_resolution_binning: bool = False
    num_images_per_prompt: int = 1
    seed: int | list[int] = 0  # a list: one generator for each image
    scheduler: str | None = None
    scheduler_kwargs: dict = field(default_factory=dict)
    clean_caption: bool = False
    max_sequence_length: int | None = None  # null: 120, and 300 for Sigma
    given: list[str] = field(default_factory=list)  # tensors of the case's file that are inputs
    text: bool = False  # whether the file has the text's embeddings
    latents_stride: int = 1  # final_latents has every how many-th row and column

    def scheduler_of(self, pipe: DiffusionPipeline):
        if self.scheduler is None:
            return type(pipe.scheduler).from_config(pipe.scheduler.config)
        return getattr(diffusers, self.scheduler).from_config(pipe.scheduler.config, **self.scheduler_kwargs)


def solver(name: str, scheduler: str, **changes) -> Case:
    return Case(name, scheduler=scheduler, **changes)


CASES = [
    Case("dpm-solver", negative_prompt=BLURRY, steps=6, height=64, width=96, seed=42, text=True),
    Case("dpm-solver-no-guidance", guidance_scale=1.0, steps=3, seed=1),
    Case("dpm-solver-clean-caption", prompt=MESSY, clean_caption=True, steps=2, seed=2, text=True),
    Case("dpm-solver-binned", height=100, width=156, use_resolution_binning=True, steps=2, seed=3),
    Case(
        "dpm-solver-two-prompts-two-images",
        prompt=[CACTUS, CIRCLES],
        negative_prompt=BLURRY,
        steps=2,
        num_images_per_prompt=2,
        seed=4,
    ),
    Case("dpm-solver-a-seed-each", prompt=[CACTUS, CIRCLES], steps=2, seed=[5, 6]),
    Case("dpm-solver-given-latents", seed=7, given=["latents"]),
    Case(
        "dpm-solver-given-embeds",
        prompt=None,
        seed=8,
        given=["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"],
        text=True,
    ),
    solver("dpm-solver-karras", "DPMSolverMultistepScheduler", scheduler_kwargs={"use_karras_sigmas": True}, seed=9),
    solver("dpm-solver-third-order", "DPMSolverMultistepScheduler", scheduler_kwargs={"solver_order": 3}, steps=5, seed=10),
    solver(
        "sde-dpm-solver", "DPMSolverMultistepScheduler", scheduler_kwargs={"algorithm_type": "sde-dpmsolver++"}, prompt=CIRCLES, seed=11
    ),
    solver("euler", "EulerDiscreteScheduler", negative_prompt=BLURRY, seed=12),
    solver("euler-one-step", "EulerDiscreteScheduler", scheduler_kwargs={"timestep_spacing": "trailing"}, steps=1, seed=13),
    solver("euler-ancestral", "EulerAncestralDiscreteScheduler", num_images_per_prompt=2, seed=14),
    solver("ddim", "DDIMScheduler", steps=5, seed=15),
    solver("ddim-eta", "DDIMScheduler", scheduler_kwargs={"clip_sample": False}, steps=5, eta=0.7, seed=16),
    solver("ddpm", "DDPMScheduler", steps=6, seed=17),
    solver("heun", "HeunDiscreteScheduler", steps=6, seed=18),
    solver("unipc", "UniPCMultistepScheduler", steps=5, seed=19),
    solver("sa-solver", "SASolverScheduler", scheduler_kwargs={"algorithm_type": "data_prediction"}, steps=8, seed=20),
    solver("lcm-from-config", "LCMScheduler", guidance_scale=0.0, seed=21),
    Case("lcm", "alpha-1024", guidance_scale=0.0, height=64, width=96, seed=30, text=True),
    Case("lcm-one-step", "alpha-1024", guidance_scale=0.0, steps=1, seed=31),
    Case("lcm-two-images", "alpha-1024", prompt=CIRCLES, guidance_scale=0.0, num_images_per_prompt=2, steps=2, seed=32),
    Case("lcm-given-timesteps", "alpha-1024", guidance_scale=0.0, steps=None, timesteps=[999, 739, 499, 259], seed=33),
    Case(
        "lcm-binned", "alpha-1024", guidance_scale=0.0, steps=2, height=48, width=72, use_resolution_binning=True, seed=34, latents_stride=8
    ),
    solver("alpha-1024-dpm-solver", "DPMSolverMultistepScheduler", model="alpha-1024", prompt=[CACTUS, CIRCLES], width=32, seed=35),
    Case("sigma", "sigma-512", negative_prompt=BLURRY, height=96, width=64, seed=40, text=True),
    Case("sigma-120-tokens", "sigma-512", prompt=CIRCLES, max_sequence_length=120, steps=3, seed=41),
]


def open_pipeline(model: str) -> DiffusionPipeline:
    variant = "fp16" if model == "alpha-1024" else None
    pipe = DiffusionPipeline.from_pretrained(CHECKPOINTS / model, variant=variant, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encode(pipe: DiffusionPipeline, case: Case) -> dict[str, torch.Tensor]:
    """The text's embeddings, before they are repeated for several images of a prompt."""
    length = {} if case.max_sequence_length is None else {"max_sequence_length": case.max_sequence_length}
    tensors = pipe.encode_prompt(
        case.prompt or CIRCLES,
        case.guidance_scale > 1,
        negative_prompt=case.negative_prompt or "",
        clean_caption=case.clean_caption,
        **length,
    )
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return {name: tensor for name, tensor in zip(names, tensors) if tensor is not None}


def generators(case: Case):
    return [seeded(seed) for seed in case.seed] if isinstance(case.seed, list) else seeded(case.seed)


def arguments(pipe: DiffusionPipeline, case: Case, given: dict[str, torch.Tensor]) -> dict:
    values = {
        "prompt": case.prompt,
        "guidance_scale": case.guidance_scale,
        "eta": case.eta,
        "height": case.height,
        "width": case.width,
        "use_resolution_binning": case.use_resolution_binning,
        "num_images_per_prompt": case.num_images_per_prompt,
        "clean_caption": case.clean_caption,
        "generator": generators(case),
    }
    if case.timesteps is None:
        values["num_inference_steps"] = case.steps
    else:
        values["timesteps"] = case.timesteps
    if case.prompt is None:
        values["negative_prompt"] = None
    elif case.negative_prompt is not None:
        values["negative_prompt"] = case.negative_prompt
    if case.max_sequence_length is not None:
        values["max_sequence_length"] = case.max_sequence_length
    return values | given


def run(pipe: DiffusionPipeline, case: Case) -> dict:
    """Writes the case's tensors and images, and returns its entry in cases.json."""
    text = encode(pipe, case) if case.text else {}
    latents = {"latents": normal(seeded(100), 1, 4, case.height // 8, case.width // 8)} if "latents" in case.given else {}
    given = {name: tensor for name, tensor in (text | latents).items() if name in case.given}

    starts = []
    keep_start = pipe.transformer.register_forward_pre_hook(lambda _, args: starts.append(args[0]))
    pipe.scheduler = case.scheduler_of(pipe)
    final = pipe(**arguments(pipe, case, given), output_type="latent").images
    keep_start.remove()
    pipe.scheduler = case.scheduler_of(pipe)
    images = pipe(**arguments(pipe, case, given)).images

    tensors = text | latents | {"final_latents": final[:, :, :: case.latents_stride, :: case.latents_stride]}
    if case.latents_stride == 1:  # what the network saw first: scaled by the solver, unconditional half left out
        tensors["first_model_input"] = starts[0][-len(final) :]
    save_tensors(PIPELINES / f"{case.name}.safetensors", tensors, latents_stride=case.latents_stride)
    files = []
    for number, image in enumerate(images):
        assert image.size == (case.width, case.height), image.size
        files.append(f"{case.name}-{number}.png")
        image.save(PIPELINES / files[-1])
    print(f"{case.name:36} latents {final.std():8.3f}  {len(images)} image(s)")
    return asdict(case) | {"images": files}


if __name__ == "__main__":
    shutil.rmtree(PIPELINES, ignore_errors=True)
    PIPELINES.mkdir(parents=True)
    entries = []
    for model in dict.fromkeys(case.model for case in CASES):
        pipe = open_pipeline(model)
        own = pipe.scheduler
        for case in CASES:
            if case.model == model:
                pipe.scheduler = own
                entries.append(run(pipe, case))
    write_json(PIPELINES / "cases.json", entries)
    print(f"{sum(file.stat().st_size for file in PIPELINES.iterdir()) / 1e6:.2f} MB")
