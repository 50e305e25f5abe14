"""From logits to probabilities, and seeded draws. Pure.

Legend: N rows, G drafted tokens, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.engine.tree import DistantRow
from methods.errors import RunError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def generator(self, stream: str) -> torch.Generator:
        """An own stream of random numbers for each use ("draft", "verify"), so that none depends on another's pace."""
        digest = hashlib.sha256(f"{self.seed}/{stream}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def seed_of(*parts: object) -> int:
    """One seed from (seed, question, turn, repeat), the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def probabilities(logits_NV: Tensor, sampling: Sampling) -> Tensor:
    """p_NV in fp64 after temperature, top-k, then top-p (Holtzman et al. 2020); temperature must be positive.

    Ties at the top-k border are all kept; top-p keeps the smallest set of most likely tokens that reaches it."""
    scores = logits_NV.double()
    best = scores.amax(-1, keepdim=True)
    check_finite(bool(best.isfinite().all()))
    scores = (scores - best) / sampling.temperature  # the best stays 0, however small the temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        border = scores.topk(sampling.top_k, -1).values[..., -1:]
        scores = scores.masked_fill(scores < border, -torch.inf)
    p = torch.softmax(scores, -1)
    if sampling.top_p < 1:
        ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        p = p.masked_fill(torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p), 0)
        p = p / p.sum(-1, keepdim=True)
    return p


def stacked(tokens_G: Sequence[int], rows_G: Sequence[Tensor | None]) -> Tensor | None:
    """q_GV of drafted tokens from a row [V] of each, which is None for one that was chosen deterministically: as a
    distribution, a point mass. None where all were."""
    drawn = next((row_V for row_V in rows_G if row_V is not None), None)
    if drawn is None:
        return None
    rows = [_point_mass(token, drawn) if row is None else row for token, row in zip(tokens_G, rows_G, strict=True)]
    return torch.stack(rows)


def whole(q_V: Tensor | DistantRow | None) -> Tensor | None:
    """All of a distribution, in fp64 on the CPU; None: a point mass."""
    q_V = q_V.fetch() if isinstance(q_V, DistantRow) else q_V
    return None if q_V is None else q_V.double().cpu()


def _point_mass(token: int, like_V: Tensor) -> Tensor:
    mass_V = torch.zeros_like(like_V)
    mass_V[token] = 1
    return mass_V


def check_finite(finite: bool) -> None:
    """`finite`: whether the largest logits of some rows are, which are NaN where any of a row is. From such a row
    nothing can be chosen."""
    if not finite:
        raise RunError(
            "a model gave logits that are not finite (NaN or infinite), from which no token can be chosen: look for "
            "such values in its weights, or try --dtype float32"
        )


def draw(p_V: Tensor, generator: torch.Generator) -> int:
    """A token drawn from the (unnormalised, nonnegative) weights p_V."""
    cumulative = p_V.double().cpu().cumsum(-1)
    uniform = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    # right=True skips tokens of weight zero, also when the uniform number is exactly 0
    token = int(torch.searchsorted(cumulative, uniform, right=True))
    return min(token, int(p_V.nonzero()[-1]))


def uniform(generator: torch.Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), dtype=torch.float64, generator=generator))
