"""A run prints its verdict at its end: equality, then speed."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evaluation.launch.config import RunConfig
from evaluation.launch.measure import answer_path
from evaluation.show.tables import LEGEND, details, print_tables, table, terminal
from methods import BASELINE

if TYPE_CHECKING:
    from evaluation.judge.equality import Comparison
    from evaluation.judge.summary import Summary
    from evaluation.launch.worker import Session


def judge(session: "Session", failed: Counter[str], console: Console) -> int:
    """Print equality, then speed, of the questions of this run; with --json one document for programs instead, and
    these on stderr."""
    config = session.config
    output = terminal(stderr=config.json)
    wanted = len(session.benchmark.questions)
    for name, count in failed.items():
        console.print(f"{name}: {count} questions failed; the same command tries them again", style="red")
    # A method that failed everywhere has nothing to be judged by, and without the baseline nobody has.
    judged = [name for name in config.methods if failed[name] < wanted]
    if BASELINE not in judged:
        print_json(config, {"error": f"{BASELINE} failed on every question, so there is nothing to compare with"})
        return 1
    equal = print_equality(session, judged, output)
    rows = print_speed(session, judged, output)
    names = zip(judged[1:] or judged, rows, strict=True)
    document = [json_row(config, name, row, equal.get(name)) for name, row in names]
    lost = [name for name in config.methods if name not in judged]
    print_json(config, document + [{"method": name, "error": "failed on every question"} for name in lost])
    return int(bool(failed) or not all(name in equal and equal[name].equal for name in session.lossless))


def print_json(config: RunConfig, document: object) -> None:
    """Print the document, with --json: it is the one thing on stdout."""
    if config.json:
        print(json.dumps(document), flush=True)


def print_equality(session: "Session", judged: list[str], output: Console) -> "dict[str, Comparison]":
    """Print how each method's output compares. Sampled output is not compared, since it need not be equal."""
    from evaluation.judge.equality import compare
    from evaluation.show.equality import report

    config = session.config
    found: dict[str, Comparison] = {}
    ids = {question.question_id for question in session.benchmark.questions}
    if config.temperature > 0:
        output.print("sampled output: distributions, not tokens, are equal; evaluation/lossless.py tests them")
        return found
    for name in judged[1:]:
        comparison = compare(answer_path(config, name), answer_path(config, BASELINE), ids)
        found[name] = comparison
        if name not in session.lossless:
            output.print(f"{name}: {comparison.line}; a reference row, which need not be")
        elif comparison.equal:
            output.print(f"{name}: {comparison.line}")
        else:
            output.print(report(comparison, False))
    return found


def print_speed(session: "Session", judged: list[str], output: Console) -> "list[Summary]":
    from evaluation.judge.summary import summarize

    config = session.config
    ids = {question.question_id for question in session.benchmark.questions}
    rows = [summarize(answer_path(config, name), answer_path(config, BASELINE), ids) for name in judged[1:] or judged]
    print_tables(output, table(rows), details(rows))
    output.print(LEGEND)
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        output.print(f"note: {note}", style="yellow", soft_wrap=True)
    return rows


def json_row(config: RunConfig, name: str, row: "Summary", equality: "Comparison | None") -> dict[str, Any]:
    """Return a method's entry of the --json list. `identical` counts questions; it is null where sampling."""
    figures = ("questions", "speedup", "low", "high", "mat", "tokens_per_second", "baseline_tokens_per_second")
    return {
        "method": name,
        "pair": config.pair.name,
        "benchmark": config.benchmark,
        "identical": None if equality is None else equality.identical,
        **{key: getattr(row, key) for key in (*figures, "floor_tokens_per_second", "too_long", "notes")},
    }
