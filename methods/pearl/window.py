"""PEARL's `--gamma auto`: how many tokens to draft per round, from the rounds themselves.

By the paper (Liu et al., ICLR 2025, theorem 1) as many as fit into a pass of the target. That holds where the two ranks
do not disturb each other. Cores that share one memory do: the target slows its draft down until its pass is done, and a
draft token behind that is cheaper than one beside it. So some windows are tried, a round each in turn; what others
would take lies on the straight lines between them. Where answers are short, or drafts are often rejected, much is
drafted in vain: the first window behind a prompt or a rejection, during whose pass one token is judged, is chosen apart
from the others.

The first answers, those of the runner's warm-up, decide. Behind each later one the choice is made anew, from all rounds
of late: from times and from how many tokens were kept, never from what the tokens are.

Legend: F windows behind a rejection, W other windows, both from 1 on; R rows of a pass; S samples.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from methods.rounds import Floats, answer_seconds

TRIED = 2, 4, 8  # windows, a round each in turn
ANSWERS = 2  # behind which a choice is made at the earliest
LONGEST_WINDOW = 32
RECENT = 60  # rounds of each kind that count
SAMPLES = 10  # times that stand for all of a kind
BEYOND = 2  # times the longest window so far: what lies farther on the line is not believed
GAIN = 1.03  # by which another choice must be faster to be taken
MOST_TOKENS = 256  # of an answer; longer ones choose as one of this length does


class Windows(NamedTuple):
    """Tokens to draft: in the round behind a prompt or a rejection, and in the others."""

    first: int
    later: int


class Times:
    """Seconds by a count, of late: of drafts by their tokens, of passes by their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}

    def add(self, count: int, seconds: float) -> None:
        self._seconds.setdefault(count, deque(maxlen=RECENT)).append(seconds)

    def __bool__(self) -> bool:
        return bool(self._seconds)

    @property
    def largest(self) -> int:
        """The largest count that was measured."""
        return max(self._seconds)

    def samples(self, most: int) -> Floats:
        """What counts of 1 to `most` would take, [most, S]: the medians on the straight lines through those measured,
        spread as those of the nearest are, without the slowest tenth, which something else has held up. More never take
        less: where they seem to, as they came at another time, both are taken for their mean."""
        counts = sorted(self._seconds)
        medians = [median(self._seconds[count]) for count in counts]
        rising = isotonic_regression(medians, weights=[len(self._seconds[count]) for count in counts]).x
        typical = dict(zip(counts, rising.tolist(), strict=True))
        spread = {count: self._quantiles(count) / middle for count, middle in zip(counts, medians, strict=True)}
        nearest = [min(typical, key=lambda known: abs(known - count)) for count in range(1, most + 1)]
        middles = [on_lines(typical, count) for count in range(1, most + 1)]
        return np.stack([middle * spread[known] for middle, known in zip(middles, nearest, strict=True)])

    def _quantiles(self, count: int) -> Floats:
        seconds = sorted(self._seconds[count])
        kept = seconds[: max(len(seconds) * 9 // 10, 1)]
        return np.quantile(kept, (np.arange(SAMPLES) + 0.5) / SAMPLES)


def on_lines(known: Mapping[int, float], count: int) -> float:
    """The value at `count` of the straight lines between the known points; not below a tenth of the nearest. What lies
    outside is on the line through the outer point and the next that is twice as far, or half: a line through two close
    ones, prolonged, would magnify what disturbed them."""
    counts = sorted(known)
    if len(counts) == 1:
        return known[counts[0]]
    right = min(max(bisect_left(counts, count), 1), len(counts) - 1)
    low, high = counts[right - 1], counts[right]
    if count > counts[-1]:
        low = next((near for near in reversed(counts) if 2 * near <= high), counts[0])
    elif count < counts[0]:
        high = next((near for near in counts if near >= 2 * low), counts[-1])
    value = known[low] + (known[high] - known[low]) * (count - low) / (high - low)
    return max(value, known[min(counts, key=lambda near: abs(near - count))] / 10)


class AutoWindow:
    """What is known of the rounds so far, and what was chosen by it."""

    def __init__(self, longest: int = LONGEST_WINDOW, pre_verify: bool = True, post_verify: bool = True) -> None:
        """`longest`: most tokens that the drafter can draft. Without `pre_verify` a first window is drafted before its
        pass; without `post_verify` all windows are alike."""
        self._longest, self.pre_verify, self._alike = min(longest, LONGEST_WINDOW), pre_verify, not post_verify
        self._tried = sorted({min(window, self._longest) for window in TRIED})
        self._rounds = self._answers = 0
        self._drafts, self._passes = Times(), Times()
        self._kept, self._rejected = 0, 0
        self.chosen: Windows | None = None

    def window(self, first: bool) -> int:
        """Tokens to draft now; `first`: behind a prompt or a rejection."""
        if self.chosen is None:
            return self._tried[self._rounds % len(self._tried)]
        return self.chosen.first if first else self.chosen.later

    def drafted(self, asked: int, tokens: int, seconds: float) -> None:
        """A window has come. One that ends early, where the context or the drafter's longest chain does, tells
        nothing."""
        if tokens == asked:
            self._drafts.add(tokens, seconds)

    def verified(self, rows: int, seconds: float, kept: int, rejected: bool) -> None:
        """A pass has judged drafted tokens: `kept` of them, and one that it rejected or none."""
        self._rounds += 1
        self._passes.add(rows, seconds)
        self._kept, self._rejected = self._kept + kept, self._rejected + rejected

    def answered(self) -> None:
        """An answer has ended: choose, if enough is known."""
        self._answers += 1
        if self._answers < ANSWERS or self._rounds < len(self._tried) or not (self._drafts and self._passes):
            return
        seconds_FW = self._answer_seconds()
        known = BEYOND * self._drafts.largest
        seconds_FW[known:] = seconds_FW[:, known:] = np.inf
        if self._alike:
            seconds_FW[~np.eye(self._longest, dtype=bool)] = np.inf
        best = Windows(*(int(place) + 1 for place in np.unravel_index(seconds_FW.argmin(), seconds_FW.shape)))
        if self.chosen is None or seconds_FW[_place(self.chosen)] > GAIN * seconds_FW[_place(best)]:
            self.chosen = best

    def _answer_seconds(self) -> Floats:
        """Of an answer as long as those so far are on average, by the windows, [F, W]."""
        judged = self._kept + self._rejected
        # Laplace's rule of succession: of a few answers without a rejection none says that there will never be one.
        alpha, tokens = (self._kept + 1) / (judged + 2), round(judged / self._answers)
        drafts_WS = self._drafts.samples(self._longest)
        passes_RS = self._passes.samples(self._longest + 1)
        both_RW = np.maximum(passes_RS[:, None, :, None], drafts_WS[None, :, None, :]).mean((2, 3))
        before_F = np.zeros(self._longest) if self.pre_verify else drafts_WS.mean(1)
        return answer_seconds(alpha, min(max(tokens, 1), MOST_TOKENS), both_RW, before_F, self.pre_verify)


def _place(windows: Windows) -> tuple[int, int]:
    return windows.first - 1, windows.later - 1
