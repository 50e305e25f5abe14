"""What has changed since an earlier results folder: the same runs of both, side by side.

Used by `speed.py` and `report.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.answers.header import Role, of_role
from evaluation.judge import stats
from evaluation.judge.groups import Group, Result, short_commit
from evaluation.judge.stats import Ratio
from evaluation.judge.summary import Summary
from evaluation.judge.wording import changed, listed, valued
from methods.errors import UserError


@dataclass(frozen=True)
class Pairing:
    """A run and the same one of an earlier folder."""

    label: str  # of the run in its group
    group: str
    now: Summary
    before: Summary
    change: Ratio | None  # of the speedup; None where they have no question in common
    differences: list[str]  # in the conditions, in words
    found: list[str]  # what came out otherwise, in words: it may be why they differ

    @property
    def name(self) -> str:
        return f"{self.group}: {self.label}"

    @property
    def inside(self) -> bool | None:
        """Whether the speedup of now lies in the interval of before; None if that has none."""
        if self.before.low is None or self.before.high is None:
            return None
        return self.before.low <= self.now.speedup <= self.before.high

    @property
    def apart(self) -> bool:
        """Whether the two differ beyond both intervals, which then have no number in common."""
        ends = self.before.low, self.before.high, self.now.low, self.now.high
        if None in ends:
            return False
        low, high, now_low, now_high = (float(end) for end in ends if end is not None)
        return now_low > high or now_high < low


def pair_runs(now: Sequence[Group], before: Sequence[Group]) -> list[Pairing]:
    """Runs of the same method with the same options on the same task, wherever and whenever; of several earlier ones
    the one whose conditions differ least. Raises UserError where there is none."""
    earlier: dict[str, list[Result]] = {}
    for result in (r for group in before for r in group.measured):
        earlier.setdefault(_same(result), []).append(result)
    pairings = []
    for group in now:
        for result in group.measured:
            others = earlier.get(_same(result), [])
            if others:
                nearest_run = min(others, key=lambda other: len(other.header.differences(result.header)))
                pairings.append(_pairing(group, result, nearest_run))
    if not pairings:
        raise UserError("the two folders have no run of the same method, options, pair and task to compare")
    return pairings


def _same(result: Result) -> str:
    task = [result.header[key] for key in of_role(Role.TASK)]
    return json.dumps([result.method, result.options, task], sort_keys=True)


def _pairing(group: Group, now: Result, before: Result) -> Pairing:
    differences = before.header.differences(now.header)
    told = [changed(key, was, become) for key, (was, become) in differences.items() if key != "methods"]
    change = stats.change(now.pairs, before.pairs)
    return Pairing(group.labels[now], group.name, now.summary, before.summary, change, told, _found(now, before))


def _found(now: Result, before: Result) -> list[str]:
    """What the two came to that is no condition, where it differs, with what was before."""
    ours, theirs = _state(now), _state(before)
    both = [(what, ours[what], theirs[what]) for what in ours if what in theirs]
    return [f"{what}: {become}, before {was}" for what, become, was in both if become != was]


def _state(result: Result) -> dict[str, str]:
    """How the machine was, when, by which code, and what the method has settled on, as far as files tell."""
    h = result.header
    told = {
        "launches": str(len(result.run.launches)),
        "the baseline's tokens per s": f"{result.summary.baseline_tokens_per_second:.1f}",
        "memory read in GB/s": f"{h.read_bandwidth / 1e9:.1f}" if h.read_bandwidth else "",
        "MB in huge pages": f"{h.huge_pages / 1e6:.0f}" if h.huge_pages is not None else "",
        "commit": short_commit(h.git_commit),
        "begun": h.created or "",
    }
    told |= {f"{key} settled on": valued(value) for key, value in (h.settled or {}).items()}
    return {what: text for what, text in told.items() if text}


def headline(pairings: Sequence[Pairing]) -> str:
    """How many of the runs come out as before, in one line."""
    judged = [pairing.inside for pairing in pairings if pairing.inside is not None]
    slower, faster = (
        sum(p.change is not None and p.change.significant and (p.change.ratio < 1) == down for p in pairings)
        for down in (True, False)
    )
    return (
        f"{sum(judged)} of {len(judged)} speedups lie in the interval of before; "
        f"{slower} significantly lower, {faster} higher"
    )


def apart(pairings: Sequence[Pairing]) -> list[str]:
    """Which runs differ beyond both intervals, and in what their conditions and findings do; or that none does."""
    alike: dict[str, list[str]] = {}
    for p in (p for p in pairings if p.apart):
        alike.setdefault("; ".join(p.differences + p.found), []).append(p.name)
    lines = [
        f"beyond both intervals: {listed(names)}; besides, {why or 'their headers tell no difference'}"
        for why, names in alike.items()
    ]
    return lines or ["no run differs beyond both intervals"]


def interval_words(low: float | None, high: float | None, percent: bool = False) -> str:
    """An interval of ratios, or of the changes that they mean in percent."""
    if low is None or high is None:
        return "too few questions"
    return f"{low - 1:+.1%} to {high - 1:+.1%}" if percent else f"{low:.2f} to {high:.2f}"
