"""A draft whose layers run in stages, each up to an exit that shares norm and head with the others (Sorted Fine-Tuning,
Valipour et al. 2023). A token goes on to the next stage only where the exit is not confident.

So the later stages lag behind. The states that a stage has not seen yet are kept; when it is next needed, it sees all
of them and the newest in one pass. A tree grows the same way: each stage computes a node once.

Legend: N rows of a pass, W waiting positions, M waiting nodes of a tree, T prompt tokens, D width, R rows of the head,
K new nodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.engine.backends.best import likeliest
from methods.engine.decoder import Scores, new_cache
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree, tensor_of


@dataclass
class Stage:
    """Layers first .. stop. Its caches hold `length` committed positions and, behind them, `nodes` of the tree that
    grows there; waiting_W and waiting_M are of the positions and of the nodes that follow: of the first stage tokens,
    of the others states, [1, D] each."""

    first: int
    stop: int
    waiting_W: list[Any] = field(default_factory=list)
    waiting_M: list[Any] = field(default_factory=list)
    length: int = 0
    nodes: int = 0

    def drop_tree(self) -> None:
        self.nodes, self.waiting_M = 0, []


class StagedDecoder:
    """What `Decoder` is for a draft with one exit. Positions 0 .. length - 1 are committed, whoever has seen them."""

    def __init__(
        self, model: Transformer, exits: Sequence[int], threshold: float, max_length: int | None = None
    ) -> None:
        """`exits`: ascending depths, in layers. The first whose top probability exceeds `threshold` answers, else the
        last. `max_length` as `Decoder` has it."""
        longest = model.config.max_length
        self.model, self.threshold = model, threshold
        self.max_length = longest if max_length is None else min(max_length, longest)
        self.length = 0
        self._cache = new_cache(model, self.max_length)
        self._stages = [Stage(first, stop) for first, stop in zip([0, *exits], exits, strict=False)]

    @property
    def room(self) -> int:
        """Positions that can still be committed."""
        return self.max_length - self.length

    def prefill(self, tokens_T: Sequence[int]) -> None:
        """Start anew with a prompt, 1 <= T <= max_length, that all stages see."""
        if not 0 < len(tokens_T) <= self.max_length:
            raise ValueError(f"expected a prompt of 1 to {self.max_length} tokens, got {len(tokens_T)}")
        self.truncate(0)
        self.feed(tokens_T)
        for index in range(len(self._stages)):
            self._advance(index, TokenTree.chain([]))

    def feed(self, tokens_N: Sequence[int]) -> None:
        """Commit tokens, N <= room, for the stages to see when they are next needed."""
        if len(tokens_N) > self.room:
            raise ValueError(f"expected at most {self.room} tokens, got {len(tokens_N)}: the context is full")
        self._drop_tree()
        self._stages[0].waiting_W += tokens_N
        self.length += len(tokens_N)

    def extend(self, tokens_N: Sequence[int]) -> Scores:
        """Commit tokens, 1 <= N <= room. Returns the logits of the last one at its exit, [1, R]."""
        self.feed(tokens_N)
        return Scores(self._first_confident(TokenTree.chain([]), 1))

    def branch(self, tree: TokenTree, known: int, committed: int = 0) -> Tensor:
        """Score the nodes of a tree behind its first `known`, [K, R]. Its first `committed` nodes are the last
        committed tokens, the other known ones were scored by earlier calls. The next `feed` or `truncate` drops what is
        not committed. All new nodes take the exit that the first takes."""
        if tree.nodes - committed > self.room:
            most = self.room + committed
            raise ValueError(f"expected at most {most} nodes, got {tree.nodes}: the context is full")
        if known == committed:
            self._drop_tree()
        self._stages[0].waiting_M += tree.tokens[known:]
        return self._first_confident(tree, tree.nodes - known, committed)

    def _drop_tree(self) -> None:
        for stage in self._stages:
            stage.drop_tree()

    def _first_confident(self, tree: TokenTree, count: int, committed: int = 0) -> Tensor:
        for index in range(len(self._stages)):
            x_ND = self._advance(index, tree, committed)
            logits_KR = self.model.logits(x_ND if x_ND.shape[0] == count else x_ND[-count:])
            # The last exit answers anyway; its probabilities need not be known.
            if index + 1 == len(self._stages) or top_probability(logits_KR[:1]) > self.threshold:
                break
        return logits_KR

    def _advance(self, index: int, tree: TokenTree, committed: int = 0) -> Tensor:
        """Run a stage over its waiting rows and over the tree's nodes that wait behind them; the next stage then waits
        for both. The tree's first `committed` nodes are rows. Returns the states after the stage.

        Nodes are seen only when no row waits any more, so either no row waits or the stage has seen no node."""
        stage = self._stages[index]
        waiting, nodes = len(stage.waiting_W), stage.nodes + len(stage.waiting_M)
        root = self.length - committed
        start = min(stage.length, root) if nodes else stage.length
        shape = tree.behind(root - start) if nodes else TokenTree.chain([0] * waiting)
        known = stage.length - start + stage.nodes
        prompt = start == 0 and not nodes
        view = self._cache.prompt() if prompt else self._cache.view(start, shape, known, exact=False)
        rows = [*stage.waiting_W, *stage.waiting_M]
        x_ND = torch.cat(rows) if index else self.model.embed(tensor_of(rows))
        rotation = self.model.rotation(tensor_of(shape.positions(start, known)))
        x_ND = self.model.run(x_ND, rotation, view, stage.first, stage.stop)
        stage.length, stage.nodes = stage.length + waiting, nodes
        stage.waiting_W, stage.waiting_M = [], []
        for following in self._stages[index + 1 : index + 2]:
            states = x_ND.split(1)
            following.waiting_W += states[:waiting]
            following.waiting_M += states[waiting:]
        return x_ND

    def truncate(self, length: int) -> None:
        """Forget the committed tokens from `length` on, whether a stage has seen them or not."""
        if not 0 <= length <= self.length:
            raise ValueError(f"expected a length of 0 to {self.length}, got {length}")
        self.length = length
        for stage in self._stages:
            stage.drop_tree()
            del stage.waiting_W[max(0, length - stage.length) :]
            stage.length = min(stage.length, length)


def top_probability(logits_1R: Tensor) -> float:
    """Probability of the most likely token."""
    return math.exp(likeliest(logits_1R, 1)[1][0][0])
