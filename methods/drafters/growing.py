"""Trees that grow where a draft is confident (EAGLE-2, Li et al. 2024, section 4), for drafters that score a level at a
time.

Each level, the most confident nodes of the last one are expanded: their most likely children become candidates. A
candidate's confidence is the log probability of the path that ends in it. Of all candidates the most confident ones are
proposed; a child is never more confident than its parent, so they are a tree.

Legend: F nodes of a level that are expanded, B children of each.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from methods.engine.tree import TokenTree


class Candidate(NamedTuple):
    """A drafted token: its parent among the candidates, and the log probability of the path that ends in it."""

    token: int
    parent: int
    confidence: float


class GrowingTree:
    """`expanded`: the candidates whose children are known or asked for next, in the order in which they were chosen;
    `level`: the last of them, which are to be expanded next. Both begin with the root, which is the pending token."""

    def __init__(self, pending: int, nodes: int) -> None:
        """`nodes`: drafted tokens of the tree that is wanted in the end."""
        self.nodes = nodes
        self.candidates = [Candidate(pending, -1, 0.0)]
        self.level, self.expanded = [0], [0]

    @property
    def known(self) -> int:
        """Expanded candidates of the levels before."""
        return len(self.expanded) - len(self.level)

    @property
    def scored(self) -> TokenTree:
        """The expanded candidates as a tree."""
        return self._tree_of(self.expanded)

    def grow(self, tokens_FB: Sequence[Sequence[int]], log_p_FB: Sequence[Sequence[float]], branches: int) -> None:
        """Add the children of the level's nodes, and take the most confident `branches` of them as the next level.

        Of these only such as would be proposed now: of the others no descendant ever will be, since none is more
        confident. So the level may be empty, and the tree is complete."""
        first = len(self.candidates)
        for node, tokens, log_p in zip(self.level, tokens_FB, log_p_FB, strict=True):
            path = self.candidates[node].confidence
            self.candidates += [Candidate(t, node, path + p) for t, p in zip(tokens, log_p, strict=True)]
        proposed = set(self._best(range(1, len(self.candidates)), self.nodes))
        best = self._best(range(first, len(self.candidates)), branches)
        self.level = [candidate for candidate in best if candidate in proposed]
        self.expanded += self.level

    @property
    def proposed(self) -> TokenTree:
        """The root and the `nodes` most confident candidates, in the order in which they came."""
        best = self._best(range(1, len(self.candidates)), self.nodes)
        sizes = {candidate: size for size, candidate in enumerate([0, *best])}
        chosen = sorted(sizes)
        return replace(self._tree_of(chosen), sizes_N=[sizes[candidate] for candidate in chosen])

    def _best(self, among: Sequence[int], count: int) -> list[int]:
        """The most confident first. Of equals the earlier: so a child never comes without its parent."""
        return sorted(among, key=lambda i: -self.candidates[i].confidence)[:count]

    def _tree_of(self, chosen: Sequence[int]) -> TokenTree:
        place = {candidate: node for node, candidate in enumerate(chosen)}
        parents = [-1] + [place[self.candidates[i].parent] for i in chosen[1:]]
        return TokenTree([self.candidates[i].token for i in chosen], parents)
