"""PEARL's `--gamma auto`: how many tokens to draft per round, from what the first answers show.

By the paper (Liu et al., ICLR 2025, theorem 1) as many as fit into a pass of the target. That holds where the two ranks
do not disturb each other. Cores that share one memory do: the target slows its draft down until its pass is done, and a
draft token behind that is cheaper than one beside it. And a draft that is left at various exits takes now less, now
more than the pass. So two windows are tried, and what the rounds of others would take is told by them; with devices of
their own, even times and long answers that gives the paper's window again, rounded up or down. Short answers want
shorter ones: their first pass has but one token to verify, and of their last window a part is drafted in vain.
"""

from collections.abc import Callable
from itertools import product
from statistics import fmean, median

TRIED = 2, 8  # windows, an answer each in turn: most often one that fits into a pass, and one that does not
LONGEST_WINDOW = 32


class AutoWindow:
    """What is known while it is still sought."""

    def __init__(self, longest: int = LONGEST_WINDOW) -> None:
        """`longest`: most tokens that the drafter can draft."""
        self._answers, self._longest = 0, min(longest, LONGEST_WINDOW)
        long = min(TRIED[1], self._longest)
        self._tried = min(TRIED[0], max(long - 1, 1)), long
        self._draft_seconds: dict[int, list[float]] = {window: [] for window in self._tried}  # of whole windows
        self._verify_seconds: dict[int, list[float]] = {window: [] for window in self._tried}  # of passes
        self._kept, self._rejected = 0, 0

    @property
    def window(self) -> int:
        """The one to draft now."""
        return self._tried[self._answers % len(self._tried)]

    def drafted(self, tokens: int, seconds: float) -> None:
        """A draft has come. One that ends early, where the context or the drafter's longest chain does, tells
        nothing."""
        if tokens == self.window:
            self._draft_seconds[tokens].append(seconds)

    def verified(self, seconds: float, kept: int, rejected: bool) -> None:
        """A pass has judged drafted tokens: `kept` of them, and one that it rejected or none."""
        self._verify_seconds[self.window].append(seconds)
        self._kept, self._rejected = self._kept + kept, self._rejected + rejected

    def answered(self) -> int | None:
        """An answer has ended. The window to stay with, once every one has been tried; until then None."""
        self._answers += 1
        times = [*self._draft_seconds.values(), *self._verify_seconds.values()]
        if self._answers < len(self._tried) or not all(times):
            return None
        if self._longest == 1:
            return 1
        judged = self._kept + self._rejected
        # Laplace's rule of succession: of a few answers without a rejection none says that there will never be one.
        acceptance, tokens = (self._kept + 1) / (judged + 2), judged / self._answers
        return best_window(self._round_seconds, acceptance, tokens, self._longest)

    def _round_seconds(self, window: int) -> float:
        """The mean time of a round, which the slower rank decides."""
        drafts, passes = _seconds(self._draft_seconds, window), _seconds(self._verify_seconds, window)
        return fmean(max(both) for both in product(drafts, passes))


def _seconds(measured: dict[int, list[float]], window: int) -> list[float]:
    """What one rank's rounds of a window would take: the nearest tried ones, scaled to the straight line through the
    medians of both, without the slowest tenth, which something else on the machine has held up."""
    first, last = measured
    short, long = median(measured[first]), median(measured[last])
    typical = short + (long - short) * (window - first) / (last - first)
    near = min(measured, key=lambda tried: abs(tried - window))
    known = sorted(measured[near])
    return [seconds * typical / median(known) for seconds in known[: max(len(known) * 9 // 10, 1)]]


def best_window(
    round_seconds: Callable[[int], float], acceptance: float, tokens: float, longest: int = LONGEST_WINDOW
) -> int:
    """The window, of at most `longest`, by which an answer takes least. `round_seconds`: of a round of that window;
    `acceptance`: the probability that a drafted token is kept; `tokens`: of an answer."""
    count = max(round(tokens), 1)
    return min(
        range(1, longest + 1),
        key=lambda window: expected_passes(acceptance, window, count) * round_seconds(window),
    )


def expected_passes(acceptance: float, window: int, tokens: int) -> float:
    """How many passes PEARL needs on average, behind the prefill, for so many tokens, by the chain of
    `pearl_tokens` in `methods/theory.py`: nothing is drafted at first, and behind each rejection."""
    empty, full = [0.0], [0.0]  # passes for n tokens that begin with nothing drafted, and with a whole window
    rejected = 0.0  # sum of acceptance^k empty[n - 1 - k]: what follows if the token behind k kept ones is rejected
    for n in range(1, tokens + 1):
        beyond = empty[n - 1 - window] * acceptance**window if n > window else 0.0
        rejected = empty[n - 1] + acceptance * rejected - beyond
        kept_whole = full[max(n - window, 0)] * acceptance**window
        empty.append(1 + acceptance * full[n - 1] + (1 - acceptance) * empty[n - 1])
        full.append(1 + (1 - acceptance) * rejected + kept_whole)
    return empty[tokens]
