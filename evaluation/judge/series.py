"""Runs that tell something together: a sweep over windows, PEARL with and without its parts, runs beside the theory."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation.judge.fit import BOTH, NOTHING, POST_VERIFY, PRE_VERIFY, Pace, baseline_rate, pace, schedule, window
from evaluation.judge.groups import Group, LeftOut, Result

ABLATED = (BOTH, POST_VERIFY, PRE_VERIFY, NOTHING)  # what the runs of an ablation are without, the whole method last


@dataclass(frozen=True)
class Sweep:
    """A sweep is a list of runs that differ in their window only; `points` are (window, run)."""

    label: str
    points: list[tuple[int, Result]]

    @property
    def results(self) -> list[Result]:
        return [result for _, result in self.points]


def sweeps(group: Group) -> tuple[list[Sweep], list[str]]:
    """The sweeps, and why some runs are in none."""
    reasons = []
    alike: dict[str, list[tuple[int, Result]]] = {}
    for result in (r for r in group.measured if schedule(r)):
        try:
            size = window(result)
        except LeftOut as reason:
            reasons.append(str(reason))
            continue
        if size is not None:
            alike.setdefault(_without_option(result, "gamma"), []).append((size, result))
    found = [Sweep(label, sorted(points, key=lambda point: point[0])) for label, points in alike.items()]
    return [sweep for sweep in found if len({size for size, _ in sweep.points}) > 1], reasons


def mean_baseline_rate(results: Iterable[Result]) -> float:
    """The mean of their baselines' tokens per second, prefill left out; each launch has a baseline of its own."""
    return fmean(baseline_rate(result) for result in results)


@dataclass(frozen=True)
class Ablation:
    """Runs that differ in what they leave out of PEARL only, in the order of `ABLATED`."""

    group: Group
    label: str
    results: list[Result]


def ablations(group: Group) -> list[Ablation]:
    """Each has two runs at least. Of several that leave out the same, as where a sweep has the whole method as well,
    it takes the one with most of the others in its folder."""
    alike: dict[str, list[Result]] = {}
    for result in group.measured:
        if result.without in ABLATED:
            alike.setdefault(_without_option(result, "without"), []).append(result)
    found = [Ablation(group, f"{group.name}: {label}", _one_of_each(results)) for label, results in alike.items()]
    return [ablation for ablation in found if len(ablation.results) > 1]


def _without_option(result: Result, left_out: str) -> str:
    """The method with all its options but one; that it is without nothing goes without saying."""
    options = {name: value for name, value in result.options.items() if (name, value) != ("without", NOTHING)}
    return ", ".join([result.method, *(f"{name} {value}" for name, value in options.items() if name != left_out)])


def _one_of_each(results: Sequence[Result]) -> list[Result]:
    together = Counter(result.folder for result in results)
    chosen = {result.without: result for result in sorted(results, key=lambda r: together[r.folder])}
    return [chosen[part] for part in ABLATED if part in chosen]


def measured_paces(groups: Sequence[Group]) -> tuple[dict[Result, Pace], list[str]]:
    """The pace of every run that the theory covers, and why others have none."""
    found, reasons = {}, []
    for result in (r for group in groups for r in group.measured if schedule(r)):
        try:
            found[result] = pace([result])
        except LeftOut as reason:
            reasons.append(str(reason))
    return found, reasons
