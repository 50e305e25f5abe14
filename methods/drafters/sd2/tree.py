"""SD2 as a tree that grows where the draft is confident (the dynamic tree of EAGLE-2, Li et al. 2024, section 4).

Legend: T prompt tokens, F nodes of a level that are expanded, B branches of each, R rows of the draft's head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.drafters.base import Drafter
from methods.drafters.language_model import head_tokens
from methods.drafters.sd2.chain import staged_decoder
from methods.drafters.sd2.exits import StagedDecoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Outcome


@dataclass(frozen=True)
class Candidate:
    """A drafted token: its parent among the candidates, and the log probability of the path that ends in it."""

    token: int
    parent: int
    confidence: float


class SortedTreeDrafter(Drafter):
    """Level by level the `branches` most confident nodes get their `branches` most likely children each, `depth` levels
    deep; the `nodes` most confident of all are proposed. The exit is chosen for each level, by its most confident
    node."""

    def __init__(self, decoder: StagedDecoder, vocabulary: int, branches: int, depth: int, nodes: int) -> None:
        """`vocabulary`: the target's size V."""
        self.decoder, self.branches, self.depth, self.nodes = decoder, branches, depth, nodes
        self.tokens_R = head_tokens(decoder.model, vocabulary)
        self.unseen: list[int] = []  # decided tokens that the draft has not seen, the pending one last

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.decoder.prefill(prompt_T[-self.decoder.max_length :])
        self.unseen = []

    def settle(self, outcome: Outcome) -> None:
        self.unseen += outcome.tokens

    def propose(self, room: int) -> TokenTree:
        root = Candidate(self.unseen[-1], -1, 0.0)
        candidates, level, expanded = [root], [0], []
        if room and len(self.unseen) <= self.decoder.room:
            self.decoder.feed(self.unseen[:-1])
            self.unseen = self.unseen[-1:]
            for _ in range(self.depth):
                expanded += level
                if len(expanded) > self.decoder.room:
                    break
                level = self._grow_level(candidates, expanded, level)
        return _tree_of(candidates, _best(candidates, range(1, len(candidates)), min(room, self.nodes)))

    def _grow_level(self, candidates: list[Candidate], expanded: list[int], level: list[int]) -> list[int]:
        """Add the children of the last level's nodes. Returns those to expand next, the most confident first."""
        logits_FR = self.decoder.branch(_tree_of(candidates, expanded[1:]), len(expanded) - len(level))
        log_p_FR = torch.log_softmax(logits_FR[:, : len(self.tokens_R)], -1)
        log_p_FB, rows_FB = log_p_FR.topk(min(self.branches, log_p_FR.shape[1]), -1)
        first = len(candidates)
        tokens_FB: Tensor = self.tokens_R[rows_FB.cpu()]
        for node, tokens, log_p in zip(level, tokens_FB.tolist(), log_p_FB.tolist(), strict=True):
            path = candidates[node].confidence
            candidates += [Candidate(t, node, path + p) for t, p in zip(tokens, log_p, strict=True)]
        return _best(candidates, range(first, len(candidates)), self.branches)


def _best(candidates: list[Candidate], among: Sequence[int], count: int) -> list[int]:
    """The most confident first. Of equals the earlier: so a node never comes before its parent."""
    return sorted(among, key=lambda i: -candidates[i].confidence)[:count]


def _tree_of(candidates: list[Candidate], chosen: Sequence[int]) -> TokenTree:
    """The root and the chosen candidates, in that order, as a tree; parents are chosen before their children."""
    nodes = [0, *chosen]
    place = {candidate: node for node, candidate in enumerate(nodes)}
    parents = [-1] + [place[candidates[i].parent] for i in chosen]
    return TokenTree(torch.tensor([candidates[i].token for i in nodes]), torch.tensor(parents))


def build(models: Models, branches: int, depth: int, nodes: int, threshold: float, exit: int) -> SortedTreeDrafter:
    """The pair's sorted draft."""
    decoder = staged_decoder(models, threshold, exit)
    return SortedTreeDrafter(decoder, models.vocabulary, branches, depth, nodes)
