"""Report of a results folder: `python evaluation/report.py FOLDER [--fail-on "pearl<1.5"]... [--compare OTHER]
[--trace FILE]`.

Writes REPORT.md, which shows the figures that it puts beside itself, and report.html, one file that opens from disk:
speedups with their intervals, equality, conditions, failures, definitions, and what is needed to run it again. The exit
status is 1 if a condition of --fail-on holds.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.show.write import FIGURES, WRITTEN_BY, check_output, write_report
from methods.errors import CommandParser, command_line


def main() -> int:
    parser = CommandParser(description="Report of the runs below a results folder. Exit status 1 if it fails.")
    parser.add_argument("folder", metavar="FOLDER", type=any_path, help="results folder, as --output of a run")
    parser.add_argument("--output", metavar="DIR", type=any_path, help="where to (default: the folder itself)")
    parser.add_argument(
        "--fail-on",
        metavar="CONDITION",
        action="append",
        default=[],
        help="exit status 1 where METHOD<SPEEDUP, identical<1 or, of --compare, change<0.95",
    )
    parser.add_argument(
        "--compare", metavar="OTHER", type=any_path, help="an earlier folder, to put its speedups beside"
    )
    parser.add_argument("--trace", metavar="FILE", type=any_path, help="trace of one of the runs, for a timeline")
    options = parser.parse_args()

    from evaluation.answers.trace import read_trace
    from evaluation.judge.change import pair_runs
    from evaluation.judge.gates import judge, parse_gate
    from evaluation.judge.groups import read_groups

    gates = [parse_gate(text) for text in options.fail_on]
    output = options.output or options.folder
    check_output(output)
    groups = read_groups([options.folder])
    earlier = read_groups([options.compare]) if options.compare else []
    trace = read_trace(options.trace) if options.trace else None
    pairings = pair_runs(groups, earlier) if options.compare else []
    outcomes = [judge(gate, groups, pairings) for gate in gates]

    from evaluation.show.figures.draw import draw
    from evaluation.show.page import Report

    drawings, left_out = draw(groups, trace)
    for drawing in drawings:
        drawing.save(output / FIGURES)
    report = Report(groups, drawings, outcomes, pairings, options.folder, options.compare, WRITTEN_BY)
    console = Console(highlight=False)
    for path in write_report(report, output):
        console.print(Text(str(path)), soft_wrap=True)
    for line in (line for line in left_out if line.startswith("timeline")):  # which was asked for
        console.print(Text(f"left out: {line}", style="yellow"), soft_wrap=True)
    for outcome in (outcome for outcome in outcomes if outcome.holds):
        value = "nothing was measured" if outcome.value is None else f"it is {outcome.value:.3g}"
        console.print(Text(f"failed: {outcome.gate.text}: {value}", style="red"), soft_wrap=True)
    return int(any(outcome.holds for outcome in outcomes))


if __name__ == "__main__":
    command_line(main)
