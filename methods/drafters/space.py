"""SPACE (Yi et al., Findings of ACL 2024): a target that was trained to say several tokens ahead, behind mask tokens,
drafts for itself in the passes that verify.

A pass scores the pending token, the candidates behind it, and behind each of all these a group of K masks, which are
never kept: mask i says the token that comes i places behind the target's own next one. So whichever candidate is the
last that is kept, its group has said the candidates of the next pass.

All weights of the target were trained for it, so it is another model than the one that it was made of: its baseline is
the same weights, decoded a token at a time. The published ones (`space-7b`) are a plain Llama checkpoint; what its mask
token is, and that K is 5, only its authors' commands say. A target that was not trained so drafts badly, but exactly.

The published code begins with masks as candidates; here there are none until the target has said some. When sampling it
leaves out the temperature, and draws what comes instead of a rejected candidate from all that the target finds likely
instead of what is left of it; here both are as in speculative sampling.

Legend: T prompt tokens, N nodes of a tree, K candidates, F feature width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.drafters.base import Drafter
from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.tree import TokenTree
from methods.engine.verify import most_likely
from methods.models import Models
from methods.target import Outcome


class SpaceDrafter(Drafter):
    """`candidates`: what the target has said behind the pending token, and when sampling `q_KV`, from which they were
    drawn."""

    def __init__(self, mask: int, masks: int) -> None:
        """`mask`: the token; `masks`: K, of a group."""
        self.mask, self.masks = mask, masks
        self.pending = -1

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.sampling, self.generator = sampling, sampling.generator("draft")
        self.candidates: list[int] = []
        self.q_KV: Tensor | None = None
        self.group = 0  # masks behind each node of the last tree that is judged, the root's first

    def propose(self, room: int) -> TokenTree:
        tokens = [self.pending, *self.candidates[:room]]
        judged = len(tokens)
        self.group = min(self.masks, (room + 1 - judged) // judged)
        parents = list(range(-1, judged - 1))
        for node in range(judged):
            parents += [node, *range(len(parents), len(parents) + self.group - 1)][: self.group]
        tokens += [self.mask] * (self.group * judged)
        q_NV = None if self.q_KV is None else torch.cat([self.q_KV[:1], self.q_KV[: judged - 1]])
        return TokenTree(tokens, parents, q_NV, judged)

    def settle(self, outcome: Outcome) -> None:
        self.pending = outcome.tokens[-1]
        if outcome.logits_NV is not None:
            judged = len(outcome.logits_NV) // (1 + self.group)
            first = judged + self.group * outcome.path_A[-1]
            self._choose(outcome.logits_NV[first : first + self.group])
            self.group = 0  # the next tree may be another drafter's, without masks

    def _choose(self, logits_KV: Tensor) -> None:
        """The candidates of the next pass, by what the masks behind the last kept node say."""
        self.q_KV = None
        if self.sampling.greedy or not len(logits_KV):
            self.candidates = most_likely(logits_KV) if len(logits_KV) else []
            return
        self.q_KV = probabilities(logits_KV, self.sampling).cpu()
        self.candidates = [draw(q_V, self.generator) for q_V in self.q_KV]


def build(models: Models, mask: int, masks: int) -> SpaceDrafter:
    """Of a vocabulary without the mask token the last one takes its place."""
    return SpaceDrafter(min(mask, models.vocabulary - 1), masks)
