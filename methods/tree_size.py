"""`--nodes auto`: how many nodes a tree is to have, from what the first answers show.

A pass of more rows keeps more tokens and takes longer; how much longer is the machine's own affair. So passes of 1 to
64 rows are timed before the first answer. Then trees of several sizes are drafted in turn. A drafter of trees says of
each node how many better ones there are, so one large tree also tells what smaller ones would have kept. The size with
the most tokens per second is taken, and stays.

Legend: N nodes of a tree.
"""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from methods.engine.decoder import Decoder
from methods.engine.tree import TokenTree

ROWS = (1, 2, 4, 8, 16, 32, 64)  # of the passes that are timed
MOST_NODES = ROWS[-1] - 1  # beside the root
TRIED = (MOST_NODES, 3, MOST_NODES, 7, MOST_NODES, 15, MOST_NODES, 31)  # sizes of the trees drafted in turn
ANSWERS, ROUNDS = 2, len(TRIED)  # seen at least before a size is taken: each was tried
TIMES = 3  # that each pass is timed


@dataclass(frozen=True)
class Round:
    """A tree of at most `asked` nodes, the seconds that drafting it took, and of the nodes that were kept the sizes of
    the smallest trees that have them."""

    asked: int
    seconds: float
    kept: Sequence[int]


class AutoNodes:
    """What is known while the size is still sought."""

    def __init__(self) -> None:
        self.pass_seconds: Mapping[int, float] = {}
        self._rounds: list[Round] = []
        self._answers = 0

    @property
    def nodes(self) -> int:
        """The size of the next tree."""
        return TRIED[len(self._rounds) % len(TRIED)]

    def judged(self, tree: TokenTree, path_A: Sequence[int], seconds: float) -> None:
        """A tree of `nodes` was drafted in so many seconds, and the target kept this path."""
        sizes_N = tree.sizes_N or range(len(tree.tokens_N))
        self._rounds.append(Round(self.nodes, seconds, [sizes_N[node] for node in path_A[1:]]))

    def answered(self) -> int | None:
        """An answer has ended. The size to stay with, once enough is known; until then None."""
        self._answers += 1
        if self._answers < ANSWERS or len(self._rounds) < ROUNDS or not self.pass_seconds:
            return None
        return best_size(self._rounds, self.pass_seconds)


def best_size(rounds: Sequence[Round], pass_seconds: Mapping[int, float]) -> int:
    """The number of nodes by which a second yields the most tokens. `pass_seconds`: of a pass by its rows; a size is
    judged by the rounds whose tree was at least as large."""
    asked = {round.asked for round in rounds}
    draft_seconds = {size: median(r.seconds for r in rounds if r.asked == size) for size in asked}

    def tokens_per_second(size: int) -> float:
        enough = [round for round in rounds if round.asked >= size]
        kept = fmean(sum(1 for needed in round.kept if needed <= size) for round in enough)
        return (1 + kept) / (between(draft_seconds, size) + between(pass_seconds, size + 1))

    return max(range(1, min(max(asked), max(pass_seconds) - 1) + 1), key=tokens_per_second)


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
