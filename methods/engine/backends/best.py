"""The best tokens of rows of logits, on whatever device these are: greedy decoding reads nothing else of them.

Legend: N rows, V vocabulary, C best tokens of a row.
"""

import ctypes

import torch
from torch import Tensor

from methods.engine.backends import cpu
from methods.engine.backends.base import Best


def largest(logits_NV: Tensor) -> tuple[list[int], list[float]]:
    """The place of the largest logit of each row, of equals the first, and that logit; NaN is taken for the largest."""
    if (lib := _native(logits_NV)) is None:
        return as_lists(best_of(logits_NV))
    found = (ctypes.c_double * (2 * len(logits_NV)))()
    lib.largest(*_rows(logits_NV), found)
    return [int(place) for place in found[::2]], found[1::2]


def best_of(logits_NV: Tensor) -> Tensor:
    """The same on the logits' device, [N, 2]: side by side in fp64, in which both are exact, so that a device is waited
    for once."""
    best_N1 = logits_NV.argmax(-1)[:, None]
    return torch.cat((best_N1.double(), logits_NV.gather(-1, best_N1).double()), 1)


def as_lists(best_N2: Best) -> tuple[list[int], list[float]]:
    """What `best_of` has found, as `largest` gives it."""
    found_N2 = best_N2.tolist() if isinstance(best_N2, Tensor) else best_N2
    return [int(best) for best, _ in found_N2], [logit for _, logit in found_N2]


def likeliest(logits_NV: Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """The places of the `count` largest logits of each row, or of all, the largest first, and their log
    probabilities."""
    count = min(count, logits_NV.shape[1])
    if (lib := _native(logits_NV)) is None or not count:
        logits_NV = logits_NV.float()
        best_NC, places_NC = logits_NV.topk(count, -1)
        p_N1 = logits_NV.softmax(-1).gather(-1, places_NC[:, :1])  # faster than logsumexp, and of the best as precise
        return places_NC.tolist(), (best_NC - best_NC[:, :1] + p_N1.log()).tolist()
    numbers = count * len(logits_NV)
    places, log_p = (ctypes.c_long * numbers)(), (ctypes.c_float * numbers)()
    lib.likeliest(*_rows(logits_NV), count, places, log_p)
    rows = [slice(begin, begin + count) for begin in range(0, numbers, count)]
    return [places[row] for row in rows], [log_p[row] for row in rows]


def _native(logits_NV: Tensor) -> ctypes.CDLL | None:
    """The native operators, where they can look at these rows."""
    rows = logits_NV.dtype == torch.float32 and logits_NV.device.type == "cpu" and logits_NV.stride(1) == 1
    return cpu.library() if rows else None


def _rows(numbers_NV: Tensor) -> tuple[int, int, int, int]:
    """Where rows begin, how many there are, how far apart, and how long."""
    rows, columns = numbers_NV.shape
    return numbers_NV.data_ptr(), rows, numbers_NV.stride(0), columns
