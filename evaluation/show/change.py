"""This module shows how two results folders compare, in a terminal or as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evaluation.judge.change import Pairing, apart, headline, interval_words, pair_runs
from evaluation.judge.groups import read_groups
from evaluation.judge.stats import Ratio
from evaluation.show.tables import print_tables, terminal

CHANGE_EXPLAINED = """\
change: the speedup of now over that of before, on the same questions; its interval: over these
inside: the speedup of now lies in the interval of before
What differs between launches as wholes, such as the load of the machine, is in the intervals of runs of several."""


def _table(pairings: Sequence[Pairing]) -> Table:
    """A row for each pairing, for a terminal."""
    result = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("run", no_wrap=True)
    for name in ("before", "95% interval", "now", "inside", "change", "95% interval"):
        result.add_column(name, justify="right", no_wrap=True)
    words = {True: Text("yes"), False: Text("no", style="yellow"), None: Text("-", style="dim")}
    for p in pairings:
        before, now = (f"{summary.speedup:.2f}x" for summary in (p.before, p.now))
        interval = interval_words(p.before.low, p.before.high)
        result.add_row(p.name, before, interval, now, words[p.inside], *_change_cells(p.change))
    return result


def _change_cells(change: Ratio | None) -> tuple[Text, Text]:
    if change is None:
        return Text("-", style="dim"), Text("no common question", style="dim")
    style = "" if not change.significant else "bold green" if change.ratio > 1 else "bold red"
    return Text(f"{change.ratio - 1:+.1%}", style=style), Text(interval_words(change.low, change.high, percent=True))


def compare_folders(now: Path, before: Path, as_json: bool) -> int:
    """Print how the speedups of a results folder have changed since an earlier one. Returns the exit status."""
    pairings = pair_runs(read_groups([now]), read_groups([before]))
    if as_json:
        print(json.dumps(_rows(pairings), indent=2))
        return 0
    console = terminal()
    print_tables(console, _table(pairings))
    console.print("\n".join([headline(pairings), *apart(pairings)]), soft_wrap=True)
    console.print(CHANGE_EXPLAINED, style="dim", soft_wrap=True)
    for told in dict.fromkeys(told for pairing in pairings for told in pairing.differences):
        console.print(Text(f"note: other conditions: {told}", style="yellow"), soft_wrap=True)
    summaries = [summary for pairing in pairings for summary in (pairing.now, pairing.before)]
    for told in dict.fromkeys(note for summary in summaries for note in summary.notes):
        console.print(Text(f"note: {told}", style="yellow"), soft_wrap=True)
    return 0


def _rows(pairings: Sequence[Pairing]) -> list[dict[str, Any]]:
    """The same for programs."""
    figures = ("speedup", "low", "high", "launches")
    return [
        {
            "run": p.name,
            "before": {key: getattr(p.before, key) for key in figures},
            "now": {key: getattr(p.now, key) for key in figures},
            "inside": p.inside,
            "change": p.change and {"ratio": p.change.ratio, "low": p.change.low, "high": p.change.high},
            "apart": p.apart,
            "differences": p.differences,
            "found": p.found,
            "notes": {"before": p.before.notes, "now": p.now.notes},
        }
        for p in pairings
    ]
