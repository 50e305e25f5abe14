"""Reads the trace files that `trace.py` writes, and finds the answers that they show among the runs of a folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.answers.header import read_file, uncompressed
from evaluation.answers.record import Choice
from evaluation.judge.groups import Result
from methods.errors import UserError

MICRO = 1e-6
RANKS = ("target", "draft")
Turn = tuple[Any, int]  # question, turn


@dataclass(frozen=True)
class TracedSpan:
    """What a rank did from `begin` to `end`, in seconds."""

    rank: str  # one of RANKS
    work: str  # "draft", "verify" or "wait"
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Trace:
    """A trace file: the spans of each method's answers, in the order in which they were entered."""

    path: Path
    answers: dict[str, dict[Turn, list[TracedSpan]]]


def read_trace(path: str | Path) -> Trace:
    """Raises UserError where it cannot be read, or is no trace of a run."""
    from evaluation.answers.schema import parse_trace

    path = Path(path)
    try:
        answers = _answers(parse_trace(read_file(uncompressed(path))))
    except ValueError as error:
        raise UserError(f"{path} is not a trace as a run with --trace writes it ({error}); name such a file") from None
    if not answers:
        raise UserError(f"{path} holds no spans; name the trace of a run that answered a question")
    return Trace(path, answers)


def _answers(events: list[dict[str, Any]]) -> dict[str, dict[Turn, list[TracedSpan]]]:
    """The spans by method and turn. Raises ValueError for one of a rank or method that has no name."""
    ranks = {e["pid"]: e["args"]["name"].rpartition(" ")[2] for e in events if e["name"] == "process_name"}
    methods = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    answers: dict[str, dict[Turn, list[TracedSpan]]] = {}
    for number, event in enumerate(events):
        if event["ph"] != "X":
            continue
        rank, method = ranks.get(event["pid"]), methods.get((event["pid"], event["tid"]))
        if rank not in RANKS or method is None:
            raise ValueError(f"traceEvents[{number}] is of a rank or a method that the file does not name")
        if rank == "draft" and event["name"] != "draft":
            raise ValueError(f"traceEvents[{number}] has the draft's rank {event['name']}, which is the target's work")
        begin, seconds = event["ts"] * MICRO, event["dur"] * MICRO
        turn = event["args"]["question"], event["args"]["turn"]
        spans = answers.setdefault(method, {}).setdefault(turn, [])
        spans.append(TracedSpan(rank, event["name"], begin, begin + seconds))
    return answers


def spans_of(result: Result, trace: Trace) -> dict[Turn, list[TracedSpan]]:
    """The turns of the run that the trace shows. It is the same run where the times agree, to a part in a million."""
    found = {}
    for (question, turn), spans in trace.answers.get(result.run.label, {}).items():
        answer = result.run.answers.get(question)
        if answer and all(_agrees(spans, work, answer.choices, turn) for work in ("draft", "verify")):
            found[question, turn] = spans
    return found


def _agrees(spans: list[TracedSpan], work: str, choices: list[Choice], turn: int) -> bool:
    times = [getattr(choice, f"{work}_time") for choice in choices]
    if None in times or any(turn >= len(time) for time in times):
        return False
    return math.isclose(
        sum(span.seconds for span in spans if span.work == work), sum(t[turn] for t in times), rel_tol=1e-6
    )
