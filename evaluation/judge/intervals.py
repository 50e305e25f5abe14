"""Intervals of ratios: of a speedup, or of what has become of it. Pure functions on arrays.

Questions and launches are both drawn from many, and every launch answers the same questions: two crossed random
effects.

Legend: L launches, Q questions; an axis `...` holds runs of a simulation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # not scipy.stats, which takes a second to import, in every run

CONFIDENCE = 0.95
LARGEST_EXCESS = 6  # kurtosis of an exponential distribution, less that of a normal one

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Sums = tuple[Floats, ...]  # tokens, time, tokens_base, time_base, each (..., L, Q)


@dataclass(frozen=True)
class Spread:
    """How far an estimate (...) on the logarithm may be off. `questions`: the variance of the estimate by these;
    `launches`: the same by the launches, of each run (None: of one launch, which does not tell). `freedom`: degrees of
    freedom of all of it."""

    estimate: Floats
    questions: Floats
    launches: list[Floats | None]
    freedom: Floats

    @property
    def variance(self) -> Floats:
        return self.questions + sum(part for part in self.launches if part is not None)

    @property
    def interval(self) -> tuple[Floats, Floats]:
        reach = stdtrit(self.freedom, (1 + CONFIDENCE) / 2) * np.sqrt(self.variance)
        return self.estimate - reach, self.estimate + reach


def log_interval(runs: Sequence[Sums]) -> tuple[Floats, Floats]:
    """The 95% interval of the logarithm of a run's speedup, or of its change since a second run: see `spread`."""
    return spread(runs).interval


def spread(runs: Sequence[Sums]) -> Spread:
    """Of the logarithm of a run's speedup, or of its change since a second run on the same questions.

    By questions: the jackknife, which leaves out one of them at a time, in all launches (Efron and Tibshirani 1993, "An
    introduction to the bootstrap", chapter 11). By launches: what their own speedups vary, less what they would by the
    answers alone (the analysis of variance of two crossed effects; Searle, Casella and McCulloch 1992), or 0. Both are
    added, as Kalibera and Jones 2013 do for the levels of a benchmark, and the quantile is Student's, with the harmonic
    mean of the parts' degrees of freedom, weighted by the parts: Satterthwaite's weights, which are squared, covered
    the truth 91 to 93 times in 100 where three launches decide. On the logarithm, so swapping method and baseline gives
    the reciprocal.

    For 5 to 164 questions whose ratios are spread log-normally by 0.1 to 0.5 the interval of one launch covers the
    truth of that launch 94 to 96 times in 100. For 5 of them the expanded percentile interval of the bootstrap did 88
    to 93 times and the studentized one 92 to 95 times. That of 3 to 10 launches, which move it by 0 to 8%, covers the
    truth of any launch 94 to 97 times, that of two 92 to 97 times. It needs no random numbers.
    """
    estimate = _log_change([_total(run, (-2, -1)) for run in runs])
    deviations = _without_one(runs)
    n = deviations.shape[-1]
    questions = (n - 1) / n * (deviations**2).sum(-1)
    launches = [_by_launches(run) for run in runs]
    counted = [(part, run[0].shape[-2] - 1) for part, run in zip(launches, runs, strict=True) if part is not None]
    total = questions + sum(part for part, _ in counted)
    lost = questions / _degrees_of_freedom(deviations, _shares(runs)) + sum(part / freedom for part, freedom in counted)
    return Spread(estimate, questions, launches, np.where(total > 0, total, 1) / np.where(total > 0, lost, 1))


def _without_one(runs: Sequence[Sums]) -> Floats:
    """What the estimate is without each question, less the mean of that (..., Q); 0 of a single one."""
    of_questions = [_total(run, (-2,)) for run in runs]
    if of_questions[0][0].shape[-1] == 1:
        return np.zeros_like(of_questions[0][0])
    without = _log_change([[column.sum(-1, keepdims=True) - column for column in run] for run in of_questions])
    return without - without.mean(-1, keepdims=True)


def _by_launches(run: Sums) -> Floats | None:
    """The variance of the estimate by the launches (...); None of one launch."""
    launches, questions = run[0].shape[-2:]
    if launches == 1:
        return None
    own = _log_speedup(*_total(run, (-1,)))
    between = own.var(-1, ddof=1) / launches
    tokens, time, tokens_base, time_base = (column / column.sum((-2, -1), keepdims=True) for column in run)
    parts = tokens - time - tokens_base + time_base  # what each answer adds to the logarithm of the speedup
    rest = parts - parts.mean(-1, keepdims=True) - parts.mean(-2, keepdims=True) + parts.mean((-2, -1), keepdims=True)
    freedom = max((launches - 1) * (questions - 1), 1)
    return np.maximum(between - launches * questions / freedom * (rest**2).sum((-2, -1)), 0)


def _shares(runs: Sequence[Sums]) -> Floats:
    """The questions' shares of the time (..., Q)."""
    times = [column.sum(-2) for run in runs for column in (run[1], run[3])]
    return sum(time / time.sum(-1, keepdims=True) for time in times) / len(times)


def _degrees_of_freedom(deviations: Floats, shares: Floats) -> Floats:
    """How well the deviations of the last axis tell their variance, by Satterthwaite 1946: twice its square over the
    variance of its estimate, which is 2 / (n - 1) + excess kurtosis / n of the square.

    `shares` of the time are the questions' weights: of uneven ones only as many count as even ones would (Kish 1965).
    The excess kurtosis is that of the deviations, less what it is on average for so few normal ones, within bounds: one
    question in which the machine stalled must not make all others worthless.
    """
    n = deviations.shape[-1]
    effective = 1 / (shares**2).sum(-1)
    variance = (deviations**2).mean(-1)
    excess = (deviations**4).mean(-1) / np.where(variance > 0, variance, 1) ** 2 - 3 + 6 / (n + 1)
    return 1 / np.minimum(1 / np.maximum(effective - 1, 1) + np.clip(excess, 0, LARGEST_EXCESS) / (2 * n), 1)


def _total(run: Sums, axes: tuple[int, ...]) -> list[Floats]:
    return [column.sum(axes) for column in run]


def _log_change(runs: Sequence[Sequence[Floats]]) -> Floats:
    """Of one run the log of its speedup, of two the log of the first's over the second's."""
    now, *before = (_log_speedup(*run) for run in runs)
    return now - before[0] if before else now


def _log_speedup(tokens: Floats, time: Floats, tokens_base: Floats, time_base: Floats) -> Floats:
    return np.log(tokens) - np.log(time) - (np.log(tokens_base) - np.log(time_base))
