"""pixart's own figures, by the commands that print them."""

import json
import os
import shlex
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "target" / "release" / "pixart"
OPS_BENCHMARK = ["cargo", "bench", "-p", "pixart-kernels", "--bench", "kernels", "--", "--tsv"]
TRAINING_BENCHMARK = ["cargo", "bench", "-p", "pixart-nn", "--bench", "training", "--", "--tsv"]


class Unavailable(Exception):
    """A command gave no figures; says which and why."""


@dataclass(frozen=True)
class Line:
    """What a benchmark prints of one thing: in one line, with tabs between. Rates are there for single operations only."""

    milliseconds: float
    gflop_per_s: float | None = None
    percent_of_peak: float | None = None


def output_of(command: list[str], threads: int) -> str:
    """Rayon's variable is for the benchmarks, which have no argument for threads."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    except OSError as error:
        raise Unavailable(f"`{shlex.join(command)}` could not be run: {error}") from error
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise Unavailable(f"`{shlex.join(command)}` failed: {reason[0] if reason else f'exit code {done.returncode}'}")
    return done.stdout


def in_8_bits(program: Path, folder: Path, output: Path, threads: int) -> Path:
    """The checkpoint with the transformer and the autoencoder in 8 bits, as the peers have them."""
    output_of([str(program), "quantize", "--model", str(folder), "--parts", "transformer,vae", "--output", str(output)], threads)
    return output


def bench(program: Path, folder: Path, pixels: int, dtype: str, steps: int, threads: int) -> dict:
    """The report of one timed run; a run to warm up goes before it."""
    command = [str(program), "bench", "--model", str(folder), "--size", str(pixels), "--dtype", dtype]
    command += ["--device", "cpu", "--threads", str(threads), "--runs", "1", "--steps", str(steps), "--json"]
    output = output_of(command, threads)
    try:
        report = json.loads(output)
        # A dtype that the program takes for another would be compared with the wrong peers.
        if report["dtype"] != dtype or report["threads"] != threads:
            raise Unavailable(f"`{shlex.join(command)}` measured {report['dtype']} with {report['threads']} threads")
        report["transformer_s"], report["decode_s"], report["image_s"]
    except (ValueError, TypeError, KeyError) as error:
        raise Unavailable(f"`{shlex.join(command)}` printed no report: {error!r}") from error
    return report


def benchmark_lines(command: list[str], threads: int) -> dict[tuple[str, str], Line]:
    """By name and dtype. Other output, such as that of a test harness, is passed over."""
    lines = {}
    for row in output_of(command, threads).splitlines():
        name, *rest = row.split("\t")
        try:
            dtype, figures = rest[0], [float(figure.rstrip(" %")) for figure in rest[1:4]]
            lines[name.strip(), dtype.strip()] = Line(*figures)
        except (IndexError, ValueError, TypeError):
            continue
    if not lines:
        raise Unavailable(f"`{shlex.join(command)}` printed no line of name, dtype and milliseconds with tabs between")
    return lines


def as_json(lines: dict[tuple[str, str], Line]) -> list[dict]:
    return [{"name": name, "dtype": dtype, **asdict(line)} for (name, dtype), line in lines.items()]
