"""Figures of results: `python evaluation/plot.py FOLDER... [--output DIR] [--trace FILE]`.

Draws what the runs below the folders allow, each figure as PNG, SVG and the numbers in it as CSV, and says in a line
what it leaves out and why. `report.py` takes its figures from here.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from evaluation.answers.header import any_path
from methods.errors import command_line

if TYPE_CHECKING:
    from evaluation.judge.groups import Group
    from evaluation.judge.timeline import Trace
    from evaluation.show.figures.style import Drawing

FOLDER = "figures"


def draw(groups: "Sequence[Group]", trace: "Trace | None" = None) -> "tuple[list[Drawing], list[str]]":
    """Every figure that the runs allow, and a line on each that they do not, or on what it lacks, saying why."""
    import matplotlib as mpl

    from evaluation.judge.groups import LeftOut
    from evaluation.show.figures.style import STYLE

    drawn: list[Drawing] = []
    missing: dict[str, list[str]] = {}  # figure and reason -> the groups without it
    with mpl.rc_context(STYLE):
        for name, group, figure in _figures(groups, trace):
            try:
                drawn.append(figure())
                reasons = [f"{name}, in part: {reason}" for reason in dict.fromkeys(drawn[-1].missing)]
            except LeftOut as reason:
                reasons = [f"{name}: {reason}"]
            for line in reasons:
                missing.setdefault(line, []).append(group)
    everywhere = [group.name for group in groups], [""]
    return drawn, [line if found in everywhere else f"{line} ({'; '.join(found)})" for line, found in missing.items()]


def _figures(groups: "Sequence[Group]", trace: "Trace | None") -> "Iterable[tuple[str, str, Callable[[], Drawing]]]":
    """The name of each figure, the group that it is of ("": of all), and what draws it."""
    from functools import partial

    from evaluation.show.figures import rounds as figures_rounds
    from evaluation.show.figures import speed as figures
    from evaluation.show.figures import theory as figures_theory
    from evaluation.show.figures.style import looks

    look = looks(result.method for group in groups for result in group.results)
    yield "speedup", "", partial(figures.speedup_bars, groups, look)
    for group in groups:
        yield "speedup by category", group.name, partial(figures.category_bars, group, groups, look)
        yield "radar", group.name, partial(figures.radar, group, groups, look)
    yield "ablation", "", partial(figures.ablation_bars, groups, look)
    for group in groups:
        yield "window", group.name, partial(figures_theory.window_sweep, group, groups, look)
        yield "acceptance", group.name, partial(figures_rounds.acceptance, group, groups, look)
        yield "waiting", group.name, partial(figures_rounds.waiting, group, groups, look)
    if trace is not None:
        yield "timeline", "", partial(figures_rounds.timeline, trace, groups, look)
    yield "prediction", "", partial(figures_theory.prediction, groups, look)
    yield "plane", "", partial(figures_theory.plane, groups, look)


def main() -> int:
    parser = argparse.ArgumentParser(description="Figures of the runs below some results folders.")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=any_path, help="results folder, as --output of a run"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=any_path, help=f"where to (default: {FOLDER} in the first folder)"
    )
    parser.add_argument("--trace", metavar="FILE", type=any_path, help="trace of one of the runs, for a timeline")
    options = parser.parse_args()

    from evaluation.judge.groups import read_groups
    from evaluation.judge.timeline import read_trace

    groups = read_groups(options.folders)
    drawn, left_out = draw(groups, read_trace(options.trace) if options.trace else None)
    console = Console(highlight=False)
    for drawing in drawn:
        path = drawing.save(options.output or options.folders[0] / FOLDER)[0]
        console.print(Text(f"{path} .svg .csv"), soft_wrap=True)
    for line in left_out:
        console.print(Text(f"left out: {line}", style="dim"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    command_line(main)
