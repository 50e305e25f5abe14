"""Closed forms against every string of acceptances, and against the simulation; the simulation against both."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from methods.theory import (
    Simulated,
    best_window,
    break_even_c,
    draft_then_verify_speedup,
    draft_then_verify_tokens,
    pearl_speedup,
    pearl_tokens,
    run_length,
    schedule_seconds,
    sharing_seconds,
    simulate,
)

ALPHAS = [0.0, 0.2, 0.5, 0.8, 0.95, 1.0]
WINDOWS = [1, 2, 3, 6]
PARTS = list(itertools.product([True, False], repeat=2))  # pre-verify, post-verify


def run(
    window: int | None,
    alpha: float = 0.8,
    c: float = 6.0,
    link: float = 0.0,
    schedule: str = "pearl",
    tokens: int = 3000,
    replicas: int = 1,
    parts: tuple[bool, bool] = (True, True),
) -> Simulated:
    """A draft token takes a second, a target pass c seconds."""
    pre, post = parts
    return simulate(schedule, alpha, window, 1, c, link, tokens, 0, replicas, pre_verify=pre, post_verify=post)


def speed(result: Simulated, c: float) -> float:
    """Over autoregressive decoding, at c seconds a token."""
    return result.tokens_per_second * c


def strings(alpha: float, length: int) -> Iterator[tuple[int, float]]:
    """How many of `length` drafted tokens are accepted before the first rejection, and how likely: every string."""
    for string in itertools.product([True, False], repeat=length):
        accepted = next((i for i, ok in enumerate(string) if not ok), length)
        yield accepted, math.prod(alpha if ok else 1 - alpha for ok in string)


def chain(
    alpha: float, window: int, c: float, pre: bool = True, post: bool = True, hits: float = 0.0
) -> tuple[float, float]:
    """Tokens per pass and speedup of PEARL with some parts, by its rule, round by round: a Markov chain over len(D).

    A round verifies D and, unless the draft waits, e_1; its outcomes come from `strings`. Where the draft does not go
    on, a whole window is there with a chance of `hits`.
    """
    states = window + 1
    moves, tokens, seconds = np.zeros((states, states)), np.zeros(states), np.zeros(states)
    for left in range(states):
        first = window if left == 0 and not pre else 0  # drafted before the pass
        beside = post or left + first == 0
        seconds[left] = first + (max(c, window) if beside else c)
        for accepted, chance in strings(alpha, left + first + beside):
            rejected = accepted < left + first + beside
            tokens[left] += chance * (accepted + (rejected or not beside))  # a correction, or the bonus token
            if rejected or not beside:
                moves[left, 0] += chance * (1 - hits)
                moves[left, window] += chance * hits
            else:
                moves[left, window - 1] += chance
    balance, ones = np.vstack([moves.T - np.eye(states), np.ones(states)]), np.append(np.zeros(states), 1)
    often = np.linalg.lstsq(balance, ones, rcond=None)[0]
    return float(often @ tokens), float(often @ tokens * c / (often @ seconds))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_closed_forms_are_the_chain_of_rounds(alpha: float, window: int) -> None:
    for c in (0.5, 3.0, 8.0):
        tokens, speedup = chain(alpha, window, c, pre=True, post=True)
        assert pearl_tokens(alpha, window) == pytest.approx(tokens, rel=1e-9)
        assert pearl_speedup(alpha, window, c) == pytest.approx(speedup, rel=1e-9)
        tokens, speedup = chain(alpha, window, c, pre=False, post=False)
        assert draft_then_verify_tokens(alpha, window) == pytest.approx(tokens, rel=1e-9)
        assert draft_then_verify_speedup(alpha, window, c) == pytest.approx(speedup, rel=1e-9)


@pytest.mark.parametrize("hits", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_closed_forms_with_branches_are_the_chain_of_rounds(alpha: float, hits: float) -> None:
    for window, c in itertools.product(WINDOWS, (0.5, 3.0, 8.0)):
        tokens, speedup = chain(alpha, window, c, hits=hits)
        assert pearl_tokens(alpha, window, hits) == pytest.approx(tokens, rel=1e-9)
        assert pearl_speedup(alpha, window, c, hits) == pytest.approx(speedup, rel=1e-9)
        seconds = schedule_seconds(alpha, window, 0.5, 0.5 * c, hits)
        assert seconds["branches"] == pytest.approx(0.5 * c / speedup, rel=1e-9)
        assert seconds["paper"] == pytest.approx(0.5 * c / chain(alpha, window, c)[1], rel=1e-9)
        without = chain(alpha, window, c, pre=False)[1]
        assert seconds["without-pre-verify"] == pytest.approx(0.5 * c / without, rel=1e-9)


def test_a_hit_pays_and_beats_waiting_where_it_is_likely_enough() -> None:
    for alpha, window in itertools.product((0.2, 0.6, 0.9), (2, 5)):
        rates = [schedule_seconds(alpha, window, 1, 10, hits) for hits in np.linspace(0, 1, 11).tolist()]
        assert np.all(np.diff([rate["branches"] for rate in rates]) < 0)
        assert rates[0]["branches"] == rates[0]["paper"] and rates[-1]["branches"] < rates[-1]["without-pre-verify"]
        assert len({rate["without-pre-verify"] for rate in rates}) == 1
    chosen = []
    for alpha, c, hits in CHOICES:
        seconds = schedule_seconds(alpha, 3, 1, c, hits)
        chosen.append(min(seconds, key=seconds.__getitem__))
    assert chosen == ["branches", "without-pre-verify", "paper"]


CHOICES = [(0.6, 10, 0.6), (0.6, 10, 0.1), (0.9, 3, 0.0)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("alpha", "window", "hits"), [(0.0, 3, 0.5), (0.5, 1, 0.3), (0.5, 4, 0.7), (0.8, 6, 1.0)])
def test_simulated_branches_agree_with_the_chain_of_rounds(
    alpha: float, window: int, hits: float, parts: tuple[bool, bool]
) -> None:
    pre, post = parts
    result = simulate("pearl", alpha, window, 1, 6, 0, 30_000, 0, pre_verify=pre, post_verify=post, hits=hits)
    tokens, speedup = chain(alpha, window, 6.0, *parts, hits)
    assert result.tokens / result.passes == pytest.approx(tokens, rel=0.02)
    assert speed(result, 6.0) == pytest.approx(speedup, rel=0.02)


def test_closed_forms_as_published() -> None:
    for a, g, c in itertools.product([0.1, 0.5, 0.9], [1, 4, 7.5], [2.0, 10.0]):
        assert draft_then_verify_speedup(a, g, c) == pytest.approx((1 - a ** (g + 1)) / (1 - a) / (1 + g / c))
        expected = (1 - a**g) / ((1 - a) * (1 + a - a**g))
        assert pearl_tokens(a, g) == pytest.approx(expected)
        assert pearl_speedup(a, g, c) == pytest.approx(expected / max(g / c, 1))


@pytest.mark.parametrize("window", [1, 2, 7, 4.5])
def test_limits_are_exact_and_approached(window: float) -> None:
    assert draft_then_verify_tokens(0, window) == pearl_tokens(0, window) == 1
    assert draft_then_verify_tokens(1, window) == window + 1 and pearl_tokens(1, window) == window
    for near, limit in [(1e-12, 0.0), (1 - 1e-12, 1.0)]:
        assert draft_then_verify_tokens(near, window) == pytest.approx(draft_then_verify_tokens(limit, window))
        assert pearl_tokens(near, window) == pytest.approx(pearl_tokens(limit, window))
    assert pearl_speedup(1, window, window) == window and pearl_speedup(0, window, window) == 1
    assert run_length(0) == 0 and run_length(1) == math.inf


def test_more_acceptance_and_longer_windows_bring_more_tokens_per_pass() -> None:
    alphas = np.linspace(0, 1, 41).tolist()
    for tokens in (pearl_tokens, draft_then_verify_tokens):
        for window in (2, 3, 10):
            assert np.all(np.diff([tokens(alpha, window) for alpha in alphas]) > 0)
        for alpha in (0.1, 0.5, 0.9, 1.0):
            assert np.all(np.diff([tokens(alpha, window) for window in range(1, 12)]) > 0)
    assert [pearl_tokens(alpha, 1) for alpha in alphas] == pytest.approx([1] * 41)  # e_1 alone is no gain


def test_pearl_is_fastest_with_a_window_of_c_and_then_never_slower_than_the_target() -> None:
    for alpha, c in itertools.product(ALPHAS, [1, 2, 5, 12]):
        speeds = [pearl_speedup(alpha, window, c) for window in range(1, 30)]
        assert max(speeds) == pytest.approx(pearl_speedup(alpha, c, c)) and speeds[c - 1] >= 1 - 1e-12


@pytest.mark.parametrize("one, other", [(1.0, 3.0), (3.0, 1.0), (2.0, 2.0)])
@pytest.mark.parametrize("slowdown", [1.0, 1.4, 2.0])
def test_work_that_shares_a_memory_takes_what_small_steps_of_it_take(one: float, other: float, slowdown: float) -> None:
    left, seconds, step = [one, other], 0.0, 1e-4
    while max(left) > 1e-9:
        speed = 1 / slowdown if min(left) > 1e-9 else 1.0
        left, seconds = [max(work - step * speed, 0.0) for work in left], seconds + step
    assert sharing_seconds(one, other, slowdown) == pytest.approx(seconds, abs=5e-4)


def test_run_length_counts_accepted_tokens_between_rejections() -> None:
    rng = np.random.default_rng(0)
    for alpha in (0.3, 0.8):
        gaps = np.diff(np.flatnonzero(rng.random(200_000) >= alpha)) - 1
        assert gaps.mean() == pytest.approx(run_length(alpha), rel=0.03)


def test_best_window_is_the_best_of_all() -> None:
    for alpha, c in itertools.product([0, 0.1, 0.5, 0.7, 0.9, 0.97], [0.5, 1, 3, 10, 40]):
        speeds = [draft_then_verify_speedup(alpha, window, c) for window in range(1, 300)]
        assert best_window(alpha, c) == 1 + int(np.argmax(speeds))
    assert best_window(1, 1) == best_window(1, 0.5) == 1  # all windows equal, and drafting slower than the target


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0.5, 6.286), (0.6, 7.412), (0.7, 9.143), (0.8, 13.053), (0.9, 24.738)]
)
def test_break_even_by_value_and_on_both_sides(alpha: float, expected: float) -> None:
    assert break_even_c(alpha) == pytest.approx(expected, abs=6e-4)
    for c in np.linspace(1, 3 * expected, 60):
        rival = max(draft_then_verify_speedup(alpha, window, c) for window in range(1, 60))
        assert (pearl_speedup(alpha, c, c) > rival) == (c < break_even_c(alpha)), c


def test_break_even_is_lowest_in_the_middle_and_never_comes_at_the_ends() -> None:
    assert break_even_c(0) == break_even_c(1) == math.inf
    lowest = min(np.linspace(0.05, 0.95, 91), key=break_even_c)
    assert lowest == pytest.approx(0.34) and break_even_c(lowest) == pytest.approx(5.376, abs=1e-3)
    assert break_even_c(0.01) > 100 and break_even_c(0.99) > 200


def test_branches_move_the_break_even_up_and_away() -> None:
    for alpha in (0.3, 0.7):
        borders = [break_even_c(alpha, hits) for hits in (0.0, 0.3, 0.6)]
        assert borders[0] < borders[1] < borders[2] < break_even_c(alpha, 1.0) == math.inf
        for border, hits in zip(borders, (0.0, 0.3, 0.6), strict=True):
            rival = draft_then_verify_speedup(alpha, best_window(alpha, border), border)
            assert pearl_speedup(alpha, border, border, hits) == pytest.approx(rival, rel=1e-6)


def test_whole_windows_move_the_break_even_a_little_and_blur_it() -> None:
    """With PEARL's window the better whole number beside c, it still wins and loses where c is not close to c*."""
    for alpha in (0.5, 0.7, 0.9):
        for c in np.arange(2, 40, 0.37):
            pearl = max(pearl_speedup(alpha, window, c) for window in (math.floor(c), math.ceil(c)))
            wins = pearl > draft_then_verify_speedup(alpha, best_window(alpha, c), c)
            assert wins == (c < break_even_c(alpha)) or abs(c / break_even_c(alpha) - 1) < 0.03


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("alpha", "window"), [(0.0, 3), (0.5, 1), (0.5, 4), (0.8, 6), (0.9, 8), (1.0, 4)])
def test_simulation_agrees_with_the_chain_of_rounds(alpha: float, window: int, parts: tuple[bool, bool]) -> None:
    result = run(window, alpha, parts=parts, tokens=8000)
    tokens, speedup = chain(alpha, window, 6.0, *parts)
    noise = 3 * math.sqrt(alpha * (1 - alpha) / 8000)  # of the rate of acceptance, three standard deviations
    slope = (chain(min(alpha + 0.01, 1), window, 6.0, *parts)[0] / tokens - 1) / 0.01
    assert result.tokens / result.passes == pytest.approx(tokens, rel=noise * slope + 1e-3)
    assert speed(result, 6.0) == pytest.approx(speedup, rel=noise * slope + 1e-3)


def test_draft_then_verify_is_pearl_without_its_parts() -> None:
    for window, link in itertools.product([1, 5], [0.0, 0.5]):
        result = run(window, link=link, schedule="draft-then-verify")
        assert result == run(window, link=link, parts=(False, False))
        assert result.seconds == pytest.approx(result.passes * (window + 6 + 2 * link))
        assert result.verify_waited == pytest.approx(result.passes * (window + 2 * link))
    assert run(5, schedule="draft-then-verify", parts=(True, False)) == run(5, schedule="draft-then-verify")


def test_each_part_of_pearl_pays_where_the_window_is_c() -> None:
    for alpha in (0.5, 0.8, 0.95):
        full, neither = run(6, alpha), run(6, alpha, parts=(False, False))
        for parts in [(True, False), (False, True)]:
            one = run(6, alpha, parts=parts)
            assert neither.tokens_per_second < one.tokens_per_second < full.tokens_per_second


def test_pre_verify_costs_where_a_window_is_short_beside_a_pass() -> None:
    """Waiting for a few tokens then is cheaper than a pass that verifies one."""
    for window, pays in [(24, True), (4, False)]:
        without = run(window, 0.7, 24.0, parts=(False, True))
        assert (run(window, 0.7, 24.0).tokens_per_second > without.tokens_per_second) == pays


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("window", "link"), [(3, 0.0), (3, 1.0), (9, 1.0), (6, 2.5)])
def test_a_rank_is_busy_or_waits(window: int, link: float, parts: tuple[bool, bool]) -> None:
    result = run(window, link=link, parts=parts, replicas=3)
    assert result.draft_busy + result.draft_waited == pytest.approx(3 * result.seconds)
    assert result.verify_busy + result.verify_waited == pytest.approx(3 * result.seconds)
    assert result.verify_busy == pytest.approx(6 * result.passes)
    assert result.draft_waited >= 0 and result.verify_waited >= 0


def test_the_link_hides_behind_the_pass_while_there_is_room() -> None:
    at_once, hidden, shown = (run(6, c=10.0, link=link) for link in (0.0, 2.0, 2.5))
    assert hidden == at_once and shown.seconds == pytest.approx(at_once.seconds * 1.1)
    for link, seconds in [(1.0, 8 + 10), (3.0, 12 + 12)]:  # all rejected: a window to wait for, then one beside a pass
        rejected = run(6, 0.0, c=10.0, link=link, parts=(False, True))
        assert rejected.seconds / rejected.passes == pytest.approx(seconds)


def test_free_window_needs_no_choosing_where_c_is_whole() -> None:
    for alpha, c in itertools.product([0.0, 0.5, 0.9, 1.0], [1, 2, 5, 12]):
        free, fixed = run(None, alpha, c), run(c, alpha, c)
        assert (free.tokens, free.passes) == (fixed.tokens, fixed.passes)
        assert free.seconds == pytest.approx(fixed.seconds)
        assert free.draft_waited == pytest.approx(0)


def test_free_window_loses_at_most_a_draft_token_per_rejection() -> None:
    """Off whole c it gains what the lockstep waits, and loses the token in progress at a rejection: either may win."""
    gains = []
    for alpha, c in itertools.product([0.0, 0.4, 0.8, 1.0], [0.5, 1.3, 2.5, 7.3]):
        windows = {max(1, math.floor(c) + step) for step in (-1, 0, 1)}
        fixed = max(run(window, alpha, c).tokens_per_second for window in windows)
        free = run(None, alpha, c).tokens_per_second
        assert 1 / free <= 1 / fixed + (1 - alpha) * 1.05 + 1e-3, (alpha, c)
        assert free * c <= pearl_speedup(alpha, max(c, 1), c) * 1.03
        gains.append(free / fixed)
    assert min(gains) < 0.9 and max(gains) > 1.03


def test_free_window_does_not_stop_for_the_link_while_all_is_accepted() -> None:
    assert run(None, 1.0, link=1.0).tokens_per_second == pytest.approx(1, rel=0.01)
    assert run(6, 1.0, link=1.0).tokens_per_second == pytest.approx(6 / 8, rel=0.01)


def test_after_a_rejection_the_free_window_waits_for_a_ruling_and_a_token_to_travel() -> None:
    for link, seconds in [
        (2.0, 5),
        (2.5, 6),
    ]:  # two ways and a token; the one in progress is finished
        never = run(None, 0.0, c=1.0, link=link, tokens=1000)
        assert never.seconds / never.passes == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize("window", [6, None])
def test_replicas_share_the_tokens(window: int | None) -> None:
    one = run(window)
    for replicas in (2, 4):
        many = run(window, replicas=replicas)
        assert 3000 <= many.tokens < 3000 + replicas * 7
        assert 0.93 * replicas < many.tokens_per_second / one.tokens_per_second < 1.05 * replicas
    assert run(window, replicas=5, tokens=3).passes <= 3  # two of them have nothing to do


def test_a_seed_is_a_run() -> None:
    assert simulate("pearl", 0.7, 4, 1, 5, 0.1, 500, 1) == simulate("pearl", 0.7, 4, 1, 5, 0.1, 500, 1)
    assert simulate("pearl", 0.7, 4, 1, 5, 0.1, 500, 1) != simulate("pearl", 0.7, 4, 1, 5, 0.1, 500, 2)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_is_a_chance(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is the chance that a drafted token is accepted, from 0 to 1, not"):
        pearl_tokens(alpha, 4)
    for call in (run_length, break_even_c, lambda alpha: best_window(alpha, 5.0), lambda alpha: run(4, alpha)):
        with pytest.raises(ValueError, match="alpha is"):
            call(alpha)


@pytest.mark.parametrize("window", [0, -1, 0.5, math.nan])
def test_a_window_has_a_token(window: float) -> None:
    for tokens in (pearl_tokens, draft_then_verify_tokens):
        with pytest.raises(ValueError, match="the window is the number of tokens drafted per round, at least 1, not"):
            tokens(0.5, window)
    with pytest.raises(ValueError, match="the window is"):
        simulate("pearl", 0.5, int(np.nan_to_num(window)), 1, 1, 0, 1, 0)


def test_other_mistakes() -> None:
    with pytest.raises(ValueError, match="c is a target pass's time over a draft token's time, above 0, not 0"):
        pearl_speedup(0.5, 4, 0)
    with pytest.raises(ValueError, match="no window is best"):
        best_window(1, 2)
    with pytest.raises(ValueError, match=r"unknown schedule 'perl'; known: pearl, draft-then-verify"):
        run(4, schedule="perl")
    with pytest.raises(ValueError, match="free window"):
        run(None, schedule="draft-then-verify")
    with pytest.raises(ValueError, match="free window"):
        run(None, parts=(False, True))
    with pytest.raises(ValueError, match="tokens and replicas are at least 1, not 3000 and 0"):
        run(4, replicas=0)
    for hits in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="hits are the chance that an outcome was prepared, from 0 to 1, not"):
            pearl_tokens(0.5, 3, hits)
    for schedule, window in (("draft-then-verify", 3), ("pearl", None)):
        with pytest.raises(ValueError, match="only PEARL with a number as window has branches"):
            simulate(schedule, 0.5, window, 1, 1, 0, 10, 0, hits=0.5)
    for seconds in [(0, 1, 0), (1, 0, 0), (1, 1, -1)]:
        with pytest.raises(ValueError, match="a token and a pass take more than 0 seconds"):
            simulate("pearl", 0.5, 4, *seconds, 10, 0)
