"""Drafters that choose each token by logits: what language models and heads have in common.

Legend: G drafted tokens, R logits of a row, V target vocabulary, K new nodes of a tree, P places.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from methods.drafters.base import BranchingDrafter, Draft, Place
from methods.engine.backends.base import Best
from methods.engine.backends.best import as_lists, largest
from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.tree import TokenTree
from methods.target import Outcome


class ChoosingDrafter(BranchingDrafter):
    """Greedy where the target is greedy; else draws from its own distribution under the same sampling rules.

    `chose[i]`: the logits by which drafted[i] was chosen, [1, R]."""

    def __init__(self, tokens_R: Tensor, vocabulary: int) -> None:
        """`tokens_R`: the token of each logit; rows may be longer, by padding. `vocabulary`: the target's size V."""
        super().__init__()
        self.tokens_R, self.vocabulary = tokens_R, vocabulary
        self._token_of = tokens_R.numpy().data  # of which one is looked up faster
        self.chose: list[Tensor] = []
        self._behind: dict[int, Tensor] = {}  # node of the loop's tree -> the logits behind it, [1, R]
        self.restart(Sampling())

    def restart(self, sampling: Sampling) -> None:
        """A new prompt begins."""
        self.sampling, self.generator = sampling, sampling.generator("draft")
        self.drafted, self.chose = [], []

    def choose(self, logits_1R: Tensor, rows: list[Tensor], best_12: Best | None = None) -> int:
        """The next draft token; when sampling, its q over the target's vocabulary is added to `rows`. `best_12`: what
        `best_of` gives, where that is known."""
        size = len(self._token_of)
        if self.sampling.greedy and best_12 is not None and (best := as_lists(best_12)[0][0]) < size:
            return int(self._token_of[best])
        if logits_1R.shape[1] > size:
            logits_1R = logits_1R[:, :size]
        if self.sampling.greedy:
            return int(self._token_of[largest(logits_1R)[0][0]])
        q_1R = probabilities(logits_1R, self.sampling).cpu()
        rows.append(q_1R.new_zeros(1, self.vocabulary).index_copy(1, self.tokens_R, q_1R))
        return int(self.tokens_R[draw(q_1R[0], self.generator)])

    def add(self, logits_1R: Tensor, rows: list[Tensor], best_12: Best | None = None) -> int:
        """The next draft token, which is added to `drafted`."""
        self.drafted.append(self.choose(logits_1R, rows, best_12))
        self.chose.append(logits_1R)
        return self.drafted[-1]

    def places(self, count: int, others: int) -> list[Place]:
        logits_PR = torch.cat(self.chose[:count])[:, : len(self.tokens_R)].float()
        # Where sampling, top-k and top-p are left out: they do not change which tokens are the likeliest.
        q_PR = torch.softmax(logits_PR / (self.sampling.temperature or 1.0), -1)
        best_PB, rows_PB = q_PR.topk(min(others + 1, q_PR.shape[1]), -1)
        found = zip(self.drafted, q_PR, self.tokens_R[rows_PB.cpu()].tolist(), best_PB.tolist(), strict=False)
        return [self._place(token, q_R, list(zip(*best, strict=True)), others) for token, q_R, *best in found]

    def _place(self, drafted: int, q_R: Tensor, best: list[tuple[int, float]], others: int) -> Place:
        chance = float(q_R[self.tokens_R == drafted].sum())
        return Place(chance, [(token, q) for token, q in best if token != drafted and q > 0][:others])

    def branch(self, tree: TokenTree, known: int) -> Draft:
        rows: list[Tensor] = []
        logits = self.logits_behind(tree, known).split(1)
        self._behind |= enumerate(logits, known)
        return Draft([self.choose(logits_1R, rows) for logits_1R in logits], torch.cat(rows) if rows else None)

    @abstractmethod
    def logits_behind(self, tree: TokenTree, known: int) -> Tensor:
        """Of each node from `known` on, [K, R], as `branch` has them."""

    def adopt(self, nodes: Sequence[int], tokens: Sequence[int]) -> None:
        self.drafted, self.chose = list(tokens), [self._behind[node] for node in nodes]

    def settle(self, outcome: Outcome) -> None:
        self.chose = []
        super().settle(outcome)

    def confirm(self, outcome: Outcome) -> None:
        del self.chose[: len(outcome.tokens)]
        super().confirm(outcome)
