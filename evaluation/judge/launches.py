"""What each launch of a comparison came to, so that a reader sees what moves from one to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from evaluation.answers.header import RunHeader
from evaluation.answers.run import Run, launch_of
from evaluation.judge.groups import Group, Result


@dataclass(frozen=True)
class Launch:
    """One launch of several, as its baseline saw it. Rates are per second; None where the files do not tell."""

    header: RunHeader
    baseline_tokens_per_second: float
    read_bandwidth: float | None  # bytes: the median of what was read before each answer, else that of the start


def speedups_by_launch(result: Result) -> list[float]:
    """The speedup of each launch of a measured run, in order."""
    return [float((tokens / time) / (base / base_time)) for tokens, time, base, base_time in _sums(result)]


def launches(group: Group) -> list[Launch]:
    """Of the run with most launches; empty where every run is of one."""
    most = max(group.measured, key=lambda result: result.summary.launches, default=None)
    if most is None or most.base is None or most.summary.launches == 1:
        return []
    rates = [float(base / base_time) for _, _, base, base_time in _sums(most)]
    bandwidths = _bandwidths(most.base)
    return [Launch(*told) for told in zip(most.base.launches, rates, bandwidths, strict=False)]


def _sums(result: Result) -> Sequence[Sequence[float]]:
    columns = ["tokens", "time", "tokens_base", "time_base"]
    return result.pairs.groupby(result.pairs["repeat"].map(launch_of))[columns].sum().to_numpy().tolist()


def _bandwidths(run: Run) -> list[float | None]:
    found: dict[int, list[float]] = {}
    for answer in run.answers.values():
        for choice in answer.choices:
            found.setdefault(launch_of(choice.index), []).extend(filter(None, [choice.read_bandwidth]))
    return [
        median(found[number]) if found[number] else header.read_bandwidth
        for number, header in zip(sorted(found), run.launches, strict=True)
    ]
