"""Report of a results folder: `python evaluation/report.py FOLDER [--fail-on "pearl<1.5"]... [--compare OTHER]
[--trace FILE]`.

Writes REPORT.md, which shows the figures that it puts beside itself, and report.html, one file that opens from disk:
speedups with their intervals, equality, conditions, failures, definitions, and what is needed to run it again. The exit
status is 1 if a condition of --fail-on holds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.show.write import FIGURES, WRITTEN_BY, check_output, tell, write_report
from methods.errors import CommandParser, command_line


def _parser() -> argparse.ArgumentParser:
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
    return parser


def main() -> int:
    options = _parser().parse_args()

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
    failed = [outcome for outcome in outcomes if outcome.holds]
    asked_for = [line for line in left_out if line.startswith("timeline")]
    tell(write_report(report, output), asked_for, failed)
    return int(bool(failed))


if __name__ == "__main__":
    command_line(main)
