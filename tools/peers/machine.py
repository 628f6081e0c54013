"""What measured: without it a figure means nothing."""

import datetime
import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from pathlib import Path

import pixart

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "diffusers", "openvino", "nncf")


def describe(program: Path, threads: int) -> dict:
    cpu = cpu_fields()
    present = cpu_flags()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": threads,
        "flags": [flag for flag in FLAGS if flag in present],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"pixart": pixart_version(program)},
    }


def line(machine: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flags = " ".join(machine["flags"]) or "none of " + " ".join(FLAGS)
    return (
        f"{machine['cpu']}, cores: {machine['cores']}, threads used: {machine['threads']}, {flags}, "
        f"{machine['memory_gb']} GB; {versions}; {machine['date']}"
    )


class Meanwhile:
    """What share of the cores' time went to other programs, and to other guests of the host, since this was made."""

    def __init__(self):
        self.start = time.monotonic(), busy_seconds(), own_seconds()

    def share(self) -> float | None:
        """Between 0 and 1; none where the system does not tell."""
        start, busy, own = self.start
        now_busy = busy_seconds()
        if busy is None or now_busy is None:
            return None
        others = (now_busy - busy) - (own_seconds() - own)
        return max(others, 0.0) / ((time.monotonic() - start) * (os.cpu_count() or 1))


def busy_seconds() -> float | None:
    """Of all cores together: everything but idling and waiting for disks."""
    try:
        user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Of this program and of those that it has run to their end."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cpu_fields() -> dict[str, str]:
    """Of the first core, where Linux tells."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in first.splitlines())}


def cpu_flags() -> set[str]:
    return set(cpu_fields().get("flags", "").split())


def pixart_version(program: Path) -> str:
    try:
        version = pixart.output_of([str(program), "--version"], threads=1).split()[-1]
    except (pixart.Unavailable, IndexError):
        version = "not built"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=pixart.REPOSITORY)
    return f"{version} ({commit.stdout.strip()})" if commit.returncode == 0 else version
