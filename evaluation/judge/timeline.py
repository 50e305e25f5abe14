"""Finds the answers that a trace shows among the runs of a folder."""

import math

from evaluation.answers.record import Choice
from evaluation.answers.trace import Trace, TracedSpan, Turn
from evaluation.judge.groups import Result


def spans_of(result: Result, trace: Trace) -> dict[Turn, list[TracedSpan]]:
    """The turns of the run that the trace shows: both are of one launch, or the times agree to a part in a million."""
    found = {}
    same_launch = trace.launch is not None and trace.launch == result.header.launch
    for (question, turn), spans in trace.answers.get(result.run.label, {}).items():
        answer = result.run.answers.get(question)
        if answer and (same_launch or all(_agrees(spans, work, answer.choices, turn) for work in ("draft", "verify"))):
            found[question, turn] = spans
    return found


def _agrees(spans: list[TracedSpan], work: str, choices: list[Choice], turn: int) -> bool:
    times = [getattr(choice, f"{work}_time") for choice in choices]
    if None in times or any(turn >= len(time) for time in times):
        return False
    return math.isclose(
        sum(span.seconds for span in spans if span.work == work), sum(t[turn] for t in times), rel_tol=1e-6
    )
