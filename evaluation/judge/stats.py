"""Statistics of a comparison: what one method's answers say beside the baseline's. Pure functions, no files.

Terms: a *pass* is one forward of the target, an *accept length* the tokens one pass
committed, *MAT* the mean accept length. Times are seconds, prefill included unless a name says "decode".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.answers.record import Answer, Choice
from evaluation.answers.run import launch_of
from evaluation.judge.intervals import Spread, Sums, spread

MIN_QUESTIONS = 5  # of fewer the spread is hardly known
LONGEST_PERIOD = 32  # tokens
FEWEST_CYCLES = 4
KEYS = ["question", "turn", "repeat"]
SUMMED = ["tokens", "time", "tokens_base", "time_base"]


@dataclass(frozen=True)
class Ratio:
    """A ratio of rates with its 95% interval, which is None for too few questions. `launches`: that it is judged by, of
    two runs the fewer; of one the interval is over questions alone."""

    ratio: float
    low: float | None
    high: float | None
    questions: int
    launches: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True)
class Speedup(Ratio):
    """How many times the baseline's tokens per second a method reaches: sum(tokens) / sum(time), over the same of the
    baseline. The last two are standard deviations of its logarithm, and None where the files do not tell them."""

    geometric_mean: float  # of the questions' own ratios
    moved_by_questions: float | None  # by other questions, as many
    moved_by_launch: float | None  # from one launch to another, on the same questions


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
    """The headline: tokens per second over all pairs against the baseline's, with the interval of `intervals.spread`.

    The question is what is sampled, with all its turns and repeats, method and baseline together: what varies between
    questions, and what is common to both runs of one, is not noise. So is the launch, where there are several.
    """
    questions, run = _cells(pairs)
    found = spread([run])
    tokens, time, tokens_base, time_base = (column.sum(0) for column in run)
    (by_launches,) = found.launches
    known = len(questions) >= MIN_QUESTIONS
    return Speedup(
        **_ratio(found, len(questions), len(run[0])),
        geometric_mean=float(np.exp(np.log((tokens / time) / (tokens_base / time_base)).mean())),
        moved_by_questions=float(np.sqrt(found.questions)) if known else None,
        moved_by_launch=None if by_launches is None else float(np.sqrt(by_launches * len(run[0]))),
    )


def change(now: pd.DataFrame, before: pd.DataFrame) -> Ratio | None:
    """How many times the speedup of `before` that of `now` is, both as `pair_answers` gives them, on the questions that
    both have; None where there is none.

    Both answered the same questions, so these are taken together, as in `speedup`. What differs between launches as
    wholes, such as where the weights lie in memory or what else the machine does, is in the interval as far as a run
    has several.
    """
    (questions, ours), (others, theirs) = (_cells(pairs) for pairs in (now, before))
    common = questions.intersection(others, sort=False)
    if common.empty:
        return None
    runs = [
        tuple(column[:, index.get_indexer(common)] for column in run)
        for index, run in ((questions, ours), (others, theirs))
    ]
    return Ratio(**_ratio(spread(runs), len(common), min(len(run[0]) for run in runs)))


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


def _cells(pairs: pd.DataFrame) -> tuple[pd.Index, Sums]:
    """The questions that every launch has, and of these what `SUMMED` names, each (L, Q)."""
    launch = pairs["repeat"].map(launch_of).rename("launch")
    sums = pairs.groupby(["question", launch], sort=False)[SUMMED].sum().unstack().dropna()
    return sums.index, tuple(sums[name].to_numpy(float).T for name in SUMMED)


def _ratio(found: Spread, questions: int, launches: int) -> dict[str, Any]:
    """By the names of a Ratio."""
    low, high = (float(np.exp(end)) if questions >= MIN_QUESTIONS else None for end in found.interval)
    ratio = float(np.exp(found.estimate))
    return {"ratio": ratio, "low": low, "high": high, "questions": questions, "launches": launches}
