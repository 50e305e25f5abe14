"""Trees of a fixed shape, filled anew in every round: a node is the path of ranks that leads to it, its last rank being
that of its token among its parent's most likely next ones (Medusa, Cai et al. 2024, section 2.1.2).

Which shape is best depends on how often a token of that depth and rank is the target's: the acceptance table, one row
per depth, one rate per rank. A path is kept with about the product of its rates, so the best tree of n nodes has the n
paths with the largest products (Medusa's rule).
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from math import prod

from methods.engine.tree import TokenTree

Path = tuple[int, ...]
Acceptance = Sequence[Sequence[float]]


def level_order(paths: Iterable[Path]) -> list[Path]:
    """Level by level, as a tree is filled."""
    return sorted(paths, key=lambda path: (len(path), path))


# The 63 nodes of Medusa's `mc_sim_7b_63`, which Hydra takes too: how many children a node has, by its path.
CHILDREN: dict[Path, int] = {
    (): 10,
    **{(0,): 10, (1,): 7, (2,): 3, (3,): 2, **{(rank,): 1 for rank in range(4, 10)}},
    **{(0, 0): 10, (0, 1): 3, (0, 2): 2, **{(0, rank): 1 for rank in range(3, 8)}, (1, 0): 2, (2, 0): 1},
    (0, 0, 0): 2,
}
PUBLISHED: list[Path] = level_order((*path, rank) for path, count in CHILDREN.items() for rank in range(count))


def _row(best: float, among_five: float) -> list[float]:
    """Rates of ten ranks, of which the first and the sum of five are known: the next four share the rest as those of
    Medusa's first head do, and beyond them each is kept 0.6 times as often as the one before."""
    shares = [rate / 0.22 for rate in (0.112, 0.055, 0.033, 0.020)]
    known = [best, *((among_five - best) * share for share in shares)]
    return known + [known[-1] * 0.6**place for place in range(1, 6)]


# Of Medusa's five heads for Vicuna-7B: the rates of the first rank and of the first five that their authors published.
MEDUSA_7B: Acceptance = [
    _row(*rates) for rates in ((0.560, 0.780), (0.316, 0.563), (0.201, 0.417), (0.147, 0.340), (0.118, 0.300))
]


PRIOR = 8  # trials


def cheapest_first(paths: Sequence[Path]) -> list[Path]:
    """The paths of a tree of which no rates are known, the best first: each step down costs 1 and its rank."""
    return sorted(paths, key=lambda path: (len(path) + sum(path), len(path), path))


def grow(acceptance: Acceptance) -> Iterator[Path]:
    """Every path of an acceptance table, the best first: the first n are the best tree of n nodes. The next one is
    always the most promising among the next siblings and the first children of those before, so that a node never
    comes without its parent."""
    waiting: list[tuple[float, Path]] = []

    def add(path: Path, parent_rate: float) -> None:
        depth, rank = len(path) - 1, path[-1]
        if depth < len(acceptance) and rank < len(acceptance[depth]):
            heapq.heappush(waiting, (-parent_rate * acceptance[depth][rank], path))

    rates: dict[Path, float] = {(): 1.0}
    add((0,), 1.0)
    while waiting:
        negative, path = heapq.heappop(waiting)
        rates[path] = -negative
        yield path
        add((*path[:-1], path[-1] + 1), rates[path[:-1]])
        add((*path, 0), -negative)


def static_tree(nodes: int, depth: int) -> list[Path]:
    """The paths of a tree of at most so many nodes and levels, the best first by Medusa's published rates: of Medusa's
    own tree where that is asked for."""
    if nodes >= len(PUBLISHED) and depth >= max(map(len, PUBLISHED)):
        return sorted(PUBLISHED, key=lambda path: -prod(MEDUSA_7B[i][rank] for i, rank in enumerate(path)))
    return list(islice(grow(MEDUSA_7B[:depth]), min(nodes, 10 * len(PUBLISHED))))


class StaticShape:
    """Paths, the best first: a smaller tree has the first of them. A path comes behind its parent's.

    It counts how often a child of each depth and rank is kept, its parent being so: `fit` takes the paths that are best
    by these rates."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tried, self._kept = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        self._proposed: list[Path] = []
        self._take(paths)

    def _take(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.sizes = {(): 0} | {path: size for size, path in enumerate(paths, 1)}
        self._trees: dict[tuple[int, int | None], tuple[Path, ...]] = {}

    def tree(self, nodes: int, levels: int | None = None) -> tuple[Path, ...]:
        """The best `nodes` paths of at most so many levels (None: of any), level by level."""
        nodes = min(nodes, len(self.paths))
        if (nodes, levels) not in self._trees:
            shallow = self.paths if levels is None else [path for path in self.paths if len(path) <= levels]
            self._trees[nodes, levels] = tuple(level_order(shallow[:nodes]))
        return self._trees[nodes, levels]

    def filled(self, pending: int, tokens: Mapping[Path, int]) -> TokenTree:
        """The tree of these tokens behind the pending one. A path comes behind its parent's."""
        places = {path: place for place, path in enumerate(((), *tokens))}
        parents = [-1, *(places[path[:-1]] for path in tokens)]
        self.proposed(list(places))
        sizes_N = [self.sizes[path] for path in places]
        return TokenTree([pending, *tokens.values()], parents, sizes_N=sizes_N)

    def proposed(self, paths: Sequence[Path]) -> None:
        """A tree of these nodes goes to the target, the root's path first."""
        self._proposed = list(paths)

    def judged(self, path_A: Sequence[int]) -> None:
        """The target has kept these nodes of it. Where there was no tree, after a prompt, nothing is learnt."""
        kept = {self._proposed[node] for node in path_A} if self._proposed else set()
        for path in self._proposed[1:]:
            if path[:-1] in kept:
                self._tried[len(path) - 1, path[-1]] += 1
                self._kept[len(path) - 1, path[-1]] += path in kept
        self._proposed = []

    @property
    def rates(self) -> Acceptance:
        """As seen, beside Medusa's published ones, which count like PRIOR trials: so much for what was hardly seen. A
        rank that seems better than one before it does so by chance."""
        depth = max(map(len, self.paths), default=0)
        return [sorted(map(partial(self._rate, i), range(len(MEDUSA_7B[i]))), reverse=True) for i in range(depth)]

    def _rate(self, depth: int, rank: int) -> float:
        kept, tried = self._kept[depth, rank], self._tried[depth, rank]
        return (PRIOR * MEDUSA_7B[depth][rank] + kept) / (PRIOR + tried)

    def fit(self) -> None:
        """As many paths as there are, the best by the rates."""
        self._take(list(islice(grow(self.rates), len(self.paths))))


@dataclass(frozen=True)
class Level:
    """The nodes of one depth, those of them that have children, and how many of the most likely tokens they take."""

    paths: list[Path]
    inner: list[Path]
    ranks: int


@lru_cache
def levels(paths: tuple[Path, ...]) -> list[Level]:
    """The levels of a tree from the first on."""
    parents = {path[:-1] for path in paths}
    found = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        level = [path for path in paths if len(path) == depth]
        found.append(Level(level, [path for path in level if path in parents], max(path[-1] for path in level) + 1))
    return found
