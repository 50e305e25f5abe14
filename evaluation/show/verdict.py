"""A run prints its verdict at its end: equality, then speed."""

import json
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evaluation.answers.files import answers_of
from evaluation.answers.kinds import QuestionId
from evaluation.answers.run import Run
from evaluation.launch.config import RunConfig
from evaluation.show.tables import COLUMNS_EXPLAINED, details, print_tables, table, terminal
from methods import BASELINE, get_method

if TYPE_CHECKING:
    from evaluation.judge.equality import Comparison
    from evaluation.judge.summary import Summary


def judge(config: RunConfig, ids: Collection[QuestionId], failed: Counter[str], console: Console) -> int:
    """Print equality, then speed, of the questions of this run; with --json one document for programs instead, and
    these on stderr."""
    output = terminal(stderr=config.json)
    for name, count in failed.items():
        console.print(f"{name}: {count} questions failed; the same command tries them again", style="red")
    # A method that failed everywhere has nothing to be judged by, and without the baseline nobody has.
    judged = [name for name in config.methods if failed[name] < len(ids)]
    if BASELINE not in judged:
        print_json(config, {"error": f"{BASELINE} failed on every question, so there is nothing to compare with"})
        return 1
    runs = {name: Run.read_launches(answers_of(config.folder_of(1), name)) for name in judged}
    equal = {} if config.temperature > 0 else print_equality(runs, ids, output)
    if config.temperature > 0:
        output.print("sampled output: distributions, not tokens, are equal; evaluation/lossless.py tests them")
    rows = print_speed(runs, ids, output)
    names = zip(judged[1:] or judged, rows, strict=True)
    document = [json_row(config, name, row, equal.get(name)) for name, row in names]
    lost = [name for name in config.methods if name not in judged]
    print_json(config, document + [{"method": name, "error": "failed on every question"} for name in lost])
    return int(bool(failed) or not all(name in equal and equal[name].equal for name in _exact(config)))


def _exact(config: RunConfig) -> list[str]:
    """Methods whose output must equal the baseline's: where sampling, none."""
    names = [] if config.temperature > 0 else config.methods
    return [name for name in names if name != BASELINE and get_method(name).lossless]


def print_json(config: RunConfig, document: object) -> None:
    """Print the document, with --json: it is the one thing on stdout."""
    if config.json:
        print(json.dumps(document), flush=True)


def print_equality(runs: dict[str, Run], ids: Collection[QuestionId], output: Console) -> "dict[str, Comparison]":
    """Return how each method's output compares with the baseline's."""
    from evaluation.judge.equality import compare
    from evaluation.show.equality import report

    found: dict[str, Comparison] = {}
    for name in [name for name in runs if name != BASELINE]:
        comparison = found[name] = compare(runs[name], runs[BASELINE], ids)
        if not get_method(name).lossless:
            output.print(f"{name}: {comparison.line}; a reference row, which need not be")
        elif comparison.equal:
            output.print(f"{name}: {comparison.line}")
        else:
            output.print(report(comparison, False))
    return found


def print_speed(runs: dict[str, Run], ids: Collection[QuestionId], output: Console) -> "list[Summary]":
    from evaluation.judge.summary import summarize

    others = [run for name, run in runs.items() if name != BASELINE]
    rows = [summarize(run, runs[BASELINE], ids) for run in others or [runs[BASELINE]]]
    print_tables(output, table(rows), details(rows))
    output.print(COLUMNS_EXPLAINED)
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        output.print(f"note: {note}", style="yellow", soft_wrap=True)
    return rows


def json_row(config: RunConfig, name: str, row: "Summary", equality: "Comparison | None") -> dict[str, Any]:
    """Return a method's entry of the --json list. `identical` counts questions; it is null where sampling."""
    figures = (
        "questions",
        "launches",
        "speedup",
        "low",
        "high",
        "moved_by_questions",
        "moved_by_launch",
        "mat",
        "tokens_per_second",
        "baseline_tokens_per_second",
    )
    return {
        "method": name,
        "pair": config.pair.name,
        "benchmark": config.benchmark,
        "identical": None if equality is None else equality.identical,
        **{key: getattr(row, key) for key in (*figures, "floor_tokens_per_second", "too_long", "notes")},
    }
