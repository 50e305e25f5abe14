"""This module says what came of a calibration: in a terminal, and as a section of a report."""

from rich.console import Console
from rich.table import Table

from evaluation.answers.calibration import Calibrated, Calibration, Verdict
from evaluation.judge.calibration import EXACT, NEAR
from methods import BASELINE

HEADS = ["method", "by theory", "measured", "deviation", "MAT", "overhead per round", "passes", "late"]
VERDICTS: dict[Verdict, str] = {
    "exact": f"within {EXACT:.0%}",
    "near": f"within {NEAR:.0%}, on a busy machine",
    "busy": "the machine was too busy to measure: run it again when nothing else runs",
    "wrong": "wrong: the harness measures something else than what happens",
}


def headline(found: Calibration) -> str:
    """Say in a sentence what came of it."""
    times = f"of {found.pass_seconds * 1e3:g} ms, of the draft {found.draft_seconds * 1e3:g}"
    times += f", messages of {found.link_seconds * 1e3:g}"
    return f"calibrated with passes {times}: {VERDICTS[found.verdict]} (at most {found.deviation:.2%} from theory)"


def told(found: Calibration) -> list[str]:
    """Say what a reader should know beside the table."""
    lost = max(row.lost for row in found.rows)
    machine = f"waits were late for {lost:.2%} of a method's time at most, {found.switches:.0f} times a second a rank"
    machine += f" lost its core, the host took {found.stolen:.2%} of the cores' time"
    faults = [f"{row.method}: {fault}" for row in found.rows for fault in row.faults]
    return [machine, *found.notes, *faults]


def cells(row: Calibrated) -> list[str]:
    """Return a method's row of the table that has `HEADS`."""
    unit = " tokens/s" if row.method == BASELINE else "x"
    return [
        row.method,
        f"{row.theory:.3f}{unit}",
        f"{row.printed:.3f}{unit}",
        f"{row.deviation:+.2%}",
        f"{row.mat:.3f}" if row.mat == row.mat_theory else f"{row.mat:.3f}, not {row.mat_theory:.3f}",
        f"{row.overhead * 1e6:.0f} µs",
        f"{row.passes:.1f}",
        f"{row.lost:.2%}",
    ]


def print_calibration(found: Calibration, console: Console) -> None:
    table = Table(*HEADS, box=None)
    for row in found.rows:
        table.add_row(*cells(row))
    console.print(table)
    console.print(headline(found), *told(found), sep="\n", soft_wrap=True)
