"""Run headers say where numbers come from: versions, hardware, commit, and how fast this machine reads memory."""

import platform
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from methods.engine.schema import enough_memory
from methods.paths import ROOT

CACHES = 4  # times the last-level cache: read in a circle, so that no part is in a cache when its turn comes again
LEAST_BYTES, MOST_BYTES = 1 << 28, 1 << 30
PART_BYTES = 1 << 25  # read in about a millisecond: on a shared machine some parts are undisturbed
PROBED = 2  # parts at a moment
MEASURING_SECONDS = 0.3
GPU_READS = 20  # of all the buffer, between two events: to start one takes as long as to read some megabytes


def environment() -> dict[str, Any]:
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers")},
        },
        "cpu": cpu_name(),
        "gpu": gpu_names(),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def gpu_names() -> str | None:
    """Name the GPUs, such as "2 x NVIDIA H100 80GB HBM3"."""
    names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return ", ".join(f"{count} x {name}" for name, count in names.items()) or None


def git_commit(root: Path = ROOT) -> str | None:
    """Return the commit of the repository at `root`, with "-dirty" when tracked files differ; None without git."""
    if not (root / ".git").exists():  # else git would look for a repository further up
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read_bandwidth(threads: int, device: torch.device | str = "cpu") -> float:
    """Measure how many bytes per second `threads` CPU threads (or the CUDA device) read from memory: the best of many.

    A read is a sum of 64-bit integers, PyTorch's fastest reduction: one addition per eight bytes. No decoding pass can
    take less than the weights' bytes divided by this. One thread alone is tried too: where other programs hold a core,
    it reads faster than several that wait for each other.
    """
    device = torch.device(device)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        if device.type == "cuda":
            return _gpu_rate(_numbers(_buffer_bytes(device), device))
        return max(_best_rate(_parts(), count) for count in {threads, 1})
    finally:
        torch.set_num_threads(before)


class Probe:
    """How fast this process reads memory at a moment, in a millisecond or two: not the best of many, as
    `read_bandwidth`, but what there is. It goes on through the same memory in a circle, so it reads what no cache holds
    any more, and leaves the caches as a prompt does, whose pass reads all weights: for every method alike."""

    def __init__(self) -> None:
        self._next = cycle(_parts())

    def read(self) -> float:
        """Return bytes per second, by as many threads as PyTorch has now."""
        parts = [next(self._next) for _ in range(PROBED)]
        return sum(part.nbytes for part in parts) / sum(map(_read_seconds, parts))


@cache
def _parts() -> tuple[torch.Tensor, ...]:
    """Memory of this process that is there to be read."""
    return _numbers(_buffer_bytes(torch.device("cpu")), torch.device("cpu")).split(PART_BYTES // 8)


def _numbers(size: int, device: torch.device) -> torch.Tensor:
    with enough_memory("to measure how fast it is read"):
        return torch.ones(size // 8, dtype=torch.int64, device=device)


def huge_page_bytes() -> int | None:
    """Return how much of this process's memory lies in huge pages, as Linux tells; None where it does not."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def _buffer_bytes(device: torch.device) -> int:
    """A GPU may be almost full of weights already."""
    if device.type == "cuda":
        return min(MOST_BYTES, torch.cuda.mem_get_info(device)[0] // 2)
    return min(MOST_BYTES, max(LEAST_BYTES, CACHES * last_level_cache()))


def last_level_cache() -> int:
    """Return the bytes of the largest cache of the first core, as Linux tells; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()  # such as 32768K
            sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
        except (OSError, ValueError):
            continue
    return max(sizes)


def _best_rate(parts: Sequence[torch.Tensor], threads: int) -> float:
    torch.set_num_threads(threads)
    _read_seconds(parts[-1])  # the first call sets things up
    best, end = 0.0, time.perf_counter() + MEASURING_SECONDS
    while time.perf_counter() < end:
        best = max(best, *(part.nbytes / _read_seconds(part) for part in parts))
    return best


def _gpu_rate(numbers: torch.Tensor) -> float:
    """By the GPU's own clock; the first reads set things up."""
    best = 0.0
    with torch.cuda.device(numbers.device):
        for _ in range(3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(GPU_READS):
                numbers.sum()
            end.record()
            end.synchronize()
            best = max(best, GPU_READS * numbers.nbytes / (begin.elapsed_time(end) / 1e3))
    return best


def _read_seconds(part: torch.Tensor) -> float:
    start = time.perf_counter()
    part.sum().item()
    return time.perf_counter() - start
