"""`--nodes auto`: how many nodes and levels a tree is to have, from what the first answers show.

A pass of more rows keeps more tokens and takes longer, and so does drafting more levels; how much longer is the
machine's own affair. So passes of 1 to 64 rows are timed before the first answer. Then trees of several sizes are
drafted in turn. A drafter of trees says of each node how many better ones there are, so one large tree also tells what
smaller ones would have kept. The size with the most tokens per second is taken, and stays.

Legend: N nodes of a tree.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import fmean, median
from typing import NamedTuple

from scipy.optimize import nnls

from methods.engine.decoder import Decoder
from methods.engine.tree import TokenTree

ROWS = (1, 2, 4, 8, 16, 32, 64)  # of the passes that are timed
MOST_NODES = ROWS[-1] - 1  # beside the root
MOST_LEVELS = 16


class Size(NamedTuple):
    """Of a tree, at most: drafted tokens, and levels below the root."""

    nodes: int
    levels: int


LARGEST = Size(MOST_NODES, MOST_LEVELS)
# Trees drafted in turn, shallow and deep ones of few and of many nodes, to tell what a level takes and what a node.
TRIED = (LARGEST, Size(3, 1), LARGEST, Size(7, 2), LARGEST, Size(15, MOST_LEVELS), LARGEST, Size(31, 2))
ANSWERS, ROUNDS = 2, len(TRIED)  # seen at least before a size is taken: each was tried
TIMES = 3  # that each pass is timed


class Node(NamedTuple):
    """A drafted token: its level, 1 for the root's children, and whether the target kept it."""

    level: int
    kept: bool


@dataclass(frozen=True)
class Round:
    """A tree that was asked for, the seconds that drafting it took, and its nodes, the best first."""

    asked: Size
    seconds: float
    nodes: Sequence[Node]

    @classmethod
    def of(cls, asked: Size, seconds: float, tree: TokenTree, path_A: Sequence[int]) -> "Round":
        """`path_A`: the nodes that the target kept, the root first."""
        sizes_N, levels_N, kept = tree.sizes_N or range(len(tree.tokens_N)), tree.depth_N.tolist(), set(path_A)
        best = sorted(range(1, len(sizes_N)), key=lambda node: sizes_N[node])
        return cls(asked, seconds, [Node(levels_N[node], node in kept) for node in best])

    def within(self, levels: int) -> list[Node]:
        """The nodes of the tree that has no more levels."""
        return [node for node in self.nodes if node.level <= levels]


class AutoNodes:
    """What is known while the size is still sought."""

    def __init__(self) -> None:
        self.pass_seconds: Mapping[int, float] = {}
        self._rounds: list[Round] = []
        self._verify_seconds: dict[int, list[float]] = {}  # of the rounds' own passes, by their rows
        self._answers = 0

    @property
    def size(self) -> Size:
        """Of the next tree."""
        return TRIED[len(self._rounds) % len(TRIED)]

    def judged(self, tree: TokenTree, path_A: Sequence[int], draft_seconds: float, verify_seconds: float) -> None:
        """A tree of `size` was drafted and verified in so many seconds, and the target kept this path."""
        self._rounds.append(Round.of(self.size, draft_seconds, tree, path_A))
        self._verify_seconds.setdefault(len(tree.tokens_N), []).append(verify_seconds)

    def answered(self) -> Size | None:
        """An answer has ended. The size to stay with, once enough is known; until then None."""
        self._answers += 1
        if self._answers < ANSWERS or len(self._rounds) < ROUNDS or not self.pass_seconds:
            return None
        # Where a row count came often enough, its passes behind real drafts count, not those timed before the answer.
        often = {rows: median(found) for rows, found in self._verify_seconds.items() if len(found) >= TIMES}
        return best_size(self._rounds, {**self.pass_seconds, **often})


def best_size(rounds: Sequence[Round], pass_seconds: Mapping[int, float]) -> Size:
    """The size by which a second yields the most tokens; of equals the smallest. `pass_seconds`: of a pass by its rows;
    a size is judged by the rounds whose tree was at least as large."""
    draft_seconds = draft_times(rounds)
    most = Size(*(max(sizes) for sizes in zip(*(round.asked for round in rounds), strict=True)))
    deepest = max((node.level for round in rounds for node in round.nodes), default=1)
    most_nodes = min(most.nodes, max(pass_seconds) - 1)

    @cache
    def outcomes(levels: int, asked: Size) -> list[tuple[list[int], list[int]]]:
        return [_outcome(round.within(levels)) for round in rounds if round.asked == asked]

    def tokens_per_second(size: Size) -> float:
        large = {r.asked for r in rounds if r.asked.nodes >= size.nodes and r.asked.levels >= size.levels}
        found = [outcome for asked in large for outcome in outcomes(size.levels, asked)]
        kept = fmean(_at(kept, size.nodes) for kept, _ in found)
        reached = fmean(_at(levels, size.nodes) for _, levels in found)
        return (1 + kept) / (draft_seconds(reached, size.nodes) + between(pass_seconds, size.nodes + 1))

    sizes = [Size(n, levels) for levels in range(1, min(deepest, most.levels) + 1) for n in range(1, most_nodes + 1)]
    return max(sizes, key=tokens_per_second)


def _outcome(nodes: Sequence[Node]) -> tuple[list[int], list[int]]:
    """Of the trees of the best 1, 2, ... of the nodes: how many were kept, how many levels there are."""
    return list(accumulate(node.kept for node in nodes)), list(accumulate((node.level for node in nodes), max))


def _at(of_trees: Sequence[int], nodes: int) -> int:
    """What holds for the tree of so many nodes, or of all where there are fewer."""
    return of_trees[min(nodes, len(of_trees)) - 1] if of_trees else 0


def draft_times(rounds: Sequence[Round]) -> Callable[[float, float], float]:
    """Seconds that drafting takes by levels and nodes: so much, and more for each level and each node, as fits best
    the medians of the sizes that were asked for."""
    rows, seconds = list[list[float]](), list[float]()
    for asked in {round.asked for round in rounds}:
        drafted = [round for round in rounds if round.asked == asked and round.nodes]
        if drafted:
            levels = fmean(max(node.level for node in round.nodes) for round in drafted)
            rows.append([1.0, levels, fmean(len(round.nodes) for round in drafted)])
            seconds.append(median(round.seconds for round in drafted))
    fixed, per_level, per_node = nnls(rows, seconds)[0] if rows else (0.0, 0.0, 0.0)
    return lambda levels, nodes: float(fixed + per_level * levels + per_node * nodes)


def between(seconds: Mapping[int, float], count: int) -> float:
    """What `count` would take, on the straight line between the measured counts beside it; beyond them, as the
    nearest."""
    counts = sorted(seconds)
    right = bisect_left(counts, count)
    if right == len(counts) or not right or counts[right] == count:
        return seconds[counts[min(right, len(counts) - 1)]]
    low, high = counts[right - 1], counts[right]
    return seconds[low] + (seconds[high] - seconds[low]) * (count - low) / (high - low)


def measured_passes(decoder: Decoder, token: int) -> dict[int, float]:
    """Seconds of a pass over a chain of so many rows behind what is committed, the median of several; of as many rows
    as there is room for. No row counts."""
    times: dict[int, list[float]] = {rows: [] for rows in ROWS if rows <= decoder.room}
    for _ in range(TIMES):
        for rows, found in times.items():
            begin = time.perf_counter()
            float(decoder.score(TokenTree.chain([token] * rows)).logits_NV[0, 0])  # a device has computed it then
            found.append(time.perf_counter() - begin)
    return {rows: median(found) for rows, found in times.items()}
