"""Where the time of a round goes, from a trace: python scripts/trace_rounds.py TRACE

A round lasts from one target pass to the next. What either rank's work does not cover is lost: link, waiting on both
sides, Python. Medians per round in milliseconds; the lost share is over all rounds.
"""

import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from evaluation.answers.trace import TracedSpan, read_trace
from methods.errors import CommandParser, command_line


class RoundSeconds(NamedTuple):
    """Seconds."""

    whole: float
    draft: float
    verify: float
    wait: float
    lost: float


def rounds(spans: list[TracedSpan]) -> list[RoundSeconds]:
    """Of one answer, the last round left out: nobody says when it ended."""
    starts = [s.begin for s in sorted(spans, key=lambda s: s.begin) if (s.rank, s.work) == ("target", "verify")]
    # A pass has two such spans, scoring and deciding, where the draft comes in between: the first begins the round.
    starts = starts[::2] if any(s.rank == "draft" for s in spans) else starts
    return [_round(spans, begin, end) for begin, end in pairwise(starts)]


def _round(spans: list[TracedSpan], begin: float, end: float) -> RoundSeconds:
    inside = [(s, max(s.begin, begin), min(s.end, end)) for s in spans if s.begin < end and s.end > begin]
    draft, verify, wait = (sum(e - b for s, b, e in inside if s.work == work) for work in ("draft", "verify", "wait"))
    covered = _covered(sorted((b, e) for s, b, e in inside if s.work != "wait"))
    return RoundSeconds(end - begin, draft, verify, wait, end - begin - covered)


def _covered(intervals: list[tuple[float, float]]) -> float:
    """The length of the union of intervals, given in order."""
    total, reached = 0.0, float("-inf")
    for begin, end in intervals:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def main() -> int:
    parser = CommandParser(description="Where the time of a round goes.")
    parser.add_argument("trace", help="what a run with --trace wrote")
    answers = read_trace(parser.parse_args().trace).answers
    table = Table("method", "rounds", "round ms", "draft ms", "verify ms", "wait ms", "lost")
    for method, turns in answers.items():
        found = [one for spans in turns.values() for one in rounds(spans)]
        if found:
            middle = [f"{median(values) * 1e3:.2f}" for values in list(zip(*found, strict=True))[:4]]
            lost = sum(one.lost for one in found) / sum(one.whole for one in found)
            table.add_row(method, str(len(found)), *middle, f"{lost:.1%}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    command_line(main)
