"""PEARL's `--gamma auto`: what is chosen by known times (that of an answer by its windows: test_rounds.py)."""

from collections.abc import Callable

import numpy as np
import pytest

from methods.pearl.window import (
    ANSWERS,
    BEYOND,
    LONGEST_WINDOW,
    TRIED,
    AutoWindow,
    Times,
    on_lines,
)
from methods.rounds import answer_seconds
from methods.theory import pearl_speedup
from tests.test_rounds import times


def test_counts_that_were_not_measured_lie_on_straight_lines() -> None:
    known = {2: 4.0, 4: 6.0, 8: 20.0}
    assert [on_lines(known, count) for count in (1, 2, 3, 6, 8, 10)] == [3, 4, 5, 13, 20, 27]
    assert on_lines({4: 10.0, 7: 16.0, 8: 15.0}, 16) == on_lines({4: 10.0, 5: 30.0, 8: 15.0}, 16) == 25
    assert on_lines({6: 10.0, 7: 16.0, 12: 22.0}, 3) == 4
    assert on_lines({8: 5.0}, 3) == 5 and on_lines({4: 1.0, 8: 9.0}, 1) == pytest.approx(0.1)


def test_more_never_take_less() -> None:
    """Windows of 8 were tried while the machine was fast, those of 7 often, when it was not."""
    seconds = Times()
    for count, each, often in ((4, 12.0, 20), (7, 21.0, 30), (8, 15.0, 10)):
        for _ in range(often):
            seconds.add(count, each)
    middles = seconds.samples(16).mean(1)
    assert middles[6] == middles[7] == pytest.approx((21 * 30 + 15 * 10) / 40) and all(np.diff(middles) >= 0)
    assert middles[15] == pytest.approx(middles[7] + (middles[7] - 12) / 4 * 8)


def test_samples_are_spread_as_the_nearest_and_without_what_was_held_up() -> None:
    seconds = Times()
    for i in range(20):
        seconds.add(2, 1.0 + (i % 2))
        seconds.add(4, 500.0 if i == 0 else 3.0)
    samples = seconds.samples(5)
    assert samples.shape[0] == 5 and np.ptp(samples[1]) == pytest.approx(1) and np.ptp(samples[3]) == 0
    assert samples[4].mean() == pytest.approx(3.75)


def chosen(
    pass_ms: Callable[[int], float],
    draft_ms: Callable[[int], float],
    alpha: float,
    tokens: int = 200,
    auto: AutoWindow | None = None,
    answers: int = ANSWERS,
    uneven: float = 0.0,
) -> AutoWindow:
    """Answers of a chain of rounds with these times. `uneven`: share by which every other draft takes more and less."""
    auto, generator = auto or AutoWindow(), np.random.default_rng(0)
    for _ in range(answers):
        left, tail, first = tokens, 0, True
        while left > 0:
            window = auto.window(first)
            auto.drafted(window, window, draft_ms(window) * (1 + generator.choice([-uneven, uneven])))
            kept = min(int(generator.geometric(1 - alpha)) - 1, tail + 1) if alpha < 1 else tail + 1
            first = kept < tail + 1
            auto.verified(tail + 1, pass_ms(tail + 1), kept, first)
            left, tail = left - kept - first, 0 if first else window - 1
        auto.drafted(window, 1, 1e9)  # cut short: says nothing
        auto.answered()
    return auto


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.9, 2.4, 4.3, 7.5, 12.0])
@pytest.mark.parametrize("alpha", [0.5, 0.8, 0.98])
def test_where_ranks_do_not_disturb_each_other_auto_is_as_fast_as_the_papers_window(ratio: float, alpha: float) -> None:
    """By theorem 1 what fits into a pass; where that is not whole, the faster of its neighbours."""
    found = chosen(lambda rows: ratio, float, alpha, tokens=2000).chosen
    assert found is not None
    best = max(max(int(ratio), 1), int(ratio) + 1, key=lambda g: pearl_speedup(alpha, g, ratio))
    both_RW = times(lambda rows: ratio, float, LONGEST_WINDOW)
    seconds_FW = answer_seconds(alpha, 250, both_RW, np.zeros(LONGEST_WINDOW), True)
    assert seconds_FW[found.first - 1, found.later - 1] <= 1.04 * seconds_FW[best - 1, best - 1]


def test_the_first_window_is_as_long_as_its_pass_and_longer_where_long_drafts_are_cheap() -> None:
    """Behind a rejection a pass scores one row, and may be done early. But of its window only the first token is at
    risk, so that much may be drafted where only the first tokens, beside the pass, are slow."""
    early = chosen(lambda rows: 4.0 if rows == 1 else 8.0, float, alpha=0.8).chosen
    assert early is not None and abs(early.first - 4) <= 1 and abs(early.later - 8) <= 1
    beside = chosen(lambda rows: 17.0, lambda w: 9.0 * min(w, 2) + 3.5 * max(w - 2, 0), alpha=0.95).chosen
    assert beside is not None and beside.first > beside.later


def test_auto_is_shorter_for_short_answers_and_has_an_end_without_rejections() -> None:
    def draft(window: int) -> float:
        return 1 + max(window, 4.0)

    long, short = (chosen(lambda rows: 1.0, draft, 0.99, tokens).chosen for tokens in (1000, 12))
    assert long is not None and short is not None and long.later > short.later
    never = chosen(lambda rows: 16.9, lambda window: 4.4 + 6.43 * window, alpha=1.0, tokens=60).chosen
    assert never is not None and never.later < 12, "a few answers without a rejection do not say that none will come"


def test_auto_leaves_room_where_drafts_take_now_more_now_less() -> None:
    """Four draft tokens fit into a pass by their mean, but would often keep it waiting."""
    even, uneven = (chosen(lambda rows: 16.0, lambda w: 4.0 * w, 0.5, 400, uneven=share).chosen for share in (0, 0.3))
    assert even is not None and uneven is not None and even.later == 4 and uneven.later < 4


def test_auto_follows_when_the_machine_changes_and_stays_where_little_is_won() -> None:
    auto = chosen(lambda rows: 8.0, float, 0.9)
    before = auto.chosen
    chosen(lambda rows: 8.05, float, 0.9, auto=auto, answers=1)
    assert auto.chosen == before
    chosen(lambda rows: 8.0, lambda window: 3.0 * window, 0.9, auto=auto, answers=20)
    assert before is not None and auto.chosen is not None and auto.chosen.later < before.later


def test_what_was_never_tried_is_approached_in_steps() -> None:
    """Passes of up to 8 rows that take the same do not say that one of 32 does."""

    def verify(rows: int) -> float:
        return 10.0 if rows <= 16 else 3.0 * rows

    auto = chosen(verify, lambda window: 0.1 * window, 0.95)
    assert auto.chosen is not None and max(auto.chosen) == BEYOND * max(TRIED)
    chosen(verify, lambda window: 0.1 * window, 0.95, auto=auto, answers=5)
    assert max(auto.chosen) <= 17


def test_without_post_verify_all_windows_are_alike() -> None:
    found = chosen(lambda rows: 2.2 + rows, lambda w: 2.0 * w, 0.7, auto=AutoWindow(post_verify=False)).chosen
    assert found is not None and found.first == found.later


@pytest.mark.parametrize("longest, tried", [(1, {1}), (2, {2}), (3, {2, 3}), (5, {2, 4, 5}), (50, set(TRIED))])
def test_auto_tries_no_window_that_the_drafter_cannot_fill(longest: int, tried: set[int]) -> None:
    auto = AutoWindow(longest)
    asked = set()
    for _ in range(ANSWERS):
        for _ in TRIED:
            asked.add(auto.window(False))
            auto.drafted(auto.window(False), auto.window(False), 0.002)
            auto.verified(auto.window(False), 0.005, auto.window(False), False)
        auto.answered()
    assert asked == tried and auto.chosen is not None and max(auto.chosen) <= longest
