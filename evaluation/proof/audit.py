"""Every decision of a run, checked as it is made: against the acceptance rule, written once more from its definition,
and drafted tokens against the distributions that they are said to come from.

Legend: S scored nodes, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.proof.patching import substituted
from methods.engine import verify as engine
from methods.engine.sampling import Sampling, whole
from methods.engine.tree import TokenTree

Floats = NDArray[np.float64]


@dataclass
class Audit:
    """What was found. `positions`: of drafted tokens in their q, uniform in [0, 1] if they were drawn from it."""

    passes: int = 0
    tried: int = 0  # drafted tokens that a random number decided on
    broken: list[str] = field(default_factory=list)  # violations, in words
    positions: list[float] = field(default_factory=list)
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(
        self,
        tree: TokenTree,
        logits_SV: Tensor,
        sampling: Sampling,
        got: engine.Verdict,
        before: Tensor,
        after: Tensor,
    ) -> None:
        """Check a call of `verify` that gave the verdict `got`. `before` and `after`: states of its generator."""
        numbers = Numbers(before)
        rows = logits_SV.float().cpu().numpy()
        path, token, leaf_kept = ruling(tree, rows, sampling, numbers)
        self.passes += 1
        self.tried += numbers.taken - (not leaf_kept)
        if (path, token, leaf_kept) != (got.path_A, got.next_token, got.leaf_kept):
            self.broken.append(
                f"pass {self.passes}: expected the nodes {path} and token {token}, got {got.path_A} and "
                f"{got.next_token}"
            )
        elif not torch.equal(numbers.state, after):
            self.broken.append(f"pass {self.passes}: expected {numbers.taken} random numbers, it took others")
        if tree.q_NV is not None:
            for node, token in enumerate(tree.tokens[1 : tree.judged], 1):
                self._place(proposal(tree, node, rows.shape[1]), token)

    def _place(self, q_V: Floats, token: int) -> None:
        if q_V[token] <= 0 or abs(q_V.sum() - 1) > 1e-6:
            self.broken.append(f"pass {self.passes}: token {token} was drafted with q {q_V[token]:g} of {q_V.sum():g}")
        self.positions.append(position(q_V, token, self._random.random()))


class Numbers:
    """The uniform numbers that a generator in the state `before` gives."""

    def __init__(self, before: Tensor) -> None:
        self._generator, self.taken = torch.Generator(), 0
        self._generator.set_state(before)

    def __call__(self) -> float:
        self.taken += 1
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    @property
    def state(self) -> Tensor:
        return self._generator.get_state()


def ruling(tree: TokenTree, rows_SV: Floats, sampling: Sampling, numbers: Numbers) -> tuple[list[int], int, bool]:
    """Kept nodes, next token, and whether that is a drafted leaf: Leviathan et al. 2023, algorithm 1, of siblings one
    after the other (Miao et al. 2024, algorithm 2). Nodes that are scored only are no drafts."""
    tokens, parents, path = tree.tokens, tree.parents, [0]
    while True:
        p_V, kept = distribution(rows_SV[path[-1]], sampling), None
        for child in (node for node, parent in enumerate(parents[: tree.judged]) if parent == path[-1]):
            q_V = proposal(tree, child, len(p_V))
            if numbers() * q_V[tokens[child]] < p_V[tokens[child]]:
                kept = child
                break
            left_V = np.maximum(p_V - q_V, 0)
            p_V = left_V / left_V.sum() if left_V.any() else p_V
        if kept is None:
            return path, int(np.searchsorted(np.cumsum(p_V), numbers() * p_V.sum(), side="right")), False
        if kept >= len(rows_SV):
            return path, tokens[kept], True
        path.append(kept)


def proposal(tree: TokenTree, node: int, vocabulary: int) -> Floats:
    """The q from which a node's token was drawn: all of it on that token where the draft is deterministic."""
    q_V = None if tree.q_NV is None else whole(tree.q_NV[node])
    return np.eye(1, vocabulary, tree.tokens[node])[0] if q_V is None else q_V.numpy()


def distribution(logits_V: Floats, sampling: Sampling) -> Floats:
    """Softmax at the temperature, of the top k (and their ties), then of the fewest most probable that reach top p."""
    scores = logits_V.astype(np.float64)
    with np.errstate(over="ignore"):  # to minus infinity, where the temperature is next to nothing
        scores = (scores - scores.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.sort(scores)[-sampling.top_k]] = -np.inf
    p_V = np.exp(scores - scores.max())
    p_V /= p_V.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p_V, kind="stable")
        before = np.cumsum(p_V[order]) - p_V[order]
        p_V[order[before >= sampling.top_p]] = 0
        p_V /= p_V.sum()
    return p_V


def position(q_V: Floats, token: int, uniform: float) -> float:
    """The mass of what is more probable than the token, and a random part of its own: uniform if the token was drawn
    from q_V (the randomised probability integral transform, Brockwell 2007). Near 1 if it is none that q_V would give;
    never near 1 if improbable tokens were held back."""
    more, same = q_V > q_V[token], q_V == q_V[token]
    return float(q_V[more].sum() + uniform * q_V[same].sum())


@contextmanager
def auditing() -> Iterator[Audit]:
    """Audits what this process decides meanwhile. Greedy decisions are left out: equality judges them."""
    audit, decide = Audit(), engine.verify

    def verify(
        tree: TokenTree,
        logits_SV: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
        best_S2: Tensor | None = None,
    ) -> engine.Verdict:
        before = generator.get_state()
        verdict = decide(tree, logits_SV, sampling, generator, best_S2)
        if not sampling.greedy:
            audit.add(tree, logits_SV, sampling, verdict, before, generator.get_state())
        return verdict

    with substituted(decide, verify):
        yield audit
