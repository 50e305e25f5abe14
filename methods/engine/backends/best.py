"""The best tokens of rows of logits, on whatever device these are: greedy decoding reads nothing else of them.

Legend: N rows, V vocabulary, C best tokens of a row.
"""

import torch
from torch import Tensor

from methods.engine.backends import cpu
from methods.engine.backends.base import Best


def largest(logits_NV: Tensor) -> tuple[list[int], list[float]]:
    """The place of the largest logit of each row, of equals the first, and that logit; NaN is taken for the largest."""
    if _is_native(logits_NV):
        return cpu.largest(logits_NV)
    return as_lists(best_of(logits_NV))


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
    if _is_native(logits_NV) and count:
        return cpu.likeliest(logits_NV, count)
    logits_NV = logits_NV.float()
    best_NC, places_NC = logits_NV.topk(count, -1)
    p_N1 = logits_NV.softmax(-1).gather(-1, places_NC[:, :1])  # faster than logsumexp, and of the best as precise
    return places_NC.tolist(), (best_NC - best_NC[:, :1] + p_N1.log()).tolist()


def _is_native(logits_NV: Tensor) -> bool:
    return logits_NV.dtype == torch.float32 and cpu.runs(logits_NV.dtype, logits_NV.device)
