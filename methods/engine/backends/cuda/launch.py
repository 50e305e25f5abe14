"""The launch of a kernel: the one place where any is launched."""

from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: kernels run in Python, on the CPU


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Any, **constants: Any) -> None:
    """On the device of its first argument: Triton launches on the current one, wherever tensors lie. Of a product and a
    sum no compiler makes one operation, which it might do in one kernel and not in the next."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *others, **constants, enable_fp_fusion=False)


def power_of_two(number: int, least: int = 16) -> int:
    """The smallest that is no less: blocks have such sizes, and those of products at least 16."""
    return max(least, triton.next_power_of_2(number))
