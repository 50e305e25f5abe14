"""How often the target accepts what a head drafts, on answers of the target itself.

Legend: S steps, R roots: the answer's tokens, each of which a draft could begin behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEPTH = 5  # tokens of the chains that are measured


@dataclass(frozen=True)
class Hits:
    """Of one answer: whether the token that is drafted S-th behind each root is the answer's own; False behind its
    end."""

    right_SR: Tensor

    def there(self, depth: int) -> Tensor:
        """Which roots have a token at that depth, 1 being the first, in the answer."""
        roots = self.right_SR.shape[1]
        return torch.arange(roots) + depth < roots


def answer_hits(drafts_SL: Tensor, tokens: Sequence[int], start: int) -> Hits:
    """`drafts_SL`: what every row of the answer's tokens drafts, as a head does it."""
    own_L, rows = torch.tensor(tokens), slice(max(start - 1, 0), len(tokens) - 1)
    right = []
    for i, draft_L in enumerate(drafts_SL):
        hit_L = torch.zeros(len(tokens), dtype=torch.bool)
        own = own_L[2 + i :]
        hit_L[: len(own)] = draft_L[: len(own)] == own
        right.append(hit_L[rows])
    return Hits(torch.stack(right))


def conditional_acceptance(answers: Sequence[Hits]) -> list[float]:
    """Per depth the share of right tokens among those behind right tokens only."""
    steps, found = len(answers[0].right_SR), []
    for depth in range(1, steps + 1):
        right = behind_right = 0
        for hits in answers:
            asked_R = hits.there(depth) & hits.right_SR[: depth - 1].all(0)
            behind_right += int(asked_R.sum())
            right += int((asked_R & hits.right_SR[depth - 1]).sum())
        found.append(right / max(behind_right, 1))
    return found


def accept_length(answers: Sequence[Hits], window: int) -> float:
    """Tokens per target pass, bonus included, where every pass verifies a chain of `window` drafted tokens."""
    tokens = passes = 0
    for hits in answers:
        accepted_R = hits.right_SR[:window].long().cumprod(0).sum(0).tolist()
        root = 0
        while root < len(accepted_R) - 1:
            emitted = min(accepted_R[root] + 1, len(accepted_R) - 1 - root)
            root, tokens, passes = root + emitted, tokens + emitted, passes + 1
    return tokens / max(passes, 1)
