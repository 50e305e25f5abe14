"""Which drafted tokens the target keeps: the acceptance rules for chains and trees. Pure.

Greedy: a draft is kept where it is the target's most likely token, so the output is the target's own.
Sampling: speculative sampling (Leviathan et al. 2023, theorem 1; Chen et al. 2023): a draft x drawn from q is kept with
probability min(1, p(x) / q(x)), else the token is drawn from norm(max(p - q, 0)). Siblings are tried in turn, each
against what the earlier ones left of p (SpecInfer, Miao et al. 2024, section 4.3). A deterministic draft is drawn from
a point mass: kept with p(x), else p with x removed. In every case the output has exactly the target's distribution.

A tree may be longer than its scores: the nodes behind the last scored one are leaves. A leaf that is kept ends the walk
as the next token, whose own row the next pass will score (PEARL's pre-verify). Nodes from `judged` on are no drafts and
never kept.

Typical acceptance (Cai et al. 2024, section 2.3.2) is another rule, for who trades the target's distribution for speed.

Legend: N nodes, S <= N of them scored, V vocabulary, A accepted and scored nodes, the root included.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from methods.engine.backends.base import Best
from methods.engine.backends.best import as_lists, largest
from methods.engine.sampling import Sampling, check_finite, draw, probabilities, uniform, whole
from methods.engine.tree import DistantRow, TokenTree


class Verdict(NamedTuple):
    """path_A: kept nodes from the root on, A >= 1. next_token: decided by the last kept node's row; `leaf_kept`: it is
    a drafted leaf that was kept."""

    path_A: list[int]
    next_token: int
    leaf_kept: bool = False


def verify(
    tree: TokenTree,
    logits_SV: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    best_S2: Best | None = None,
) -> Verdict:
    """Walk down the tree as long as the target agrees. `generator` is not touched in greedy decoding. `best_S2`: what
    `best_of` gives, where that is known."""
    best_S = most_likely(logits_SV, best_S2) if sampling.greedy else []
    path, scored, drafted = [0], logits_SV.shape[0], tree.drafted
    while True:
        node = path[-1]
        children = [child for child in tree.children[node] if child <= drafted]
        if sampling.greedy:
            kept = _matching_child(tree, children, best_S[node])
        else:
            p_V = probabilities(logits_SV[node], sampling).cpu()
            kept, p_V = _try_children(tree, children, p_V, generator)
        if kept is None:
            return Verdict(path, best_S[node] if sampling.greedy else draw(p_V, generator))
        if kept >= scored:
            return Verdict(path, tree.tokens[kept], leaf_kept=True)
        path.append(kept)


def most_likely(logits_SV: Tensor, best_S2: Best | None = None) -> list[int]:
    """The best token of each row, of equals the first; a row with a NaN in it is refused. `best_S2`: what `best_of`
    gives, where that is known."""
    best_S, largest_S = largest(logits_SV) if best_S2 is None else as_lists(best_S2)
    check_finite(all(map(math.isfinite, largest_S)))
    return best_S


def _matching_child(tree: TokenTree, children: list[int], best: int) -> int | None:
    return next((child for child in children if tree.tokens[child] == best), None)


def _try_children(
    tree: TokenTree, children: list[int], p_V: Tensor, generator: torch.Generator
) -> tuple[int | None, Tensor]:
    """The first child kept, or None, and the distribution that is left of p_V after the rejected ones."""
    for child in children:
        token = tree.tokens[child]
        q_V = None if tree.q_NV is None else tree.q_NV[child]
        if uniform(generator) < acceptance(p_V, q_V, token):
            return child, p_V
        p_V = residual(p_V, whole(q_V), token)
    return None, p_V


def acceptance(p_V: Tensor, q_V: Tensor | DistantRow | None, token: int) -> float:
    """Probability of keeping `token`, drawn from q_V (None: certainly drawn)."""
    q = 1.0 if q_V is None else float(q_V[token])
    return min(1.0, float(p_V[token]) / q) if q > 0 else 0.0


def residual(p_V: Tensor, q_V: Tensor | None, token: int) -> Tensor:
    """norm(max(p - q, 0)): what the target still owes after `token` was rejected."""
    if q_V is None:
        left = p_V.clone()
        left[token] = 0
    else:
        left = (p_V - q_V).clamp_min(0)
    total = left.sum()
    # A rejection with nothing left happens through rounding only (p == q up to an ulp): then p itself is right.
    return left / total if total > 0 else p_V


EPSILON = 0.09  # Medusa's: a draft this likely is always kept,
DELTA = 0.3  # and where the target is unsure, one of this share of exp(-entropy)


def typically_accepted(tree: TokenTree, logits_NV: Tensor, sampling: Sampling) -> Verdict:
    """Typical acceptance (Cai et al. 2024, section 2.3.2): a draft is kept if the target finds it likely enough,
    p > min(epsilon, delta exp(-H(p))); the longest kept path wins, of equally long ones the likeliest. The token behind
    it is the target's most likely one. Lossy: the output does not have the target's distribution."""
    p_NV = probabilities(logits_NV, sampling).cpu()
    entropy_N = torch.special.entr(p_NV).sum(-1)
    least_N = (DELTA * torch.exp(-entropy_N)).clamp_max(EPSILON)
    best, found = (0, 0.0), [0]
    waiting = [([0], 0.0)]
    while waiting:
        path, score = waiting.pop()
        if (len(path), score) > best:
            best, found = (len(path), score), path
        for child in tree.children[path[-1]]:
            p = float(p_NV[path[-1], tree.tokens[child]])
            if child <= tree.drafted and p > float(least_N[path[-1]]):
                waiting.append(([*path, child], score + math.log(p)))
    return Verdict(found, most_likely(logits_NV[found[-1:]])[0])
