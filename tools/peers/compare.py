"""Times PyTorch, OpenVINO and pixart in one run on this machine's CPU, and prints them side by side.

`run` beside this file prepares what is needed and calls it; README.md says what each row means.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CI", "true")  # in which openvino and nncf send no usage reports

import torch  # noqa: E402  (after the environment is set)

import machine  # noqa: E402
import models  # noqa: E402
import pixart  # noqa: E402
import single  # noqa: E402
import table  # noqa: E402

CACHE = Path.home() / ".cache" / "pixart-peers"
DTYPES = ("f32", "bf16", "int8")
PARTS = ("transformer", "vae", "image", "ops", "training")
NETWORKS = ("transformer", "vae")
STEPS = 4  # passes in an image
QUIET = 0.02  # of the cores' time may go elsewhere before it is worth a warning
OP_SECONDS = 0.2  # an operation is repeated for so long, and the mean taken, at each of its turns

Seconds = dict[tuple[str, str], dict[str, list[float]]]  # by part and dtype, then by peer: one for each round


class Comparison:
    """What was asked for, and everything measured so far."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.seconds: Seconds = defaultdict(lambda: defaultdict(list))
        self.pixart_reports: dict[str, list[dict]] = defaultdict(list)
        self.pixart_ops: dict[tuple[str, str], pixart.Line] = {}
        self.notes: list[str] = []
        self.others_share: float | None = None

    def note(self, text: object) -> None:
        """Said at once, and again below the table."""
        self.notes.append(str(text))
        say(f"note: {text}")

    def measure(self) -> None:
        meanwhile = machine.Meanwhile()
        parts = self.options.only
        if any(part in parts for part in (*NETWORKS, "image")):
            for dtype in self.options.dtypes:
                self.measure_networks(dtype)
                gc.collect()  # one dtype's networks at a time
        if "ops" in parts:
            self.measure_ops()
        if "training" in parts:
            self.measure_training()
        self.others_share = meanwhile.share()
        if self.others_share is not None and self.others_share > QUIET:
            # Threads that wait for one another at every operation lose far more than the share that is taken.
            self.note(f"other programs took {self.others_share:.0%} of the cores' time: measure again on an idle machine")

    def measure_networks(self, dtype: str) -> None:
        """In each round everybody has one turn, so that whatever else the machine does meets all of them."""
        options = self.options
        say(f"{dtype}: preparing the networks")
        ours = self.checkpoint(dtype)
        calls = {}
        for part in self.networks():
            for peer, call in models.peers(part, options.model, options.size, dtype, options.threads, options.peers).items():
                call()  # to warm up
                calls[part, peer] = call
        for round_ in range(options.runs):
            say(f"{dtype}: round {round_ + 1} of {options.runs}")
            for (part, peer), call in calls.items():
                self.seconds[part, dtype][peer].append(seconds(call))
            if ours and not self.measure_pixart(dtype, ours):
                ours = None

    def networks(self) -> list[str]:
        return [part for part in NETWORKS if part in self.options.only or "image" in self.options.only]

    def checkpoint(self, dtype: str) -> Path | None:
        """What the program draws with; none, and a note, if it cannot be made."""
        options = self.options
        if dtype != "int8":
            return options.model
        try:
            return pixart.in_8_bits(options.pixart, options.model, options.scratch / "int8", options.threads)
        except pixart.Unavailable as reason:
            self.note(reason)
            return None

    def measure_pixart(self, dtype: str, checkpoint: Path) -> bool:
        """One round of the program; false, and a note, if it gives no figures."""
        options = self.options
        try:
            report = pixart.bench(options.pixart, checkpoint, options.size, dtype, STEPS, options.threads)
        except pixart.Unavailable as reason:
            self.note(reason)
            return False
        self.pixart_reports[dtype].append(report)
        for part, field in (("transformer", "transformer_s"), ("vae", "decode_s"), ("image", "image_s")):
            self.seconds[part, dtype]["pixart"].append(report[field])
        return True

    def measure_ops(self) -> None:
        dtypes = [dtype for dtype in self.options.dtypes if dtype in models.TORCH_DTYPES]
        if "pytorch" in self.options.peers:
            say("operations")
            calls = {(op.name, dtype): op.prepare(models.TORCH_DTYPES[dtype]) for op in single.OPS for dtype in dtypes}
            with torch.inference_mode():
                for call in calls.values():
                    call()
                for _ in range(self.options.runs):
                    for key, call in calls.items():
                        self.seconds[key]["pytorch"].append(repeated_seconds(call))
        self.pixart_ops = self.pixart_lines(pixart.OPS_BENCHMARK)

    def measure_training(self) -> None:
        if "pytorch" in self.options.peers:
            say("training step")
            step = single.training_step()
            step()
            self.seconds["training step", "f32"]["pytorch"] = [seconds(step) for _ in range(self.options.runs)]
        line = self.pixart_lines(pixart.TRAINING_BENCHMARK).get(("training step", "f32"))
        if line:
            self.seconds["training step", "f32"]["pixart"] = [line.milliseconds / 1e3]

    def pixart_lines(self, command: list[str]) -> dict[tuple[str, str], pixart.Line]:
        say(" ".join(command))
        try:
            return pixart.benchmark_lines(command, self.options.threads)
        except pixart.Unavailable as reason:
            self.note(reason)
            return {}

    # What is printed

    def median(self, part: str, dtype: str, peer: str) -> float | None:
        of_peer = table.middle(self.seconds.get((part, dtype), {}).get(peer))
        if part != "image" or peer == "pixart":
            return of_peer
        transformer, vae = (self.median(network, dtype, peer) for network in NETWORKS)
        return None if transformer is None or vae is None else STEPS * transformer + vae

    def main_table(self) -> str:
        keys = [(part, dtype) for part in (*NETWORKS, "image") if part in self.options.only for dtype in self.options.dtypes]
        keys += [("training step", "f32")] if "training" in self.options.only else []
        rows = []
        for part, dtype in keys:
            pytorch, openvino, ours = (self.median(part, dtype, peer) for peer in ("pytorch", "openvino", "pixart"))
            ratios = [table.ratio(ours, pytorch), table.ratio(ours, openvino)]
            cells = [table.number(value, 3) for value in (pytorch, openvino, ours)]
            rows.append([part, dtype, *cells, *(table.number(value, 2) for value in ratios)])
        header = ["part", "dtype", "PyTorch s", "OpenVINO s", "pixart s", "pixart/PyTorch", "pixart/OpenVINO"]
        return table.text(header, rows, 2, self.options.markdown) if rows else ""

    def ops_table(self) -> str:
        rows = []
        for op in single.OPS:
            for dtype in self.options.dtypes:
                pytorch, ours = self.median(op.name, dtype, "pytorch"), self.pixart_ops.get((op.name, dtype))
                if pytorch is None and ours is None:
                    continue
                theirs_ms = pytorch * 1e3 if pytorch is not None else None
                theirs_rate = op.flops / pytorch / 1e9 if pytorch is not None else None
                ours_ms = ours and ours.milliseconds
                cells = [table.number(theirs_ms, 2), table.number(theirs_rate, 0), table.number(ours_ms, 2)]
                cells += [table.number(ours and ours.gflop_per_s, 0), table.number(ours and ours.percent_of_peak, 0)]
                rows.append([op.name, dtype, *cells, table.number(table.ratio(ours_ms, theirs_ms), 2)])
        header = ["op", "dtype", "PyTorch ms", "GFLOP/s", "pixart ms", "GFLOP/s", "% of peak", "pixart/PyTorch"]
        return table.text(header, rows, 2, self.options.markdown) if rows else ""

    def memory_lines(self) -> list[str]:
        lines = []
        for dtype, reports in self.pixart_reports.items():
            peak = max(report.get("peak_rss_bytes") or 0 for report in reports)
            if peak:
                lines.append(f"pixart's peak of memory in {dtype}: {peak / 1e9:.2f} GB")
        return lines

    def print(self, described: dict) -> None:
        options = self.options
        heading = f"{options.size}x{options.size}, medians (rounds: {options.runs}); a ratio below 1: pixart takes less time"
        blocks = [machine.line(described), heading, self.main_table(), self.ops_table()]
        blocks += ["\n".join(f"- {line}" for line in self.memory_lines() + self.notes)]
        print("\n\n".join(block for block in blocks if block))

    def as_json(self, described: dict) -> dict:
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self.options).items()}
        seconds = [
            {"part": part, "dtype": dtype, "peer": peer, "seconds": values}
            for (part, dtype), peers in self.seconds.items()
            for peer, values in peers.items()
        ]
        return {
            "machine": described,
            "options": options,
            "notes": self.notes,
            "others_share": self.others_share,
            "seconds": seconds,
            "pixart_reports": self.pixart_reports,
            "pixart_ops": pixart.as_json(self.pixart_ops),
        }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeated_seconds(call: Callable[[], object]) -> float:
    total, calls = 0.0, 0
    while total < OP_SECONDS:
        total += seconds(call)
        calls += 1
    return total / calls


def full_size_checkpoint(pixels: int) -> Path:
    """Of XL/2, with random weights; written at the first call, under another name until it is whole."""
    size = 1024 if pixels > 512 else 512
    folder = CACHE / f"xl-{size}"
    if not folder.exists():
        say(f"writing {folder} (3 GB)")
        unfinished = CACHE / f"xl-{size}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        script = pixart.REPOSITORY / "tools" / "reference" / "full_size.py"
        command = [sys.executable, script, "--output", unfinished, "--size", str(size), "--no-golden"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        unfinished.rename(folder)
    return folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/peers/run", description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["f32", "bf16"], help="int8: OpenVINO by NNCF, and pixart, not PyTorch [f32 bf16]")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="width and height of the image [512]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="for everybody [2]")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds, of which the medians are taken [5]")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this part; may be repeated [everything]")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-openvino", action="store_true", help="leave OpenVINO out")
    parser.add_argument("--model", type=Path, metavar="DIR", help="checkpoint folder [XL/2 with random weights, made once]")
    parser.add_argument("--pixart", type=Path, default=pixart.PROGRAM, metavar="FILE", help="the program [target/release/pixart]")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single measurement here")
    options = parser.parse_args()
    if options.size < 16 or options.size % 16:
        parser.error(f"a size of {options.size} is not divisible by 16")
    if options.runs < 1 or options.threads < 1:
        parser.error("--runs and --threads are 1 or more")
    if options.model and not (options.model / "model_index.json").exists():
        parser.error(f"{options.model} is no checkpoint folder: it has no model_index.json")
    options.pixart = options.pixart.resolve()
    options.only = options.only or list(PARTS)
    options.peers = ["pytorch"] * (not options.no_torch) + ["openvino"] * (not options.no_openvino)
    return options


def main() -> None:
    options = arguments()
    if any(part in options.only for part in (*NETWORKS, "image")):
        options.model = (options.model or full_size_checkpoint(options.size)).resolve()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    described = machine.describe(options.pixart, options.threads)
    comparison = Comparison(options)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=CACHE) as scratch:
        options.scratch = Path(scratch)
        comparison.measure()
    comparison.print(described)
    if options.json:
        options.json.write_text(json.dumps(comparison.as_json(described), indent=2) + "\n")


if __name__ == "__main__":
    main()
