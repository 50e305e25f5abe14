"""What an answer takes by PEARL, its first windows apart: against going through every rejection, and against the theory
and simulation of endless ones."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from methods.pearl.window import Windows
from methods.rounds import Floats, answer_seconds
from methods.theory import SCHEDULES, pearl_tokens, simulate

PEARL = SCHEDULES[0]
LONGEST = 5


def times(pass_seconds: Callable[[int], float], draft_seconds: Callable[[int], float], most: int = LONGEST) -> Floats:
    """both_RW where the two do not disturb each other."""
    rows, windows = range(1, most + 2), range(1, most + 1)
    return np.array([[max(pass_seconds(rows), draft_seconds(window)) for window in windows] for rows in rows])


def by_hand(
    alpha: float,
    tokens: int,
    both_RW: Floats,
    before_F: Floats,
    pre_verify: bool,
    windows: Windows,
    hits: float = 0.0,
) -> float:
    """The chain as it is told: what each pass judges, and what follows from the first token that it rejects."""
    first, later = windows

    @cache
    def seconds(tokens: int, state: str) -> float:
        if tokens <= 0:
            return 0.0
        if state == "rejected":
            return (1 - hits) * seconds(tokens, "empty") + hits * seconds(tokens, "ready")
        if state == "ready":
            took, judged, kept = both_RW[first, later - 1], first + 1, "later"
        elif state == "empty" and pre_verify:
            took, judged, kept = both_RW[0, first - 1], 1, "first"
        elif not pre_verify and (state == "empty" or later == 1):
            drafted = first if state == "empty" else 1
            took, judged, kept = before_F[drafted - 1] + both_RW[drafted, later - 1], drafted + 1, "later"
        else:
            judged, kept = (first if state == "first" else later), "later"
            took = both_RW[judged - 1, later - 1]
        ways = [(alpha**k * (1 - alpha), k + 1, "rejected") for k in range(judged)] + [(alpha**judged, judged, kept)]
        return float(took + sum(chance * seconds(tokens - n, then) for chance, n, then in ways if chance))

    return seconds(tokens, "empty")


@pytest.mark.parametrize("hits", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pre_verify", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [1, 2, 5, 12])
def test_the_time_of_an_answer_agrees_with_going_through_every_rejection(
    alpha: float, tokens: int, pre_verify: bool, hits: float
) -> None:
    both_RW = times(lambda rows: 3 + 0.2 * rows, lambda window: 1.1 * window)
    before_F = np.arange(1, LONGEST + 1) * np.float64(0.7)
    found_FW = answer_seconds(alpha, tokens, both_RW, before_F, pre_verify, hits)
    for first in range(1, LONGEST + 1):
        for later in range(1, LONGEST + 1):
            expected = by_hand(alpha, tokens, both_RW, before_F, pre_verify, Windows(first, later), hits)
            assert found_FW[first - 1, later - 1] == pytest.approx(expected), (first, later)


@pytest.mark.parametrize("hits", [0.0, 0.6])
@pytest.mark.parametrize("pre_verify", [True, False])
def test_the_time_of_a_long_answer_agrees_with_the_theorem_and_with_simulated_rounds(
    pre_verify: bool, hits: float
) -> None:
    alpha, tokens, draft, verify = 0.8, 4000, 1.0, 3.3
    both_RW = times(lambda rows: verify, lambda window: draft * window)
    before_F = np.arange(1, LONGEST + 1) * np.float64(draft)
    found_FW = answer_seconds(alpha, tokens, both_RW, before_F, pre_verify, hits)
    rest: dict[str, Any] = {"seed": 1, "pre_verify": pre_verify, "hits": hits}
    for window in (1, 3, 5):
        simulated = simulate(PEARL, alpha, window, draft, verify, 0.0, 100_000, **rest)
        assert tokens / found_FW[window - 1, window - 1] == pytest.approx(simulated.tokens_per_second, rel=0.02)
        if pre_verify:
            passes = found_FW[window - 1, window - 1] / max(verify, window * draft)
            assert tokens / passes == pytest.approx(pearl_tokens(alpha, window, hits), rel=3e-3)
