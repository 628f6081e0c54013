"""Writes fixtures/training: steps of training the transformer of alpha-256, in float32. Run after gradients.py.

consistency.safetensors       three steps of latent consistency distillation
consistency-lora.safetensors  three of the same with LoRA (LCM-LoRA), from the adapter in lora/
diffusion.safetensors         losses and gradients of ordinary training, with learned variances
"""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from checkpoints import T5_WIDTH
from common import normal, save_tensors, seeded, write_json
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from gradients import (
    STRIDE,
    TRAINING,
    WHOLE,
    Tensors,
    case_of,
    difference,
    in_double,
    parameter_gradients,
    prefixed,
    thinned,
    without_gradient,
)
from networks import load, mask_of
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

CHECKPOINT = "alpha-256"
LATENTS = (4, 4, 6, 8)  # a batch of four
TOKENS, TOKENS_THAT_COUNT = 9, (9, 4, 2, 6)  # the rest is padding

# Every schedule has T = 1000 betas from 1e-4 to 0.02, evenly spaced.
TIMESTEPS, BETA_START, BETA_END = 1000, 1e-4, 0.02

GRADIENT_WHOLE = 512  # gradients here are thinned more than in gradients.py, which has them whole


def transformer() -> PixArtTransformer2DModel:
    return load(PixArtTransformer2DModel, CHECKPOINT, "transformer")


def with_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return network.double() if dtype == torch.float64 else network


def output_of(network: nn.Module, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[n, 8, h, w]: the noise, and what the variance is made from."""
    no_sizes = {"resolution": None, "aspect_ratio": None}
    return network(z, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=t, added_cond_kwargs=no_sizes).sample


def column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A float64 for each image, in the precision of the images."""
    return values.to(like.dtype)[:, None, None, None]


# Latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", algorithm 1; PixArt-δ, Chen et al. 2024)

DDIM_STEPS, SIGMA_DATA, TIMESTEP_SCALING, GUIDANCE, HUBER = 50, 0.5, 10.0, 4.5, 1e-3
MAX_NORM, LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, EMA_DECAY = 0.01, 1e-3, (0.9, 0.999), 1e-10, 0.0, 0.95
CONSISTENCY_CONSTANTS = {
    "checkpoint": CHECKPOINT,
    "schedule": f"linear betas {BETA_START} to {BETA_END}, {TIMESTEPS} timesteps, alphas_cumprod in float32 as diffusers has it",
    "ddim_steps": DDIM_STEPS,
    "sigma_data": SIGMA_DATA,
    "timestep_scaling": TIMESTEP_SCALING,
    "guidance_scale": f"{GUIDANCE}: cond + {GUIDANCE} * (cond - uncond)",
    "huber_c": HUBER,
    "max_grad_norm": f"{MAX_NORM}: gradients *= min(1, {MAX_NORM} / (norm + 1e-6))",
    "adamw": f"lr {LEARNING_RATE}, betas {BETAS}, eps {EPS}, weight decay {WEIGHT_DECAY}",
}

ALPHAS_CUMPROD = DDPMScheduler(
    num_train_timesteps=TIMESTEPS, beta_start=BETA_START, beta_end=BETA_END, beta_schedule="linear"
).alphas_cumprod.double()
SKIP = TIMESTEPS // DDIM_STEPS
GRID = torch.arange(1, DDIM_STEPS + 1) * SKIP - 1  # 19, 39, … 999

INDICES = [[0, 49, 17, 32], [49, 1, 25, 0], [8, 33, 0, 48]]  # of the grid, for each step and image


def consistency_batches(seed: int) -> list[Tensors]:
    generator = seeded(seed)
    null = {"null_embeds": normal(generator, 1, TOKENS, T5_WIDTH), "null_attention_mask": mask_of((2,), TOKENS)}
    return [
        {
            "latents": normal(generator, *LATENTS),
            "noise": normal(generator, *LATENTS),
            "indices": torch.tensor(indices),
            "t": GRID[indices],
            "s": (GRID[indices] - SKIP).clamp(min=0),
            "prompt_embeds": normal(generator, LATENTS[0], TOKENS, T5_WIDTH),
            "prompt_attention_mask": mask_of(TOKENS_THAT_COUNT, TOKENS).roll(step, 0),
        }
        | null
        for step, indices in enumerate(INDICES)
    ]


def predict(network: nn.Module, z: torch.Tensor, t: torch.Tensor, *text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise, and x0 = (z - sqrt(1 - a_t) noise) / sqrt(a_t), with the text's embeddings and mask."""
    alpha = ALPHAS_CUMPROD[t]
    noise = output_of(network, z, t, *text)[:, :4]
    return noise, (z - column((1 - alpha).sqrt(), z) * noise) / column(alpha.sqrt(), z)


def consistent(network: nn.Module, z: torch.Tensor, t: torch.Tensor, *text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The consistency function f(z, t) = c_skip z + c_out x0, which is z itself at t = 0; and x0."""
    _, x0 = predict(network, z, t, *text)
    scaled = TIMESTEP_SCALING * t.double()
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    return column(c_skip, z) * z + column(c_out, z) * x0, x0


def guided_ddim_step(teacher: nn.Module, z: torch.Tensor, batch: Tensors) -> Tensors:
    """From t to s along the teacher's trajectory, with classifier-free guidance."""
    indices, t = batch["indices"], batch["t"]
    # With the alpha of the grid's timestep before, and before the first, that of timestep 0.
    alpha = ALPHAS_CUMPROD[torch.where(indices > 0, GRID[indices - 1], 0)]
    noise, x0 = predict(teacher, z, t, batch["prompt_embeds"], batch["prompt_attention_mask"])
    null = (batch[name].expand(len(z), *batch[name].shape[1:]) for name in ("null_embeds", "null_attention_mask"))
    null_noise, null_x0 = predict(teacher, z, t, *null)
    guided_noise = noise + GUIDANCE * (noise - null_noise)
    guided_x0 = x0 + GUIDANCE * (x0 - null_x0)
    return {
        "teacher_x0": x0,
        "teacher_null_x0": null_x0,
        "guided_noise": guided_noise,
        "guided_x0": guided_x0,
        "z_s": column(alpha.sqrt(), z) * guided_x0 + column((1 - alpha).sqrt(), z) * guided_noise,
    }


def consistency_loss(student: nn.Module, target: nn.Module, teacher: nn.Module, batch: Tensors) -> Tensors:
    """`loss`, and everything on the way to it."""
    t, s = batch["t"], batch["s"]
    text = batch["prompt_embeds"], batch["prompt_attention_mask"]
    alpha, z0 = ALPHAS_CUMPROD[t], batch["latents"]
    z_t = column(alpha.sqrt(), z0) * z0 + column((1 - alpha).sqrt(), z0) * batch["noise"]
    with torch.no_grad():
        step = guided_ddim_step(teacher, z_t, batch)
        aim, _ = consistent(target, step["z_s"], s, *text)
    prediction, x0 = consistent(student, z_t, t, *text)
    loss = (((prediction - aim).square() + HUBER**2).sqrt() - HUBER).mean()  # pseudo-Huber
    return step | {"z_t": z_t, "student_x0": x0, "prediction": prediction, "target": aim, "loss": loss}


def train(student: nn.Module, target: nn.Module, teacher: nn.Module, batches: list[Tensors], ema_decay: float | None) -> list[Tensors]:
    """A step of the optimizer for each batch, and then of the target's average, where it has one."""
    parameters = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    steps = []
    for batch in batches:
        tensors = consistency_loss(student, target, teacher, batch)
        optimizer.zero_grad()
        tensors["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        if ema_decay is not None:
            with torch.no_grad():
                for average, weight in zip(target.parameters(), student.parameters()):
                    average.mul_(ema_decay).add_(weight, alpha=1 - ema_decay)
        steps.append({name: tensor.detach() for name, tensor in tensors.items()} | {"gradient_norm": norm})
    return steps


def alternating(network: nn.Module, share: float) -> nn.Module:
    """Every weight times 1 + share where its index in row-major order is even, times 1 - share where it is odd."""
    with torch.no_grad():
        for weight in network.parameters():
            factors = torch.full((weight.numel(),), 1 + share)
            factors[1::2] = 1 - share
            weight.mul_(factors.view_as(weight))
    return network


STUDENT_SHARE, TARGET_SHARE = 0.02, -0.01  # how far student and target start from the teacher


@dataclass
class Run:
    """What a training run leaves."""

    steps: list[Tensors]
    start: Tensors
    student: Tensors
    target: Tensors
    gradients: Tensors  # at the first step, before clipping

    def summary(self) -> dict[str, list[float]]:
        return {name: [round(step[name].item(), 4) for step in self.steps] for name in ("loss", "gradient_norm")}

    def updates(self, still: list[str]) -> Tensors:
        """What training added to the weights, without those in `still`."""
        return {name: self.student[name] - start for name, start in self.start.items() if name not in still}


def clones(tensors: Iterable[tuple[str, torch.Tensor]]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def distil(batches: list[Tensors], dtype: torch.dtype) -> Run:
    teacher = with_precision(transformer(), dtype)
    student = with_precision(alternating(transformer(), STUDENT_SHARE), dtype)
    target = with_precision(alternating(transformer(), TARGET_SHARE), dtype)
    start = clones(student.named_parameters())
    gradients = parameter_gradients(student, consistency_loss(student, target, teacher, batches[0])["loss"])
    steps = train(student, target, teacher, batches, EMA_DECAY)
    return Run(steps, start, clones(student.named_parameters()), clones(target.named_parameters()), gradients)


def errors(single: Run, double: Run) -> dict[str, str]:
    """How far float32 is from float64. AdamW divides by the gradient's size: an element whose gradient is nearly zero moves as far
    as others, in a direction that rounding may decide, so updates are the least certain. The seeds are such that few are."""
    still = without_gradient(double.gradients)
    found = {
        "steps": max(difference(mine, exact) for mine, exact in zip(single.steps, double.steps)),
        "gradients": difference(single.gradients, double.gradients),
        "updates": difference(single.updates(still), double.updates(still)),
    }
    assert found["steps"] < 1e-4 and found["gradients"] < 1e-4 and found["updates"] < 1e-3, found
    return {f"largest_difference_to_float64_in_{name}": f"{error:.1e}" for name, error in found.items()}


def write_consistency(batches: list[Tensors]) -> None:
    run, exact = distil(batches, torch.float32), distil([in_double(batch) for batch in batches], torch.float64)
    tensors = {"alphas_cumprod": ALPHAS_CUMPROD.float()}
    for number, (batch, step) in enumerate(zip(batches, run.steps)):
        tensors |= prefixed(f"step_{number}", batch | step)
    tensors |= prefixed("step_0.gradient", thinned(run.gradients, GRADIENT_WHOLE))
    tensors |= prefixed("student", thinned(run.student)) | prefixed("target", thinned(run.target))
    found = errors(run, exact)
    save_tensors(
        TRAINING / "consistency.safetensors",
        tensors,
        student_start=f"teacher * (1 ± {STUDENT_SHARE}): + at even places in row-major order, - at odd ones",
        target_start=f"teacher * (1 ∓ {-TARGET_SHARE}): - at even places, + at odd ones",
        ema_decay=EMA_DECAY,
        without_gradient=json.dumps(without_gradient(exact.gradients)),
        whole=WHOLE,
        whole_of_gradients=GRADIENT_WHOLE,
        stride=STRIDE,
        **found,
        **CONSISTENCY_CONSTANTS,
    )
    print("consistency:", run.summary(), found)


# The same with LoRA, the target being the student itself (LCM-LoRA, Luo et al. 2023)

LORA = TRAINING / "lora"
RANK, LORA_ALPHA = 8, 8
LORA_LAYERS = [
    "to_q", "to_k", "to_v", "to_out.0", "proj", "proj_out", "linear", "linear_1", "linear_2", "ff.net.0.proj", "ff.net.2",
]  # fmt: skip


def write_adapter(seed: int) -> None:
    """The adapter before training, as peft writes it: its second matrices are not zero, so that the first have gradients."""
    network = get_peft_model(transformer(), LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_LAYERS))
    generator = seeded(seed)
    with torch.no_grad():
        for name, weight in sorted(network.named_parameters()):
            if "lora_A" in name:
                weight.copy_(normal(generator, *weight.shape, std=weight[0].numel() ** -0.5))
            elif "lora_B" in name:
                weight.copy_(normal(generator, *weight.shape, std=0.05))
    shutil.rmtree(LORA, ignore_errors=True)
    network.save_pretrained(LORA)
    (LORA / "README.md").unlink()
    config = json.loads((LORA / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": None, "target_modules": sorted(LORA_LAYERS)}  # not this machine's folder, nor a set's order
    write_json(LORA / "adapter_config.json", dict(sorted(config.items())))
    (LORA / "adapter_model.safetensors").chmod(0o644)


def distil_lora(batches: list[Tensors], dtype: torch.dtype) -> Run:
    teacher = with_precision(transformer(), dtype)
    student = with_precision(PeftModel.from_pretrained(transformer(), LORA, is_trainable=True), dtype)
    start = clones(get_peft_model_state_dict(student).items())
    gradients = parameter_gradients(student, consistency_loss(student, student, teacher, batches[0])["loss"])
    gradients = {name.replace(".default.", "."): gradient for name, gradient in gradients.items()}
    steps = train(student, student, teacher, batches, None)
    return Run(steps, start, clones(get_peft_model_state_dict(student).items()), {}, gradients)


def adapted_outputs() -> Tensors:
    """Of the transformer with the adapter as it was before training: beside the weights, and added to them."""
    names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    inputs = case_of(f"transformer-{CHECKPOINT}", "wide", names).values()
    network = PeftModel.from_pretrained(transformer(), LORA).eval()
    with torch.no_grad():
        plain, adapted = output_of(transformer(), *inputs), output_of(network, *inputs)
        merged = output_of(network.merge_and_unload(), *inputs)
    assert (adapted - merged).norm() < 1e-5 * plain.norm() < 1e-4 * (adapted - plain).norm()
    return {"adapted_output": adapted, "merged_output": merged}


def write_lora(batches: list[Tensors]) -> None:
    write_adapter(seed=16)
    run, exact = distil_lora(batches, torch.float32), distil_lora([in_double(batch) for batch in batches], torch.float64)
    tensors = adapted_outputs() | prefixed("lora", run.student) | prefixed("step_0.gradient", run.gradients)
    for number, step in enumerate(run.steps):
        kept = ("prediction", "target", "loss", "gradient_norm")
        tensors |= prefixed(f"step_{number}", {name: step[name] for name in kept})
    found = errors(run, exact)
    save_tensors(
        TRAINING / "consistency-lora.safetensors",
        tensors,
        inputs_of_outputs=f"networks/transformer-{CHECKPOINT}.safetensors, case wide",
        inputs_of_steps="training/consistency.safetensors",
        adapter="training/lora",
        rank=RANK,
        lora_alpha=LORA_ALPHA,
        without_gradient=json.dumps(without_gradient(exact.gradients)),
        **found,
        **CONSISTENCY_CONSTANTS,
    )
    print("consistency-lora:", run.summary(), found)


# Ordinary training, with a learned variance
#
# Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models". The network gives eps and v, four channels each.
# With a_t the product of all 1 - beta up to t, and a_-1 = 1 (in float64, rounded where they meet tensors):
#
#     x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise                                                                        (9)
#     beta~_t = (1 - a_(t-1)) / (1 - a_t) beta_t; the first one, which is 0, is replaced by the second                (10)
#     mean~(x_t, x0) = sqrt(a_(t-1)) beta_t / (1 - a_t) x0 + sqrt(1 - beta_t) (1 - a_(t-1)) / (1 - a_t) x_t           (11)
#     L_simple = mean of (noise - eps)²                                                                               (14)
#     log variance = u log beta_t + (1 - u) log beta~_t, with u = (v + 1) / 2                                         (15)
#     L_hybrid = L_simple + lambda L_vlb                                                                              (16)
#
# where mean(x_t) = mean~(x_t, x0(eps)), and L_vlb is, for t > 0, the divergence of N(mean~, beta~) from N(mean, variance) (6),
# and for t = 0 minus the logarithm of the probability of x0 in N(mean, variance), in bins of 2 / 255 (5): both averaged over an
# image's elements, and in bits. Its gradient does not reach eps. L_vlb stands for a sum over 1000 timesteps of which training
# draws one, so lambda = 1/1000 becomes a factor of 1: PixArt-α's training (`IDDPM` with `learn_sigma=True, pred_sigma=True,
# snr=False`, hence `LossType.MSE`) adds the term as it is, and `LossType.RESCALED_MSE` would multiply it by 1000 / 1000.

DIFFUSION_TIMESTEPS = [0, 1, 500, 999]
HALF_BIN, LEAST_PROBABILITY = 1 / 255, 1e-12

DIFFUSION_BETAS = torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float64)
PRODUCTS = torch.cumprod(1 - DIFFUSION_BETAS, 0)
PRODUCTS_BEFORE = torch.cat([torch.ones(1, dtype=torch.float64), PRODUCTS[:-1]])


def normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """The approximation that the published training has, with tanh."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def log_probability(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Of the bin around x. The outermost bins, beyond ±0.999, have no end, which is where many latents are."""
    deviation = torch.exp(0.5 * log_variance)
    above, below = normal_cdf((x - mean + HALF_BIN) / deviation), normal_cdf((x - mean - HALF_BIN) / deviation)
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return inside.clamp(min=LEAST_PROBABILITY).log()


def diffusion_losses(output: torch.Tensor, x_t: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Tensors:
    """`mse`, `vb` and their sum `loss`, one of each for an image."""

    def at(values: torch.Tensor) -> torch.Tensor:
        return column(values[t], x0)

    of_x0 = DIFFUSION_BETAS * PRODUCTS_BEFORE.sqrt() / (1 - PRODUCTS)
    of_x_t = (1 - DIFFUSION_BETAS).sqrt() * (1 - PRODUCTS_BEFORE) / (1 - PRODUCTS)
    least_variance = DIFFUSION_BETAS * (1 - PRODUCTS_BEFORE) / (1 - PRODUCTS)
    least_variance[0] = least_variance[1]

    eps, v = output.chunk(2, 1)
    x0_of_eps = at(PRODUCTS.rsqrt()) * x_t - at((1 / PRODUCTS - 1).sqrt()) * eps.detach()
    true_mean, mean = (at(of_x0) * x + at(of_x_t) * x_t for x in (x0, x0_of_eps))
    true_log_variance = at(least_variance.log())
    u = (v + 1) / 2
    log_variance = u * at(DIFFUSION_BETAS.log()) + (1 - u) * true_log_variance
    ratio = log_variance - true_log_variance
    divergence = 0.5 * (ratio - 1 + (-ratio).exp() + (true_mean - mean).square() / log_variance.exp())
    nats = torch.where(t[:, None, None, None] == 0, -log_probability(x0, mean, log_variance), divergence)
    mse, vb = (noise - eps).square().mean((1, 2, 3)), nats.mean((1, 2, 3)) / math.log(2)
    return {"mse": mse, "vb": vb, "loss": mse + vb}


def diffusion(inputs: Tensors, dtype: torch.dtype) -> tuple[Tensors, dict[int, Tensors]]:
    """Losses, and for each timestep the gradient of its image's loss."""
    network = with_precision(transformer(), dtype)
    t = inputs["timestep"]
    x0, noise = inputs["latents"], inputs["noise"]
    x_t = column(PRODUCTS[t].sqrt(), x0) * x0 + column((1 - PRODUCTS[t]).sqrt(), x0) * noise
    output = output_of(network, x_t, t, inputs["prompt_embeds"], inputs["prompt_attention_mask"])
    losses = diffusion_losses(output, x_t, x0, noise, t)
    (output_gradient,) = torch.autograd.grad(losses["loss"].sum(), output, retain_graph=True)
    gradients = {timestep: parameter_gradients(network, losses["loss"][place]) for place, timestep in enumerate(t.tolist())}
    return losses | {"x_t": x_t, "output": output, "output_gradient": output_gradient}, gradients


def write_diffusion(seed: int) -> None:
    generator = seeded(seed)
    inputs = {
        "latents": normal(generator, *LATENTS),
        "noise": normal(generator, *LATENTS),
        "timestep": torch.tensor(DIFFUSION_TIMESTEPS),
        "prompt_embeds": normal(generator, LATENTS[0], TOKENS, T5_WIDTH),
        "prompt_attention_mask": mask_of(TOKENS_THAT_COUNT, TOKENS),
    }
    (tensors, gradients), (exact, exact_gradients) = diffusion(inputs, torch.float32), diffusion(in_double(inputs), torch.float64)
    found = difference(tensors, exact), max(difference(gradients[t], exact_gradients[t]) for t in gradients)
    assert max(found) < 1e-4, found
    (still,) = {tuple(without_gradient(of_t)) for of_t in exact_gradients.values()}
    tensors |= inputs
    for t, of_t in gradients.items():
        tensors |= prefixed(f"t_{t}.gradient", thinned(of_t, GRADIENT_WHOLE))
    save_tensors(
        TRAINING / "diffusion.safetensors",
        tensors,
        checkpoint=CHECKPOINT,
        schedule=f"linear betas {BETA_START} to {BETA_END}, {TIMESTEPS} timesteps, in float64",
        loss=f"mse + vb of each image, vb in bits, at t = 0 with bins of ±{HALF_BIN:.8f} and probabilities of at least {LEAST_PROBABILITY}",
        gradients="t_*.gradient of one image's loss, output_gradient of the sum of losses",
        whole=GRADIENT_WHOLE,
        stride=STRIDE,
        without_gradient=json.dumps(still),
        largest_difference_to_float64=f"{found[0]:.1e}",
        largest_difference_to_float64_in_gradients=f"{found[1]:.1e}",
    )
    print("diffusion:", {name: [round(x, 4) for x in tensors[name].tolist()] for name in ("mse", "vb")}, found)


if __name__ == "__main__":
    batches = consistency_batches(seed=11)
    write_consistency(batches)
    write_lora(batches)
    write_diffusion(seed=13)
    total = 0
    for path in sorted(TRAINING.rglob("*.*")):
        total += path.stat().st_size
        print(f"{path.stat().st_size:8} {path.relative_to(TRAINING)}")
    print(f"{total / 1e6:.2f} MB")
