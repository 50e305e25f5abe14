"""What has changed since an earlier results folder: the same runs of both, side by side.

Used by `speed.py` and `report.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evaluation.answers.header import header_differences
from evaluation.judge import stats
from evaluation.judge.groups import Group, Result, read_groups
from evaluation.judge.stats import Ratio
from evaluation.judge.wording import changed
from evaluation.show.tables import Summary, print_tables, terminal
from evaluation.speed import pair_files
from methods.errors import UserError

TASK = ("pair", "benchmark", "template", "dtype", "sampling", "max_new_tokens")
LEGEND = """\
change: the speedup of now over that of before, on the same questions; its interval: over these
inside: the speedup of now lies in the interval of before
What differs between two launches as wholes, such as the load of the machine, is in neither interval."""


@dataclass(frozen=True)
class Pairing:
    """A run and the same one of an earlier folder."""

    label: str  # of the run in its group
    group: str
    now: Summary
    before: Summary
    change: Ratio | None  # of the speedup; None where they have no question in common
    differences: list[str]  # in the conditions, in words

    @property
    def name(self) -> str:
        return f"{self.group}: {self.label}"

    @property
    def inside(self) -> bool | None:
        """Whether the speedup of now lies in the interval of before; None if that has none."""
        if self.before["low"] is None:
            return None
        return self.before["low"] <= self.now["speedup"] <= self.before["high"]


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
                nearest_run = min(others, key=lambda other: len(header_differences(other.header, result.header)))
                pairings.append(_pairing(group, result, nearest_run))
    if not pairings:
        raise UserError("the two folders have no run of the same method, options, pair and task to compare")
    return pairings


def _same(result: Result) -> str:
    return json.dumps([result.method, result.options, [result.header.get(key) for key in TASK]], sort_keys=True)


def _pairing(group: Group, now: Result, before: Result) -> Pairing:
    differences = header_differences(before.header, now.header)
    told = [changed(key, was, become) for key, (was, become) in differences.items() if key != "methods"]
    pairs = [pair_files(run.run.path, run.base_path).pairs for run in (now, before) if run.base_path]
    summaries = now.overall or {}, before.overall or {}
    return Pairing(group.labels[now], group.name, *summaries, stats.change(*pairs), told)


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


def _table(pairings: Sequence[Pairing]) -> Table:
    """A row for each pairing, for a terminal."""
    result = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("run", no_wrap=True)
    for name in ("before", "95% interval", "now", "inside", "change", "95% interval"):
        result.add_column(name, justify="right", no_wrap=True)
    words = {True: Text("yes"), False: Text("no", style="yellow"), None: Text("-", style="dim")}
    for p in pairings:
        before, now = (f"{summary['speedup']:.2f}x" for summary in (p.before, p.now))
        interval = interval_words(p.before["low"], p.before["high"])
        result.add_row(p.name, before, interval, now, words[p.inside], *_change_cells(p.change))
    return result


def _change_cells(change: Ratio | None) -> tuple[Text, Text]:
    if change is None:
        return Text("-", style="dim"), Text("no common question", style="dim")
    style = "" if not change.significant else "bold green" if change.ratio > 1 else "bold red"
    return Text(f"{change.ratio - 1:+.1%}", style=style), Text(interval_words(change.low, change.high, percent=True))


def interval_words(low: float | None, high: float | None, percent: bool = False) -> str:
    """An interval of ratios, or of the changes that they mean in percent."""
    if low is None or high is None:
        return "too few questions"
    return f"{low - 1:+.1%} to {high - 1:+.1%}" if percent else f"{low:.2f} to {high:.2f}"


def compare_folders(now: Path, before: Path, as_json: bool) -> int:
    """Print how the speedups of a results folder have changed since an earlier one. Returns the exit status."""
    pairings = pair_runs(read_groups([now]), read_groups([before]))
    if as_json:
        print(json.dumps(_rows(pairings), indent=2))
        return 0
    console = terminal()
    print_tables(console, _table(pairings))
    console.print(headline(pairings), soft_wrap=True)
    console.print(LEGEND, style="dim", soft_wrap=True)
    for told in dict.fromkeys(told for pairing in pairings for told in pairing.differences):
        console.print(Text(f"note: other conditions: {told}", style="yellow"), soft_wrap=True)
    summaries = [summary for pairing in pairings for summary in (pairing.now, pairing.before)]
    for told in dict.fromkeys(note for summary in summaries for note in summary["notes"]):
        console.print(Text(f"note: {told}", style="yellow"), soft_wrap=True)
    return 0


def _rows(pairings: Sequence[Pairing]) -> list[dict[str, Any]]:
    """The same for programs."""
    figures = ("speedup", "low", "high")
    return [
        {
            "run": p.name,
            "before": {key: p.before[key] for key in figures},
            "now": {key: p.now[key] for key in figures},
            "inside": p.inside,
            "change": p.change and {"ratio": p.change.ratio, "low": p.change.low, "high": p.change.high},
            "differences": p.differences,
            "notes": {"before": p.before["notes"], "now": p.now["notes"]},
        }
        for p in pairings
    ]
