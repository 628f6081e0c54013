"""Curves of training runs from their event files, one panel a run: the loss and what it is made of, each the mean over a
hundredth of the run.

    curves.py PICTURE RUN...
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NOT_LOSSES = {"lr", "gradient_norm", "kl"}
POINTS = 100


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Of each tag, the value at each step; a run that was stopped has several files, of which the later one counts."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    return found


def main(picture: str, *runs: str) -> None:
    figure, panels = plt.subplots(1, len(runs), figsize=(4 * len(runs), 3), squeeze=False, layout="constrained")
    for panel, run in zip(panels[0], map(Path, runs)):
        losses = {tag: values for tag, values in scalars(run).items() if tag not in NOT_LOSSES}
        # What a discriminator says of pictures may be either side of zero.
        positive = all(value > 0 for values in losses.values() for value in values.values())
        for tag, values in losses.items():
            steps = sorted(values)
            size = max(len(steps) // POINTS, 1)
            pieces = [steps[i : i + size] for i in range(0, len(steps), size)]
            means = [sum(values[step] for step in piece) / len(piece) for piece in pieces]
            panel.plot([piece[-1] for piece in pieces], means, label=tag, linewidth=2 if tag == "loss" else 1)
        panel.set(title=run.name, xlabel="step", yscale="log" if positive else "linear")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
