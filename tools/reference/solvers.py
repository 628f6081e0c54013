"""Golden runs of diffusers' schedulers, for the solver tests.

Writes, under fixtures/solvers:
  cases.json          what each case is built from, and which steps are kept
  cases.safetensors   the shared inputs and every case's tensors
  from_config.json    what Class.from_config(other scheduler's config) yields
  defaults.json       every class's constructor arguments and their defaults
"""

import contextlib
import inspect
import json
import math
import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import diffusers
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()

OUT = Path(__file__).resolve().parents[2] / "fixtures" / "solvers"

CLASSES = {
    "lcm": "LCMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "sa": "SASolverScheduler",
}

# The noise schedule PixArt was trained with, and three others.
PIXART = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
SCALED = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
TRAINED = dict(num_train_timesteps=40, trained_betas=[round(0.002 + 0.0075 * i, 6) for i in range(40)])
ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
THRESHOLD = dict(thresholding=True, sample_max_value=1.5)
SIGMA_MIN = dict(final_sigmas_type="sigma_min")

# Cases are (family, label, steps, config overrides, options). Options are the
# keyword arguments of `step`, but for "batch" (1 unless told).
TWO = dict(batch=2)


def lcm_cases():
    yield from (("lcm", f"steps{n}", n, {}, TWO if n == 4 else {}) for n in (1, 2, 3, 4, 8))
    yield "lcm", "original20", 4, dict(original_inference_steps=20), {}
    yield "lcm", "original100", 7, dict(original_inference_steps=100), {}
    yield "lcm", "original30_steps30", 30, dict(original_inference_steps=30), {}
    yield "lcm", "sample", 4, dict(prediction_type="sample"), {}
    yield "lcm", "v", 4, dict(prediction_type="v_prediction"), {}
    yield "lcm", "threshold", 4, THRESHOLD, TWO
    yield "lcm", "clip", 4, dict(clip_sample=True, clip_sample_range=1.25), {}
    yield "lcm", "final_alpha", 4, dict(set_alpha_to_one=False), {}
    yield "lcm", "scaling1", 4, dict(timestep_scaling=0.01), {}
    yield "lcm", "scaled_linear", 4, SCALED, {}
    yield "lcm", "cosine", 4, COSINE, {}
    yield "lcm", "trained", 4, dict(TRAINED, original_inference_steps=10), {}
    yield "lcm", "zero_snr", 4, dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"), {}
    yield "lcm", "too_many", 8, dict(original_inference_steps=4), {}


def dpm_cases():
    yield from (("dpm", f"steps{n}", n, {}, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 14, 15, 20, 50))
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
        label = algorithm.replace("++", "_pp").replace("-", "_")
        for order in (1, 2, 3):
            for solver in ("midpoint", "heun") if order == 2 else ("midpoint",):
                config = dict(algorithm_type=algorithm, solver_order=order, solver_type=solver)
                if not algorithm.endswith("++"):
                    config.update(SIGMA_MIN)
                yield "dpm", f"{label}_order{order}_{solver}", 6, config, {}
        if algorithm.endswith("++"):
            yield "dpm", f"{label}_sigma_min", 5, dict(SIGMA_MIN, algorithm_type=algorithm), {}
        else:
            yield "dpm", f"{label}_zero", 5, dict(algorithm_type=algorithm), {}
    for order in (2, 3):
        for steps in (4, 20):
            for lower in (True, False):
                for final in ("zero", "sigma_min"):
                    config = dict(solver_order=order, lower_order_final=lower, final_sigmas_type=final)
                    yield "dpm", f"order{order}_steps{steps}_lower_{lower}_{final}".lower(), steps, config, {}
    yield "dpm", "euler_at_final", 20, dict(SIGMA_MIN, euler_at_final=True, lower_order_final=False), {}
    yield "dpm", "sde_euler_at_final", 5, dict(SIGMA_MIN, euler_at_final=True, algorithm_type="sde-dpmsolver++"), TWO
    yield "dpm", "sde_v", 4, dict(algorithm_type="sde-dpmsolver++", prediction_type="v_prediction"), {}
    for spacing in ("karras", "exponential", "beta"):
        flag = {f"use_{spacing}_sigmas": True}
        for steps in (1, 5, 20):
            yield "dpm", f"{spacing}_steps{steps}", steps, flag, {}
        yield "dpm", f"{spacing}_sigma_min", 5, dict(SIGMA_MIN, **flag), {}
        yield "dpm", f"{spacing}_cosine", 5, dict(COSINE, **flag), {}
    for steps in (1, 5, 20):
        yield "dpm", f"lu_steps{steps}", steps, dict(use_lu_lambdas=True), {}
    yield "dpm", "lu_cosine", 5, dict(COSINE, use_lu_lambdas=True), {}
    for spacing in ("leading", "trailing"):
        for steps in (1, 7, 20):
            yield "dpm", f"{spacing}_steps{steps}", steps, dict(timestep_spacing=spacing), {}
    yield "dpm", "leading_offset1", 5, dict(timestep_spacing="leading", steps_offset=1), {}
    yield "dpm", "threshold", 5, THRESHOLD, TWO
    yield "dpm", "threshold_noise", 5, dict(THRESHOLD, **SIGMA_MIN, algorithm_type="dpmsolver"), TWO
    for kind in ("sample", "v_prediction"):
        yield "dpm", kind, 5, dict(prediction_type=kind), {}
        yield "dpm", f"{kind}_noise", 5, dict(SIGMA_MIN, prediction_type=kind, algorithm_type="dpmsolver"), {}
    for spacing in ("linspace", "leading", "trailing"):
        config = dict(COSINE, lambda_min_clipped=-5.1, timestep_spacing=spacing)
        yield "dpm", f"cosine_clipped_{spacing}", 5, config, {}
    yield "dpm", "cosine", 5, COSINE, {}
    yield "dpm", "scaled_linear", 5, SCALED, {}
    yield "dpm", "trained", 5, TRAINED, {}
    yield "dpm", "zero_snr", 5, ZERO_SNR, {}
    yield "dpm", "learned_range", 5, dict(variance_type="learned_range"), dict(variance=True)


def ddim_cases():
    exact = dict(clip_sample=False)
    yield from (("ddim", f"steps{n}", n, exact, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 50))
    yield "ddim", "defaults", 5, {}, {}
    yield "ddim", "eta_half", 5, exact, dict(eta=0.5, batch=2)
    yield "ddim", "eta_one", 5, exact, dict(eta=1.0)
    yield "ddim", "eta_one_clip", 20, dict(clip_sample_range=2.0), dict(eta=1.0)
    yield "ddim", "final_alpha", 5, dict(exact, set_alpha_to_one=False), {}
    yield "ddim", "final_alpha_eta", 5, dict(exact, set_alpha_to_one=False), dict(eta=0.5)
    yield "ddim", "offset1", 5, dict(exact, steps_offset=1), {}
    for spacing in ("linspace", "trailing"):
        for steps in (1, 7, 20):
            yield "ddim", f"{spacing}_steps{steps}", steps, dict(exact, timestep_spacing=spacing), {}
    yield "ddim", "trailing_eta", 7, dict(exact, timestep_spacing="trailing"), dict(eta=1.0)
    yield "ddim", "threshold", 5, THRESHOLD, TWO
    yield "ddim", "sample", 5, dict(exact, prediction_type="sample"), {}
    yield "ddim", "v", 5, dict(exact, prediction_type="v_prediction"), {}
    yield "ddim", "sample_clip_eta", 5, dict(prediction_type="sample"), dict(eta=0.5)
    yield "ddim", "zero_snr", 5, dict(exact, **ZERO_SNR), {}
    yield "ddim", "zero_snr_epsilon", 5, dict(exact, rescale_betas_zero_snr=True, timestep_spacing="trailing"), {}
    yield "ddim", "scaled_linear", 5, dict(exact, **SCALED), {}
    yield "ddim", "cosine", 5, dict(exact, **COSINE), {}
    yield "ddim", "trained", 5, dict(exact, **TRAINED), {}


def ddpm_cases():
    exact = dict(clip_sample=False)
    yield from (("ddpm", f"steps{n}", n, exact, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 50))
    yield "ddpm", "defaults", 5, {}, {}
    for kind in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
        yield "ddpm", kind, 5, dict(exact, variance_type=kind), {}
    # What a DPMSolver config's null becomes.
    yield "ddpm", "variance_none", 5, dict(exact, variance_type=None), {}
    for kind in ("learned", "learned_range"):
        yield "ddpm", kind, 5, dict(exact, variance_type=kind), dict(variance=True, batch=2)
        yield "ddpm", f"{kind}_without_variance", 5, dict(exact, variance_type=kind), {}
    yield "ddpm", "clip2", 5, dict(clip_sample_range=2.0), {}
    yield "ddpm", "threshold", 5, THRESHOLD, TWO
    yield "ddpm", "offset1", 5, dict(exact, steps_offset=1), {}
    for spacing in ("linspace", "trailing"):
        for steps in (1, 7, 20):
            yield "ddpm", f"{spacing}_steps{steps}", steps, dict(exact, timestep_spacing=spacing), {}
    yield "ddpm", "sample", 5, dict(exact, prediction_type="sample"), {}
    yield "ddpm", "v", 5, dict(exact, prediction_type="v_prediction"), {}
    yield "ddpm", "zero_snr", 5, dict(exact, **ZERO_SNR), {}
    yield "ddpm", "scaled_linear", 5, dict(exact, **SCALED), {}
    yield "ddpm", "cosine", 5, dict(exact, **COSINE), {}
    yield "ddpm", "sigmoid", 5, dict(exact, beta_schedule="sigmoid"), {}
    yield "ddpm", "laplace", 5, dict(exact, beta_schedule="laplace"), {}
    yield "ddpm", "trained", 5, dict(exact, **TRAINED), {}


def euler_cases():
    yield from (("euler", f"steps{n}", n, {}, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 50))
    for spacing in ("leading", "trailing"):
        for steps in (1, 7, 20):
            yield "euler", f"{spacing}_steps{steps}", steps, dict(timestep_spacing=spacing), {}
    yield "euler", "leading_offset1", 5, dict(timestep_spacing="leading", steps_offset=1), {}
    for kind in ("karras", "exponential", "beta"):
        for steps in (1, 5, 20):
            yield "euler", f"{kind}_steps{steps}", steps, {f"use_{kind}_sigmas": True}, {}
        yield "euler", f"{kind}_leading", 5, {f"use_{kind}_sigmas": True, "timestep_spacing": "leading"}, {}
    yield "euler", "karras_range", 5, dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=80.0), {}
    yield "euler", "log_linear", 5, dict(interpolation_type="log_linear"), {}
    yield "euler", "log_linear_karras", 5, dict(interpolation_type="log_linear", use_karras_sigmas=True), {}
    yield "euler", "sigma_min", 5, SIGMA_MIN, {}
    yield "euler", "sample", 5, dict(prediction_type="sample"), {}
    yield "euler", "v", 5, dict(prediction_type="v_prediction"), {}
    yield "euler", "v_continuous", 5, dict(prediction_type="v_prediction", timestep_type="continuous"), {}
    yield "euler", "v_continuous_karras", 5, dict(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True
    ), {}
    yield "euler", "epsilon_continuous", 5, dict(timestep_type="continuous"), {}
    yield "euler", "zero_snr", 5, ZERO_SNR, {}
    yield "euler", "zero_snr_epsilon", 5, dict(rescale_betas_zero_snr=True), {}
    yield "euler", "churn", 5, {}, dict(s_churn=2.0, s_noise=1.1, batch=2)
    yield "euler", "scaled_linear", 5, SCALED, {}
    yield "euler", "cosine", 5, COSINE, {}
    yield "euler", "trained", 5, TRAINED, {}


def euler_a_cases():
    yield from (("euler_a", f"steps{n}", n, {}, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 50))
    for spacing in ("leading", "trailing"):
        for steps in (1, 7, 20):
            yield "euler_a", f"{spacing}_steps{steps}", steps, dict(timestep_spacing=spacing), {}
    yield "euler_a", "leading_offset1", 5, dict(timestep_spacing="leading", steps_offset=1), {}
    yield "euler_a", "v", 5, dict(prediction_type="v_prediction"), {}
    yield "euler_a", "sample", 5, dict(prediction_type="sample"), {}
    yield "euler_a", "zero_snr", 5, ZERO_SNR, {}
    yield "euler_a", "zero_snr_epsilon", 5, dict(rescale_betas_zero_snr=True), {}
    yield "euler_a", "scaled_linear", 5, SCALED, {}
    yield "euler_a", "cosine", 5, COSINE, {}
    yield "euler_a", "trained", 5, TRAINED, {}


def heun_cases():
    yield from (("heun", f"steps{n}", n, {}, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 25))
    for spacing in ("leading", "trailing"):
        for steps in (1, 7):
            yield "heun", f"{spacing}_steps{steps}", steps, dict(timestep_spacing=spacing), {}
    yield "heun", "leading_offset1", 5, dict(timestep_spacing="leading", steps_offset=1), {}
    for kind in ("karras", "exponential", "beta"):
        for steps in (1, 5):
            yield "heun", f"{kind}_steps{steps}", steps, {f"use_{kind}_sigmas": True}, {}
    yield "heun", "v", 5, dict(prediction_type="v_prediction"), {}
    yield "heun", "sample", 5, dict(prediction_type="sample"), {}
    yield "heun", "clip", 5, dict(clip_sample=True, clip_sample_range=1.5), {}
    yield "heun", "scaled_linear", 5, SCALED, {}
    yield "heun", "cosine", 5, COSINE, {}
    yield "heun", "exp", 5, dict(beta_schedule="exp"), {}
    yield "heun", "trained", 5, TRAINED, {}


def unipc_cases():
    yield from (("unipc", f"steps{n}", n, {}, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 50))
    for order in (1, 2, 3):
        for solver in ("bh1", "bh2"):
            config = dict(solver_order=order, solver_type=solver)
            yield "unipc", f"order{order}_{solver}", 6, config, {}
            if solver == "bh1":
                yield "unipc", f"order{order}_{solver}_sigma_min", 6, dict(config, **SIGMA_MIN), {}
            config = dict(config, **SIGMA_MIN, predict_x0=False)
            yield "unipc", f"order{order}_{solver}_noise", 6, config, {}
    yield "unipc", "order3_batch2", 10, dict(solver_order=3), TWO
    yield "unipc", "noise_zero", 5, dict(predict_x0=False), {}
    yield "unipc", "no_corrector", 5, dict(disable_corrector=[0, 1, 2, 3, 4]), {}
    yield "unipc", "no_corrector_at_first", 6, dict(disable_corrector=[0, 2], solver_order=3), {}
    for order in (2, 3):
        for final in ("zero", "sigma_min"):
            config = dict(solver_order=order, lower_order_final=False, final_sigmas_type=final)
            yield "unipc", f"order{order}_not_lower_{final}", 5, config, {}
    for kind in ("karras", "exponential", "beta"):
        flag = {f"use_{kind}_sigmas": True}
        for steps in (1, 5, 20):
            yield "unipc", f"{kind}_steps{steps}", steps, flag, {}
        yield "unipc", f"{kind}_sigma_min", 5, dict(SIGMA_MIN, **flag), {}
    yield "unipc", "karras_range", 5, dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=80.0), {}
    for spacing in ("leading", "trailing"):
        for steps in (1, 7, 20):
            yield "unipc", f"{spacing}_steps{steps}", steps, dict(timestep_spacing=spacing), {}
    yield "unipc", "leading_offset1", 5, dict(timestep_spacing="leading", steps_offset=1), {}
    yield "unipc", "threshold", 5, THRESHOLD, TWO
    for kind in ("sample", "v_prediction"):
        yield "unipc", kind, 5, dict(prediction_type=kind), {}
        yield "unipc", f"{kind}_noise", 5, dict(SIGMA_MIN, prediction_type=kind, predict_x0=False), {}
    yield "unipc", "sigma_min", 5, SIGMA_MIN, {}
    yield "unipc", "zero_snr", 5, ZERO_SNR, {}
    yield "unipc", "scaled_linear", 5, SCALED, {}
    yield "unipc", "cosine", 5, COSINE, {}
    yield "unipc", "trained", 5, TRAINED, {}


def sa_cases():
    yield from (("sa", f"steps{n}", n, {}, TWO if n == 5 else {}) for n in (1, 2, 4, 5, 10, 20, 50))
    for predictor in (1, 2, 3):
        for corrector in (1, 2, 3, 4):
            config = dict(predictor_order=predictor, corrector_order=corrector)
            yield "sa", f"data_p{predictor}_c{corrector}", 7, config, {}
            if corrector == predictor + 1 or corrector == predictor:
                config = dict(config, algorithm_type="noise_prediction")
                yield "sa", f"noise_p{predictor}_c{corrector}", 7, config, {}
    yield "sa", "corrector0", 5, dict(corrector_order=0), {}
    yield "sa", "not_lower", 6, dict(predictor_order=3, corrector_order=4, lower_order_final=False), {}
    for kind in ("karras", "exponential", "beta"):
        for steps in (1, 5, 20):
            yield "sa", f"{kind}_steps{steps}", steps, {f"use_{kind}_sigmas": True}, {}
    for spacing in ("leading", "trailing"):
        for steps in (1, 7, 20):
            yield "sa", f"{spacing}_steps{steps}", steps, dict(timestep_spacing=spacing), {}
    yield "sa", "leading_offset1", 5, dict(timestep_spacing="leading", steps_offset=1), {}
    yield "sa", "threshold", 5, THRESHOLD, TWO
    yield "sa", "threshold_noise", 5, dict(THRESHOLD, algorithm_type="noise_prediction"), TWO
    for kind in ("sample", "v_prediction"):
        yield "sa", kind, 5, dict(prediction_type=kind), {}
        yield "sa", f"{kind}_noise", 5, dict(prediction_type=kind, algorithm_type="noise_prediction"), {}
    yield "sa", "scaled_linear", 5, SCALED, {}
    yield "sa", "cosine_clipped", 5, dict(COSINE, lambda_min_clipped=-5.1), {}
    yield "sa", "trained", 5, TRAINED, {}


GROUPS = [lcm_cases, dpm_cases, ddim_cases, ddpm_cases, euler_cases, euler_a_cases, heun_cases, unipc_cases, sa_cases]


def shared_inputs():
    """The start and the model outputs that all cases draw on."""
    generator = torch.Generator("cpu").manual_seed(20240)
    outputs = torch.randn(64, 2, 4, 4, 4, generator=generator)
    # The variance half lies in (0, 1), so that "learned" may take its root.
    variance = torch.rand(8, 2, 4, 4, 4, generator=generator) * 0.98 + 0.01
    return {
        "sample": torch.randn(2, 4, 4, 4, generator=generator),
        "model_outputs": outputs,
        "model_outputs_variance": torch.cat([outputs[:8], variance], dim=2),
    }


def jsonable(value):
    """Minus infinity has no JSON form: it is written as a string."""
    if isinstance(value, float) and math.isinf(value):
        return "-Infinity" if value < 0 else "Infinity"
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def public_config(scheduler):
    """The constructor arguments as the scheduler holds them, callables left out."""
    names = list(inspect.signature(type(scheduler).__init__).parameters)[1:]
    return {k: scheduler.config[k] for k in names if k != "tau_func"}


@contextlib.contextmanager
def float32_noise_for(scheduler):
    """Makes the scheduler draw float32 noise even where it computes in float64."""
    module = sys.modules[type(scheduler).__module__]
    drawn = getattr(module, "randn_tensor", None)
    if drawn is None:
        yield
        return
    module.randn_tensor = lambda shape, **kw: drawn(shape, **dict(kw, dtype=torch.float32))
    try:
        yield
    finally:
        module.randn_tensor = drawn


def run(scheduler, steps, seed, inputs, options, double=False):
    """One denoising loop as the pipeline runs it; the tensors of every step."""
    batch, variance = options.get("batch", 1), options.get("variance", False)
    kwargs = {k: v for k, v in options.items() if k not in ("batch", "variance")}
    outputs = inputs["model_outputs_variance" if variance else "model_outputs"][:, :batch]
    sample = inputs["sample"][:batch]

    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    sigma = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float32)
    if double:
        outputs, sample = outputs.double(), sample.double()
        for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "one"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name).double())
    if "generator" in inspect.signature(scheduler.step).parameters:
        kwargs["generator"] = torch.Generator("cpu").manual_seed(seed)

    trace = {"scaled_inputs": [], "prev_samples": [], "pred_original_sample": []}
    sample = sample * sigma
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, t)
        out = scheduler.step(outputs[i], t, sample, **kwargs)
        if scaled is not sample:
            trace["scaled_inputs"].append(scaled)
        sample = out.prev_sample
        trace["prev_samples"].append(sample)
        clean = out.get("pred_original_sample", out.get("denoised"))
        if clean is not None:
            trace["pred_original_sample"].append(clean)
    result = {k: torch.stack(v) for k, v in trace.items() if v}
    if not all(torch.isfinite(v).all() for v in result.values()):
        raise FloatingPointError("the result is not finite")
    result["timesteps"] = scheduler.timesteps.to(torch.float32)
    result["init_noise_sigma"] = sigma.reshape(1)
    return result


def kept_steps(count):
    """All steps of a short run; of a long one the first, middle and last few."""
    if count <= 7:
        return list(range(count))
    return [0, 1, count // 2, count - 2, count - 1]


def relative_gap(a, b):
    """The worst step's largest difference, relative to that step's largest value."""
    difference, size = (a.double() - b.double()).abs().flatten(1), b.double().abs().flatten(1)
    return float((difference.amax(1) / size.amax(1)).max())


def run_case(family, label, steps, overrides, options, index, inputs):
    """Runs one case; returns its description and tensors, or the refusal."""
    cls = getattr(diffusers, CLASSES[family])
    config = {**PIXART, **overrides}
    seed = 1000 + index
    entry = {"name": f"{family}.{label}", "class": CLASSES[family]}
    try:
        scheduler = cls(**config)
        result = run(scheduler, steps, seed, inputs, options)
    except Exception as error:
        message = str(error).strip().split("\n")[0][:160]
        return dict(entry, config=jsonable(config), steps=steps, error=f"{type(error).__name__}: {message}"), None

    # How far the same loop in float64 lands: what a test can ask for.
    with float32_noise_for(scheduler):
        exact = run(cls(**config), steps, seed, inputs, options, double=True)
    gap = relative_gap(result["prev_samples"], exact["prev_samples"])

    full = {k: v for k, v in public_config(scheduler).items() if v != -math.inf}
    count = len(result["timesteps"])
    kept = kept_steps(count)
    entry.update(
        config={"_class_name": CLASSES[family], **jsonable(full)},
        steps=steps,
        seed=seed,
        batch=options.get("batch", 1),
        variance=options.get("variance", False),
        step_kwargs={k: v for k, v in options.items() if k not in ("batch", "variance")},
        calls=count,
        kept=kept,
        float64_gap=float(f"{gap:.2g}"),
    )
    tensors = {}
    for key, value in result.items():
        per_step = key not in ("timesteps", "init_noise_sigma")
        tensors[f"{entry['name']}.{key}"] = (value[kept] if per_step else value).contiguous().to(torch.float32)
    if hasattr(scheduler, "sigmas"):
        tensors[f"{entry['name']}.sigmas"] = scheduler.sigmas.to(torch.float32)
    return entry, tensors


PUBLISHED = {
    # As in the scheduler folders of PixArt-XL-2 and PixArt-LCM-XL-2.
    "pixart": {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": "0.22.0.dev0",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "dynamic_thresholding_ratio": 0.995,
        "euler_at_final": False,
        "lambda_min_clipped": -math.inf,
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
    },
    "pixart_lcm": {
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
    },
    "euler": {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.29.2",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "final_sigmas_type": "sigma_min",
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": False,
        "sigma_max": None,
        "sigma_min": None,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "discrete",
        "trained_betas": None,
        "use_karras_sigmas": True,
    },
}


def swaps():
    """What each class makes of another scheduler's config (`--scheduler NAME`)."""
    wanted = [(source, name, {}) for source in PUBLISHED for name in CLASSES.values()]
    # SASolver refuses DPMSolver's algorithm_type, so users override it.
    wanted.append(("pixart", "SASolverScheduler", {"algorithm_type": "data_prediction"}))
    out = []
    for source_name, name, overrides in wanted:
        source = PUBLISHED[source_name]
        loaded = getattr(diffusers, source["_class_name"]).from_config(source)
        entry = {"source": source_name, "class": name, "overrides": overrides}
        try:
            swapped = getattr(diffusers, name).from_config(loaded.config, **overrides)
            entry["config"] = jsonable(public_config(swapped))
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {str(error)[:160]}"
        out.append(entry)
    return {"sources": jsonable(PUBLISHED), "swaps": out}


def defaults():
    out = {}
    for name in CLASSES.values():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        out[name] = {k: jsonable(p.default) for k, p in parameters.items() if k not in ("self", "tau_func")}
    return out


def write_json(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    inputs = shared_inputs()
    tensors, cases, refused = dict(inputs), [], []
    for group in GROUPS:
        for index, case in enumerate(group()):
            entry, found = run_case(*case, index, inputs)
            if found is None:
                refused.append(entry)
                continue
            assert not tensors.keys() & found.keys(), entry["name"]
            cases.append(entry)
            tensors.update(found)

    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    save_file(tensors, OUT / "cases.safetensors")
    lines = ",\n".join(json.dumps(c, allow_nan=False) for c in cases)
    rest = ",\n".join(json.dumps(c, allow_nan=False) for c in refused)
    (OUT / "cases.json").write_text(
        f'{{"versions": {json.dumps(versions)},\n"cases": [\n{lines}\n],\n"refused": [\n{rest}\n]}}\n'
    )
    write_json("from_config.json", swaps())
    write_json("defaults.json", defaults())
    print(f"{len(cases)} cases, {len(refused)} refused")


if __name__ == "__main__":
    main()
