"""Operators of our own for CUDA, in Triton: exact at any number of rows without fp64, and reading weights in 8 and 4
bits as such. `usable` says where; what imports Triton is imported behind it only."""

import importlib.util
import os
import warnings
from functools import cache

import torch

from methods.errors import one_line

OLDEST = (8, 0)  # compute capability of the first GPUs that multiply bf16


def usable(device: torch.device) -> bool:
    """Whether the kernels run on this device; never where PEARL_BENCH_NATIVE=0."""
    if device.type != "cuda" or os.environ.get("PEARL_BENCH_NATIVE") == "0":
        return False
    if torch.cuda.get_device_capability(device) < OLDEST or importlib.util.find_spec("triton") is None:
        return False
    return tried(device)


@cache
def tried(device: torch.device) -> bool:
    """Whether a first kernel gives what it should; the reason why not is told once, as a warning."""
    try:
        from methods.engine.backends.cuda.stack import rms_norm

        ones = torch.ones(1, 16, device=device)
        if not torch.equal(rms_norm(ones, ones[0], 0.0), ones):
            raise RuntimeError("the norm of ones is not made of ones")
    except Exception as error:  # Triton compiles by what it finds: a compiler, Python's headers, a driver
        warnings.warn(f"Triton's kernels do not run here, slower ones are used: {one_line(error)}", stacklevel=2)
        return False
    return True
