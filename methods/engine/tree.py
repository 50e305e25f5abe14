"""Token trees: what a drafter proposes and a target pass scores. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DistantRow:
    """The distribution that a token was drawn from, which lies elsewhere. Known here is what is needed first: `q`, the
    token's own probability. `fetch` gives all of it, [V]."""

    token: int
    q: float
    fetch: Callable[[], Tensor]

    def __getitem__(self, token: int) -> float:
        return self.q if token == self.token else float(self.fetch()[token])


@dataclass  # not frozen, as every pass makes some, and one that is takes longer to make
class TokenTree:
    """N nodes; node 0 is the pending token. A chain is a tree whose every node is the next one's parent. Never changed.

    tokens: token ids. parents: parents[0] == -1 and parents[i] < i. Both are lists, as those who draft and those who
    judge look at single nodes; tokens_N and parents_N are the same for a pass, made where one wants them.
    q_NV: the distribution from which node i was drawn, given its earlier siblings (row 0 unused); None when the drafts
    are deterministic (point mass). Rows that lie elsewhere come one by one, None where that draft is certain.
    judged: nodes from this one on are scored and never kept; None: all are judged.
    sizes_N: of a tree that its drafter could have cut, the drafted tokens of the smallest one that has node i."""

    tokens: Sequence[int]
    parents: Sequence[int]
    q_NV: Tensor | Sequence[DistantRow | None] | None = None
    judged: int | None = None
    sizes_N: Sequence[int] | None = None

    is_chain: bool = False  # set by `chain`: every node is the next one's parent

    def __post_init__(self) -> None:
        if self.is_chain:
            return
        parents = self.parents
        if not parents or parents[0] != -1 or len(parents) != len(self.tokens):
            raise ValueError(f"expected a root with parent -1 and one parent per token, got parents {parents}")
        if any(not 0 <= parent < i for i, parent in enumerate(parents[1:], 1)):
            raise ValueError(f"expected every parent before its child, got parents {parents}")

    @classmethod
    def chain(cls, tokens: Sequence[int], q_GV: Tensor | Sequence[DistantRow | None] | None = None) -> "TokenTree":
        """The chain of `tokens`, the pending token first; q_GV are the rows of the G = N - 1 drafted ones."""
        q_NV: Tensor | list[DistantRow | None] | None = None
        if isinstance(q_GV, Tensor):
            q_NV = torch.cat([q_GV.new_zeros(1, q_GV.shape[1]), q_GV])
        elif q_GV is not None and any(q_GV):
            q_NV = [None, *q_GV]
        return cls(tokens, range(-1, len(tokens) - 1), q_NV, is_chain=True)

    @classmethod
    def of(cls, pending: int, paths: Iterable[Sequence[int]]) -> "TokenTree":
        """The trie of paths of drafted tokens behind the pending one: common prefixes are shared, so siblings differ.

        Nodes are numbered in the order in which the paths name them, so that siblings keep the order of the paths."""
        tokens, parents = [pending], [-1]
        node_of: dict[tuple[int, int], int] = {}  # parent and token -> node
        for path in paths:
            node = 0
            for token in path:
                parent, node = node, node_of.setdefault((node, token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(parent)
        return cls(tokens, parents)

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.tokens)

    @property
    def drafted(self) -> int:
        """How many drafted tokens are judged: all nodes but the root, and but those that are scored only."""
        return (self.nodes if self.judged is None else self.judged) - 1

    def first(self, count: int) -> "TokenTree":
        """Its first nodes, which are a tree too, with neither q nor sizes."""
        return TokenTree(self.tokens[:count], self.parents[:count], is_chain=self.is_chain)

    def behind(self, count: int) -> "TokenTree":
        """This tree behind a chain of `count` more nodes (token 0), the last of which becomes the root's parent."""
        parents = [*range(-1, count - 1), *(parent + count for parent in self.parents)]
        return TokenTree([0] * count + list(self.tokens), parents)

    @cached_property
    def tokens_N(self) -> Tensor:
        """The tokens for a pass."""
        return tensor_of(self.tokens)

    @cached_property
    def parents_N(self) -> Tensor:
        """The parents for a pass."""
        return tensor_of(self.parents)

    @cached_property
    def visible_NN(self) -> Tensor:
        """visible_NN[i, j]: node j is node i or one of its ancestors."""
        nodes = self.nodes
        if self.is_chain:
            return torch.ones(nodes, nodes, dtype=torch.bool).tril()
        visible = torch.eye(nodes, dtype=torch.bool)
        for i, parent in enumerate(self.parents[1:], 1):
            visible[i] |= visible[parent]
        return visible

    @cached_property
    def depths(self) -> Sequence[int]:
        """Distance from the root: node i sits at position `length + depths[i]`."""
        if self.is_chain:
            return range(self.nodes)
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    def positions(self, start: int, known: int = 0) -> list[int]:
        """Of the nodes behind the first `known`, where the root's is `start`."""
        return [start + depth for depth in self.depths[known:]]

    @cached_property
    def depth_N(self) -> Tensor:
        """The depths for a pass."""
        return tensor_of(self.depths)

    @cached_property
    def children(self) -> list[list[int]]:
        """Children of every node, in order of index."""
        if self.is_chain:
            return [*([i] for i in range(1, self.nodes)), []]
        children: list[list[int]] = [[] for _ in range(self.nodes)]
        for i, parent in enumerate(self.parents[1:], 1):
            children[parent].append(i)
        return children

    def path(self, node: int) -> list[int]:
        """Node indices from the root to `node`."""
        path = [node]
        while path[-1]:
            path.append(self.parents[path[-1]])
        return path[::-1]


def tensor_of(numbers: Sequence[int]) -> Tensor:
    """For a pass, int64. By NumPy, which takes a third of the time of torch.tensor: every pass has some."""
    return torch.from_numpy(np.array(numbers, dtype=np.int64))
