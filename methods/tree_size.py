"""`--nodes auto`: how many nodes and levels a tree is to have, from what the answers so far show.

A pass of more rows keeps more tokens and takes longer, and so does drafting more levels; how much longer is the
machine's own affair. So passes of 1 to 64 rows are timed before the first answer. Then trees of several sizes are
drafted in turn. A drafter of trees says of each node how many better ones there are, so one large tree also tells what
smaller ones would have kept. The size with the most tokens per second is taken.

Behind each later answer the choice is made anew, by the rounds of late: some of their trees have half the nodes and a
level less, and some twice the nodes and a level more, so that it is known what these would take and keep. The machine
changes, and texts do. Nothing of it depends on what the tokens are.

Legend: N nodes of a tree.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import fmean, median, mode
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
RECENT, LATE = 400, 200  # rounds by which is judged what is kept, and, of those since the last choice, what it takes
FEWEST = 12  # rounds by which another size than the chosen one is judged
ASIDE = 16  # every so many rounds another size is tried, a smaller and a larger one in turn
GAIN = 1.03  # by which another size must be faster to be taken


class Node(NamedTuple):
    """A drafted token: its level, 1 for the root's children, and whether the target kept it."""

    level: int
    kept: bool


@dataclass(frozen=True)
class Round:
    """A tree that was asked for, the seconds that drafting it took, its nodes, the best first, and the seconds that its
    pass took."""

    asked: Size
    seconds: float
    nodes: Sequence[Node]
    verify_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Of its pass."""
        return 1 + len(self.nodes)

    @classmethod
    def of(
        cls, asked: Size, seconds: float, tree: TokenTree, path_A: Sequence[int], verify_seconds: float = 0.0
    ) -> "Round":
        """`path_A`: the nodes that the target kept, the root first."""
        sizes_N, levels_N, kept = tree.sizes_N or range(tree.nodes), tree.depths, set(path_A)
        best = sorted(range(1, len(sizes_N)), key=lambda node: sizes_N[node])
        return cls(asked, seconds, [Node(levels_N[node], node in kept) for node in best], verify_seconds)

    def within(self, levels: int) -> list[Node]:
        """The nodes of the tree that has no more levels."""
        return [node for node in self.nodes if node.level <= levels]


class AutoNodes:
    """What is known of the rounds so far, and the size that was chosen by it."""

    def __init__(self) -> None:
        self.pass_seconds: Mapping[int, float] = {}  # by rows: as timed, with those of the rounds by which was chosen
        self._rounds = deque[Round](maxlen=RECENT)
        self._asked = self._answers = self._chosen_at = 0
        self.chosen: Size | None = None

    @property
    def size(self) -> Size:
        """Of the next tree."""
        if self.chosen is None:
            return TRIED[self._asked % len(TRIED)]
        turn, place = divmod(self._asked, ASIDE)
        return self.chosen if place else (larger if turn % 2 else smaller)(self.chosen)

    def judged(self, tree: TokenTree, path_A: Sequence[int], draft_seconds: float, verify_seconds: float) -> None:
        """A tree of `size` was drafted and verified in so many seconds, and the target kept this path."""
        self._rounds.append(Round.of(self.size, draft_seconds, tree, path_A, verify_seconds))
        self._asked += 1

    def answered(self) -> Size | None:
        """An answer has ended. The size from now on, where it is another one; None before enough is known."""
        self._answers += 1
        if self._answers < ANSWERS or self._asked < ROUNDS or not self.pass_seconds:
            return None
        rounds = list(self._rounds)
        late = rounds[-LATE:][self._chosen_at - self._asked :]
        if not late:
            return None
        pass_seconds = self._pass_seconds(late)
        if self.chosen is None:
            found = best_size(rounds, pass_seconds)
        else:
            found = better_size(self.chosen, rounds, draft_times(late), pass_seconds)
        if found == self.chosen:
            return None
        self.chosen, self.pass_seconds, self._chosen_at = found, pass_seconds, self._asked
        return found

    def _pass_seconds(self, rounds: Sequence[Round]) -> dict[int, float]:
        """Where a row count came often enough, its passes behind real drafts count. Others take as much more or less
        than when was chosen as those of the chosen size do."""
        found: dict[int, list[float]] = {}
        for round in rounds:
            found.setdefault(round.rows, []).append(round.verify_seconds)
        often = {rows: median(seconds) for rows, seconds in found.items() if len(seconds) >= TIMES}
        chosen = [round.rows for round in rounds if round.asked == self.chosen and round.rows in often]
        usual = mode(chosen) if chosen else None
        changed = 1.0 if usual is None else often[usual] / between(self.pass_seconds, usual)
        return {rows: seconds * changed for rows, seconds in self.pass_seconds.items()} | often


def smaller(size: Size) -> Size:
    """Half the nodes, and a level less."""
    return Size(-(-size.nodes // 2), max(size.levels - 1, 1))


def larger(size: Size) -> Size:
    """Twice the nodes, and a level more."""
    return Size(min(2 * size.nodes, MOST_NODES), min(size.levels + 1, MOST_LEVELS))


def best_size(rounds: Sequence[Round], pass_seconds: Mapping[int, float]) -> Size:
    """The size by which a second yields the most tokens; of equals the smallest. `pass_seconds`: of a pass by its rows;
    a size is judged by the rounds whose tree was at least as large."""
    draft_seconds, kept_of = draft_times(rounds), _kept_of(rounds)
    most = Size(*map(max, zip(*(round.asked for round in rounds), strict=True)))
    most_nodes, most_levels = min(most.nodes, max(pass_seconds) - 1), min(deepest(rounds), most.levels)

    def tokens_per_second(size: Size) -> float:
        kept, reached, _ = kept_of(size, size)
        return (1 + kept) / (draft_seconds(reached, size.nodes) + between(pass_seconds, size.nodes + 1))

    return max(_sizes(Size(most_nodes, most_levels)), key=tokens_per_second)


def better_size(
    size: Size,
    rounds: Sequence[Round],
    draft_seconds: Callable[[float, float], float],
    pass_seconds: Mapping[int, float],
) -> Size:
    """The size that is faster than `size` by the most, of those that are not much larger; `size` where that is little.

    Both are judged by the same rounds, whose trees were at least as large as either: how easy the texts of some rounds
    are does not count."""
    kept_of, asked = _kept_of(rounds), {round.asked for round in rounds}

    def gain(other: Size) -> float:
        both = Size(max(size.nodes, other.nodes), max(size.levels, other.levels))
        if not any(one.nodes >= both.nodes and one.levels >= both.levels for one in asked):
            return 0.0
        (kept, reached, count), (kept_now, reached_now, _) = kept_of(other, both), kept_of(size, both)
        seconds = draft_seconds(reached, other.nodes) + between(pass_seconds, other.nodes + 1)
        seconds_now = draft_seconds(reached_now, size.nodes) + between(pass_seconds, size.nodes + 1)
        return (1 + kept) / (1 + kept_now) * seconds_now / seconds if count >= FEWEST else 0.0

    most = larger(size)
    best = max(_sizes(Size(most.nodes, min(most.levels, deepest(rounds)))), key=gain)
    return best if gain(best) > GAIN else size


def deepest(rounds: Sequence[Round]) -> int:
    """The levels of their deepest tree."""
    return max((node.level for round in rounds for node in round.nodes), default=1)


def _sizes(most: Size) -> list[Size]:
    """All up to the largest, smaller ones first."""
    return [Size(nodes, levels) for levels in range(1, most.levels + 1) for nodes in range(1, most.nodes + 1)]


def _kept_of(rounds: Sequence[Round]) -> Callable[[Size, Size], tuple[float, float, int]]:
    """What trees of a size would have kept and how many levels they would have had, on average, by the rounds whose
    tree was at least as large as another size; and how many these are."""
    asked = {round.asked for round in rounds}

    @cache
    def outcomes(levels: int, asked: Size) -> list[tuple[list[int], list[int]]]:
        return [_outcome(round.within(levels)) for round in rounds if round.asked == asked]

    def kept_of(size: Size, least: Size) -> tuple[float, float, int]:
        large = (other for other in asked if other.nodes >= least.nodes and other.levels >= least.levels)
        found = [outcome for other in large for outcome in outcomes(size.levels, other)]
        kept = fmean(_at(kept, size.nodes) for kept, _ in found)
        return kept, fmean(_at(levels, size.nodes) for _, levels in found), len(found)

    return kept_of


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
