"""The statistics behind lossless.py: each against brute force, and against samples that are known to be wrong."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.judge.stats import holm
from evaluation.proof.audit import position
from evaluation.proof.goodness import (
    IMPOSSIBLE,
    Groups,
    all_answers,
    group,
    p_value,
    pooled,
    samples_needed,
    uniformity,
)
from methods.engine.sampling import Sampling, draw, probabilities

V, TOKENS, EOS = 6, 3, 5


@cache
def after(answer: tuple[int, ...]) -> Tensor:
    """A target whose distribution depends on the whole answer; token 4 is impossible behind token 0."""
    seed = int("1" + "".join(map(str, answer)))
    logits = 2 * torch.randn(1, V, generator=torch.Generator().manual_seed(seed))
    if answer[-1:] == (0,):
        logits[0, 4] = -torch.inf
    return probabilities(logits, Sampling(1.0))[0]


def sample(random: torch.Generator) -> tuple[int, ...]:
    answer: tuple[int, ...] = ()
    while len(answer) < TOKENS and EOS not in answer:
        answer = (*answer, draw(after(answer), random))
    return answer


def finished() -> list[tuple[int, ...]]:
    """Every answer that ends with EOS or after three tokens."""
    cut = {answer[: answer.index(EOS) + 1] if EOS in answer else answer for answer in product(range(V), repeat=TOKENS)}
    return sorted(cut)


def chance(answer: tuple[int, ...]) -> float:
    return float(np.prod([float(after(answer[:i])[token]) for i, token in enumerate(answer)]))


@pytest.mark.parametrize("least", [0.5, 1 / 12, 0.01])
def test_groups_hold_every_answer_once_and_know_their_mass(least: float) -> None:
    groups = group(after, TOKENS, frozenset({EOS}), least)
    masses = np.zeros(len(groups.mass_G))
    for answer in finished():
        masses[groups.of(answer)] += chance(answer)
    assert masses == pytest.approx(groups.mass_G)
    assert masses.sum() == pytest.approx(1)
    alone = [answer for answer in finished() if chance(answer) >= least]
    assert len({groups.of(answer) for answer in alone}) == len(alone)
    assert groups.of((0, 4, 1)) == IMPOSSIBLE or least == 0.5


def test_all_answers_have_their_chances() -> None:
    chances = all_answers(after, 2)
    assert chances == pytest.approx({a: chance(a) for a in product(range(V), repeat=2) if chance(a)})


def test_samples_of_the_target_fit_and_others_do_not() -> None:
    groups = group(after, TOKENS, frozenset({EOS}), 1 / 12)
    random = torch.Generator().manual_seed(0)
    answers = [sample(random) for _ in range(1000)]
    assert p_value(groups, answers) > 0.01
    likeliest = max(finished(), key=chance)
    assert p_value(groups, [*answers[:850], *[likeliest] * 150]) < 1e-6
    assert p_value(groups, [*answers, (0, 4, 1)]) == 0.0


def test_p_values_are_uniform_where_nothing_is_wrong() -> None:
    groups = group(after, TOKENS, frozenset({EOS}), 1 / 12)
    random = torch.Generator().manual_seed(1)
    p_values = [p_value(groups, [sample(random) for _ in range(80)]) for _ in range(60)]
    assert (uniformity(p_values, bins=6) or 0.0) > 0.01


def test_small_groups_are_taken_together() -> None:
    assert pooled([0.0, 0.5, 0.3, 0.04, 0.02, 0.14], 100) == [[4, 3], [5], [2], [1]]
    assert pooled([0.0, 0.5, 0.46, 0.04], 100) == [[3, 2], [1]]
    assert pooled([0.0, 1.0], 100) == [[1]]


def test_so_many_samples_have_the_power_that_was_asked_for() -> None:
    """Against the hardest shift: by the same factor in every group. Wide margins: 400 trials tell 0.9 to 0.03."""
    random, shift, level = np.random.default_rng(0), 0.1, 0.01
    groups = Groups([0.0, *[0.1] * 10], {(): torch.arange(1, 11)})
    wrong = [0.1 * (1 + 2 * shift * (-1) ** i) for i in range(10)]
    for power in (0.5, 0.9):
        count = samples_needed(groups.count, shift, power, level)
        found = 0
        for _ in range(400):
            counts = random.multinomial(count, wrong)
            answers = [(token,) for token, n in enumerate(counts) for _ in range(n)]
            found += p_value(groups, answers) <= level
        assert found / 400 == pytest.approx(power, abs=0.08)


def test_holms_p_values() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_positions_in_their_own_distribution_are_uniform_and_in_another_are_not() -> None:
    random, uniform = torch.Generator().manual_seed(0), np.random.default_rng(0)
    q = [after((i % 5,)) for i in range(1000)]
    tokens = [draw(row, random) for row in q]
    assert (
        uniformity([position(r.numpy(), x, uniform.random()) for r, x in zip(q, tokens, strict=True)]) or 0.0
    ) > 0.01
    late = [position(r.numpy(), x, uniform.random()) for r, x in zip(q[1:], tokens[:-1], strict=True)]
    assert (uniformity(late) or 0.0) < 1e-6
    sure = [(r, x) for r, x in zip(q, tokens, strict=True) if r[x] > 0.1]
    assert (uniformity([position(r.numpy(), x, uniform.random()) for r, x in sure]) or 0.0) < 1e-6


def test_too_few_numbers_are_not_judged() -> None:
    assert uniformity([0.5] * 9) is None
    assert uniformity([0.5] * 10) is not None
