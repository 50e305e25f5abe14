"""What a reader wants to know first of each task: what is fastest, by how much, how sure, and elsewhere?"""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.judge import stats
from evaluation.judge.compare import pair
from evaluation.judge.fit import schedule
from evaluation.judge.groups import Group, Result
from methods import theory

ELSEWHERE = 5, 10, 20  # how many draft tokens a target pass is as long as, on other hardware


@dataclass(frozen=True)
class Elsewhere:
    """What theory gives where a pass takes as long as so many draft tokens, at the acceptance rate `alpha` of a run and
    with a device for each of target and draft: speedups by each of `ELSEWHERE`."""

    alpha: float
    draft_then_verify: list[float]
    pearl: list[float]


@dataclass(frozen=True)
class Glance:
    """The fastest of the runs whose output is the target's, and the one behind it on as many threads. `ahead`: the
    fastest over that, in time."""

    best: Result
    second: Result | None
    ahead: stats.Speedup | None
    elsewhere: Elsewhere | None


def glance(group: Group) -> Glance | None:
    """None where no such run is measured."""
    exact = sorted((r for r in group.measured if r.header.exact), key=lambda r: -r.summary.speedup)
    if not exact:
        return None
    best = exact[0]
    second = next((r for r in exact[1:] if r.header.threads == best.header.threads), None)
    together = second is not None and bool(best.run.finished & second.run.finished)
    ahead = stats.speedup(pair(best.run, second.run).pairs) if second and together else None
    return Glance(best, second, ahead, _elsewhere(exact))


def _elsewhere(results: Sequence[Result]) -> Elsewhere | None:
    """By the acceptance of the fastest run whose draft is a model; None where none is."""
    rates = [r.summary.acceptance_rate for r in results if schedule(r)]
    alpha = next((rate for rate in rates if rate is not None and 0 < rate < 1), None)
    if alpha is None:
        return None
    turns = [theory.draft_then_verify_speedup(alpha, theory.best_window(alpha, c), c) for c in ELSEWHERE]
    return Elsewhere(alpha, turns, [theory.pearl_speedup(alpha, c, c) for c in ELSEWHERE])
