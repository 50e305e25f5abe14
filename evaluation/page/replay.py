"""`replay.html`: the page without a server, with the runs of a folder in it, so that it can be sent to anyone."""

import json
from collections.abc import Iterator
from html import escape
from itertools import zip_longest
from pathlib import Path

from evaluation.answers.files import write_whole
from evaluation.answers.kinds import QuestionId
from evaluation.page.files import LESSONS, STATIC
from evaluation.page.lanes import Json
from evaluation.page.runs import Runs
from methods.errors import UserError

NAME = "replay.html"
PARTS = ("results", "learn")
LARGEST = 6_000_000  # bytes of answers: a browser opens that at once


def write_replay(runs: Runs) -> Path:
    """Write the file into the runs' folder. Raises UserError where there are none, or it cannot be written."""
    rows = [row for row in runs.rows() if "error" not in row]
    if not rows:
        raise UserError(f"{runs.folder} holds no runs; name the --output folder of a run")
    leaves = list(dict.fromkeys(row["folder"] for row in rows))
    name = runs.folder.resolve().name
    data = {
        "page": {"where": name, "parts": PARTS},
        "runs": {"folder": name, "rows": rows},
        "figures": {leaf: runs.leaf(leaf).figures for leaf in leaves},
        "answers": _answers(runs, leaves),
        "lessons": json.loads(LESSONS.read_text(encoding="utf-8")),
    }
    path = runs.folder / NAME
    write_whole(path, _document(data, name).encode())
    return path


def _answers(runs: Runs, leaves: list[str]) -> dict[str, dict[str, Json]]:
    """Answers by folder and question, of all folders in turn, as many as there is room for."""
    found: dict[str, dict[str, Json]] = {leaf: {} for leaf in leaves}
    size = 0
    for leaf, question in _in_turn(runs, leaves):
        answers = runs.answers(leaf, question)
        size += len(json.dumps(answers, separators=(",", ":")))
        if size > LARGEST:
            break
        found[leaf][json.dumps(question)] = answers
    return found


def _in_turn(runs: Runs, leaves: list[str]) -> Iterator[tuple[str, QuestionId]]:
    """The first question of each folder, then the second of each, and so on."""
    columns = [[(leaf, each["id"]) for each in runs.leaf(leaf).figures["questions"]] for leaf in leaves]
    for row in zip_longest(*columns):
        yield from (pair for pair in row if pair is not None)


def _document(data: Json, name: str) -> str:
    """The page's own file, with its style and scripts in it, and the data before the last of them."""
    page = (STATIC / "page.html").read_text(encoding="utf-8")
    page = page.replace("<title>PEARL-Bench</title>", f"<title>{escape(name)} - PEARL-Bench</title>")
    for path in sorted(STATIC.iterdir()):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".css":
            page = page.replace(f'<link rel="stylesheet" href="/static/{path.name}">', f"<style>\n{text}</style>")
        elif path.suffix == ".js":
            given = f"PB.data = {_script(data)};\n" if path.name == "main.js" else ""
            page = page.replace(f'<script src="/static/{path.name}"></script>', f"<script>\n{given}{text}</script>")
    return page


def _script(data: Json) -> str:
    """JSON that cannot end the script that it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
