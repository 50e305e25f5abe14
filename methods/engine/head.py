"""Layers that read states instead of tokens, and their cache: what a head on a target's states is made of.

A head's rows are no part of the output, so they need not be row-invariant; but the same calls give the same bits.

Legend: N rows, K new nodes of a tree, D width, E width of what lies beside a state.
"""

from torch import Tensor

from methods.engine.backends.base import KeyValueCache
from methods.engine.schema import enough_memory
from methods.engine.transformer import Layers
from methods.engine.tree import TokenTree


class Head:
    """Row i of the cache is the i-th that was fed, at position i. What `branch` writes behind the fed rows is
    provisional: the next `feed` or `truncate` drops it."""

    def __init__(self, layers: Layers, rows: int) -> None:
        """`rows`: most that the cache can hold, those of a tree included."""
        self.layers, self.rows, self.length = layers, rows, 0
        with enough_memory(f"for the keys and values of {rows} rows of a head"):
            self._cache: KeyValueCache = layers.new_cache(rows)

    @property
    def room(self) -> int:
        """Rows that can still be fed."""
        return self.rows - self.length

    def feed(self, x_ND: Tensor, beside_NE: Tensor | None = None) -> Tensor:
        """The states behind the layers, [N, D], of N <= room rows that follow those fed so far."""
        count = len(x_ND)
        if count > self.room:
            raise ValueError(f"expected at most {self.room} rows, got {count}: the head's cache is full")
        chain = TokenTree.chain([0] * count)
        view = self._cache.view(self.length, chain, exact=False) if self.length else self._cache.prompt()
        positions_N = self.length + chain.depth_N
        self.length += count
        return self._run(x_ND, positions_N, view, beside_NE)

    def branch(
        self, tree: TokenTree, known: int, x_KD: Tensor, beside_KE: Tensor | None = None, fed: int = 1
    ) -> Tensor:
        """The states behind the layers, [K, D], of the nodes of a tree behind its first `known` >= 1.

        The first `fed` nodes are the last fed rows, the root at least; the other known ones are those of the calls
        before."""
        start = self.length - fed
        if start + tree.nodes > self.rows:
            raise ValueError(f"expected at most {self.rows - start} nodes, got {tree.nodes}: the cache is full")
        view = self._cache.view(start, tree, known, exact=False)
        return self._run(x_KD, start + tree.depth_N[known:], view, beside_KE)

    def _run(self, x_ND: Tensor, positions_N: Tensor, view: object, beside_NE: Tensor | None) -> Tensor:
        layers = self.layers
        return layers.run(x_ND, layers.rotation(positions_N), view, 0, len(layers.layers), beside_NE)

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"expected a length of 0 to {self.length}, got {length}")
        self.length = length
