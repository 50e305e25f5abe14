"""Figures of results: `python evaluation/plot.py FOLDER... [--output DIR] [--trace FILE]`.

Draws what the runs below the folders allow, each figure as PNG, SVG and the numbers in it as CSV, and says in a line
what it leaves out and why. `report.py` draws the same figures.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.show.figures.draw import draw
from methods.errors import CommandParser, command_line

FOLDER = "figures"


def main() -> int:
    parser = CommandParser(description="Figures of the runs below some results folders.")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=any_path, help="results folder, as --output of a run"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=any_path, help=f"where to (default: {FOLDER} in the first folder)"
    )
    parser.add_argument("--trace", metavar="FILE", type=any_path, help="trace of one of the runs, for a timeline")
    options = parser.parse_args()

    from evaluation.answers.trace import read_trace
    from evaluation.judge.groups import read_groups

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
