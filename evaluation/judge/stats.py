"""Statistics of a comparison: what one method's answers say beside the baseline's. Pure functions, no files.

Terms: a *pass* is one forward of the target, an *accept length* the tokens one pass
committed, *MAT* the mean accept length. Times are seconds, prefill included unless a name says "decode".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # not scipy.stats, which takes a second to import, in every run

from evaluation.answers.record import Answer, Choice

CONFIDENCE = 0.95
MIN_QUESTIONS = 5  # of fewer the spread is hardly known
LARGEST_EXCESS = 6  # kurtosis of an exponential distribution, less that of a normal one
LONGEST_PERIOD = 32  # tokens
FEWEST_CYCLES = 4
KEYS = ["question", "turn", "repeat"]
SUMMED = ["tokens", "time", "tokens_base", "time_base"]

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Launch = tuple[Floats, ...]  # what `SUMMED` names, each with a number for each question along the last axis


@dataclass(frozen=True)
class Ratio:
    """A ratio of rates with its 95% interval, which is None for too few questions."""

    ratio: float
    low: float | None
    high: float | None
    questions: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True)
class Speedup(Ratio):
    """How many times the baseline's tokens per second a method reaches: sum(tokens) / sum(time), over the same of the
    baseline."""

    geometric_mean: float  # of the questions' own ratios


def pair_answers(method: Iterable[Answer], baseline: Iterable[Answer]) -> pd.DataFrame:
    """Both runs' measurements side by side, a row for each (question, turn, repeat) that both finished.

    Columns: question, turn, repeat, category; tokens, time, decode_tokens, decode_time, passes of the method, and the
    same of the baseline with the ending `_base`. Decoding leaves out prefill and the token that prefill gives; it and
    passes are NaN where a file does not record them. Sorted, so that the order of the files does not matter.
    """
    other = _measurements(baseline).drop(columns="category")
    pairs = _measurements(method).merge(other, on=KEYS, suffixes=("", "_base"), validate="one_to_one")
    return pairs.sort_values(KEYS, key=lambda column: column.map(str), ignore_index=True)


def speedup(pairs: pd.DataFrame) -> Speedup:
    """The headline: tokens per second over all pairs against the baseline's, with its 95% interval (`log_interval`).

    The question is what is sampled, with all its turns and repeats, method and baseline together: what varies between
    questions, and what is common to both runs of one, is not noise.
    """
    sums = _per_question(pairs)
    tokens, time, tokens_base, time_base = launch = _launch(sums)
    low, high = _interval([launch])
    return Speedup(
        ratio=float(np.exp(_log_speedup(*(column.sum() for column in launch)))),
        low=low,
        high=high,
        questions=len(sums),
        geometric_mean=float(np.exp(np.log((tokens / time) / (tokens_base / time_base)).mean())),
    )


def change(now: pd.DataFrame, before: pd.DataFrame) -> Ratio | None:
    """How many times the speedup of `before` that of `now` is, both as `pair_answers` gives them, on the questions that
    both have; None where there is none.

    Both launches answered the same questions, so these are taken together, as in `speedup`. What differs between the
    launches as wholes, such as where the weights lie in memory or what else the machine does, is not in the interval.
    """
    sums = [_per_question(pairs) for pairs in (now, before)]
    common = sums[0].index.intersection(sums[1].index, sort=False)
    if common.empty:
        return None
    launches = [_launch(part.loc[common]) for part in sums]
    logs = [_log_speedup(*(column.sum() for column in launch)) for launch in launches]
    low, high = _interval(launches)
    return Ratio(float(np.exp(logs[0] - logs[1])), low, high, len(common))


def log_interval(launches: Sequence[Launch]) -> tuple[Floats, Floats]:
    """The 95% interval of the logarithm of a launch's speedup, or of its change since a second launch.

    The standard error is the jackknife's, which leaves out one question at a time (Efron and Tibshirani 1993, "An
    introduction to the bootstrap", chapter 11), and the quantile is Student's with `_degrees_of_freedom`. On the
    logarithm, so swapping method and baseline gives the reciprocal. For 5 to 164 questions whose ratios are spread
    log-normally by 0.1 to 0.5 it covers the truth 94 to 96 times in 100. For 5 of them the expanded percentile interval
    of the bootstrap did 88 to 93 times and the studentized one 92 to 95 times. It needs no random numbers.
    """
    estimate = _log_change([[column.sum(-1, keepdims=True) for column in launch] for launch in launches])
    without_one = _log_change([[column.sum(-1, keepdims=True) - column for column in launch] for launch in launches])
    deviations = without_one - without_one.mean(-1, keepdims=True)
    questions = deviations.shape[-1]
    error = np.sqrt((questions - 1) / questions * (deviations**2).sum(-1))
    times = [time / time.sum(-1, keepdims=True) for launch in launches for time in (launch[1], launch[3])]
    reach = stdtrit(_degrees_of_freedom(deviations, sum(times) / len(times)), (1 + CONFIDENCE) / 2) * error
    return estimate[..., 0] - reach, estimate[..., 0] + reach


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


def decode_speedup(pairs: pd.DataFrame) -> float | None:
    """The headline ratio with prefill left out of both sides; None where prefill is not recorded or nothing decoded."""
    columns = pairs[["decode_tokens", "decode_time", "decode_tokens_base", "decode_time_base"]]
    tokens, time, tokens_base, time_base = columns.sum(skipna=False)
    if not (tokens > 0 and time > 0 and tokens_base > 0 and time_base > 0):  # NaN too
        return None
    return float((tokens / time) / (tokens_base / time_base))


def spec_bench_speedup(
    method: Sequence[Answer], baseline: Sequence[Answer], count: Callable[[str], int] | None = None
) -> float | None:
    """Spec-Bench's own figure (Xia et al. 2024), as its script computes it: mean over lines of tokens/time, over the
    baseline's same mean. Of each line its first choice; failed turns and lines without a partner are included.

    The method's tokens are those recorded. So are the baseline's here, unless `count` counts them anew from their text,
    as Spec-Bench's script does. None where a line has no time, by which the script would divide.
    """
    rate, rate_base = _mean_of_rates(method), _mean_of_rates(baseline, count)
    return rate / rate_base if rate is not None and rate_base else None


def _mean_of_rates(answers: Sequence[Answer], count: Callable[[str], int] | None = None) -> float | None:
    firsts = [answer.choices[0] for answer in answers]
    tokens = [sum(map(count, choice.turns) if count else choice.new_tokens) for choice in firsts]
    seconds = [sum(choice.wall_time) for choice in firsts]
    return float(np.mean(np.divide(tokens, seconds))) if firsts and all(seconds) else None


def mean_accept_length(choices: Iterable[Choice]) -> float | None:
    """MAT: tokens committed per target pass. None without passes."""
    choices = list(choices)
    passes = pass_count(choices)
    lengths = sum(sum(choice.accept_lengths) for choice in choices)
    return (lengths or sum(sum(choice.new_tokens) for choice in choices)) / passes if passes else None


def pass_count(choices: Sequence[Choice]) -> int | None:
    """How many target passes there were, prefills among them. Of a server that tells accepted drafts but no passes:
    each of these decided one token more than it accepted. None where unknown."""
    if passes := sum(len(choice.accept_lengths) for choice in choices):
        return passes
    told = [choice for choice in choices if choice.told_accepted is not None]
    if not told or len(told) < len(choices):
        return None
    return sum(max(n - kept, 1) for c in told for n, kept in zip(c.new_tokens, c.told_accepted or [], strict=True) if n)


def accepted_share(choices: Sequence[Choice]) -> float | None:
    """Of the tokens that a server has drafted the share that it accepted, as it tells; None where it does not, or
    drafted none."""
    told = [choice for choice in choices if choice.told_drafted and choice.told_accepted]
    drafted, accepted = (sum(sum(getattr(c, key)) for c in told) for key in ("told_drafted", "told_accepted"))
    return accepted / drafted if drafted else None


def seconds_per_pass(choices: Sequence[Choice], key: str) -> float | None:
    """The mean of `draft_time`, `verify_time`, `wait_time` or `hidden_time` over the target's passes; None where not
    recorded."""
    times = [getattr(choice, key) for choice in choices]
    passes = sum(len(choice.accept_lengths) for choice in choices)
    return None if None in times or not passes else sum(map(sum, times)) / passes


def nodes_per_pass(choices: Sequence[Choice]) -> float | None:
    """The mean of the rows that a target pass scored, the prefill left out; None where a choice does not record it."""
    if any(choice.nodes is None for choice in choices):
        return None
    passes = [n for choice in choices for turn in choice.nodes or [] for n in turn[1:]]
    return sum(passes) / len(passes) if passes else None


def hit_rate(choices: Sequence[Choice]) -> float | None:
    """Of the outcomes of PEARL's passes that needed a window, the share that had been prepared for. None where nothing
    was prepared, or none was needed."""
    hits, misses = (sum(sum(getattr(choice, key) or []) for choice in choices) for key in ("hits", "misses"))
    return hits / (hits + misses) if hits + misses else None


def prepared_per_pass(choices: Sequence[Choice]) -> float | None:
    """Outcomes of a pass that were prepared for, the prefill left out. None where PEARL has no branches."""
    passes = sum(max(steps - 1, 0) for choice in choices for steps in choice.decoding_steps or [])
    told = [choice.prepared for choice in choices if choice.prepared is not None]
    return sum(map(sum, told)) / passes if told and passes else None


def repetition_share(choices: Iterable[Choice]) -> float | None:
    """The share of all tokens that lie in a loop their answer ends in (`looping_tokens`). None without token ids."""
    turns = [turn for choice in choices for turn in choice.token_ids or []]
    total = sum(len(turn) for turn in turns)
    return sum(looping_tokens(turn) for turn in turns) / total if total else None


def looping_tokens(tokens: Sequence[int]) -> int:
    """The length of the loop that `tokens` end in: the longest ending that repeats with one period.

    The period is at most 32 tokens, and the ending holds at least 4 periods; 0 where there is none. Such endings are
    degenerate repetition (Holtzman et al. 2020): easy to draft, so they flatter every speculative method.
    """
    longest = 0
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // FEWEST_CYCLES) + 1):
        start = len(tokens) - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        if len(tokens) - start >= FEWEST_CYCLES * period:
            longest = max(longest, len(tokens) - start)
    return longest


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that each may be held against the level at which any of them may fail
    by chance (Holm 1979)."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
    return adjusted[np.argsort(order)].tolist()


def _measurements(answers: Iterable[Answer]) -> pd.DataFrame:
    """One row per finished turn. A choice with a failed turn is left out whole: its later turns saw another prompt."""
    rows = [
        (answer.question_id, turn, choice.index, answer.category, *_measured(choice, turn))
        for answer in answers
        for choice in answer.choices
        if not choice.any_failed
        for turn in range(len(choice.turns))
    ]
    names = [*KEYS, "category", "tokens", "time", "decode_tokens", "decode_time", "passes"]
    ids_of_any_kind = {"question": object}  # numbers in one file, texts in another
    return pd.DataFrame(rows, columns=names).astype(ids_of_any_kind)


def _measured(choice: Choice, turn: int) -> tuple[float, float, float, float, float]:
    tokens, time = choice.new_tokens[turn], choice.wall_time[turn]
    decoded = (tokens - 1, time - choice.prefill_time[turn]) if choice.prefill_time else (np.nan, np.nan)
    known = choice.token_ids and choice.decoding_steps and choice.tells_passes
    passes = choice.decoding_steps[turn] if known and choice.decoding_steps else np.nan
    return tokens, time, *decoded, passes


def _per_question(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.groupby("question", sort=False)[SUMMED].sum()


def _launch(sums: pd.DataFrame) -> Launch:
    return tuple(sums[name].to_numpy(float) for name in SUMMED)


def _interval(launches: Sequence[Launch]) -> tuple[float, float] | tuple[None, None]:
    if len(launches[0][0]) < MIN_QUESTIONS:
        return None, None
    low, high = log_interval(launches)
    return float(np.exp(low)), float(np.exp(high))


def _log_change(launches: Sequence[Sequence[Floats]]) -> Floats:
    """Of one launch the log of its speedup, of two the log of the first's over the second's."""
    now, *before = (_log_speedup(*launch) for launch in launches)
    return now - before[0] if before else now


def _log_speedup(tokens: Floats, time: Floats, tokens_base: Floats, time_base: Floats) -> Floats:
    return np.log(tokens) - np.log(time) - (np.log(tokens_base) - np.log(time_base))
