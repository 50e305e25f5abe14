"""A draft whose layers run in stages, each up to an exit that shares norm and head with the others (Sorted Fine-Tuning,
Valipour et al. 2023). A token goes on to the next stage only where the exit is not confident.

So the later stages lag behind. The states that a stage has not seen yet are kept; when it is next needed, it sees all
of them and the newest in one pass. A tree grows the same way: each stage computes a node once.

Legend: N rows of a pass, W waiting rows, M waiting nodes of a tree, T prompt tokens, D width, R rows of the head, K new
nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.engine.decoder import Scores, new_cache
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree


@dataclass
class Stage:
    """Layers first .. stop. Its caches hold `length` committed positions and, behind them, `nodes` of the tree that
    grows there; `waiting_WD` and `waiting_MD` are the states of the positions and of the nodes that follow."""

    first: int
    stop: int
    waiting_WD: Tensor
    waiting_MD: Tensor
    length: int = 0
    nodes: int = 0

    def drop_tree(self) -> None:
        self.nodes, self.waiting_MD = 0, self.waiting_MD[:0]


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
        none_0D = model.embedding_VD[:0]
        self._stages = [Stage(first, stop, none_0D, none_0D) for first, stop in zip([0, *exits], exits, strict=False)]

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
        entry = self._stages[0]
        entry.waiting_WD = torch.cat((entry.waiting_WD, self.model.embed(torch.tensor(list(tokens_N)).long())))
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
        entry = self._stages[0]
        entry.waiting_MD = torch.cat((entry.waiting_MD, self.model.embed(tree.tokens_N[known:])))
        return self._first_confident(tree, tree.nodes - known, committed)

    def _drop_tree(self) -> None:
        for stage in self._stages:
            stage.drop_tree()

    def _first_confident(self, tree: TokenTree, count: int, committed: int = 0) -> Tensor:
        for index in range(len(self._stages)):
            x_ND = self._advance(index, tree, committed)
            logits_KR = self.model.logits(x_ND[-count:])
            # The last exit answers anyway; its probabilities need not be known.
            if index + 1 == len(self._stages) or top_probability(logits_KR[0]) > self.threshold:
                break
        return logits_KR

    def _advance(self, index: int, tree: TokenTree, committed: int = 0) -> Tensor:
        """Run a stage over its waiting rows and over the tree's nodes that wait behind them; the next stage then waits
        for both. The tree's first `committed` nodes are rows. Returns the states after the stage.

        Nodes are seen only when no row waits any more, so either no row waits or the stage has seen no node."""
        stage = self._stages[index]
        waiting, nodes = len(stage.waiting_WD), stage.nodes + len(stage.waiting_MD)
        root = self.length - committed
        start = min(stage.length, root) if nodes else stage.length
        shape = tree.behind(root - start) if nodes else TokenTree.chain([0] * waiting)
        known = stage.length - start + stage.nodes
        prompt = start == 0 and not nodes
        view = self._cache.prompt() if prompt else self._cache.view(start, shape, known, exact=False)
        x_ND = torch.cat((stage.waiting_WD, stage.waiting_MD))
        rotation = self.model.rotation(start + shape.depth_N[known:])
        x_ND = self.model.run(x_ND, rotation, view, stage.first, stage.stop)
        stage.length, stage.nodes = stage.length + waiting, nodes
        stage.waiting_WD, stage.waiting_MD = stage.waiting_WD[:0], stage.waiting_MD[:0]
        for following in self._stages[index + 1 : index + 2]:
            following.waiting_WD = torch.cat((following.waiting_WD, x_ND[:waiting]))
            following.waiting_MD = torch.cat((following.waiting_MD, x_ND[waiting:]))
        return x_ND

    def truncate(self, length: int) -> None:
        """Forget the committed tokens from `length` on, whether a stage has seen them or not."""
        if not 0 <= length <= self.length:
            raise ValueError(f"expected a length of 0 to {self.length}, got {length}")
        self.length = length
        for stage in self._stages:
            stage.drop_tree()
            stage.waiting_WD = stage.waiting_WD[: max(0, length - stage.length)]
            stage.length = min(stage.length, length)


def top_probability(logits_R: Tensor) -> float:
    """Probability of the most likely token."""
    return float((logits_R.max() - logits_R.logsumexp(-1)).exp())
