"""What the main job prints, in this process on a tiny model: JSON or tables, progress, where answers lie."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation import run
from evaluation.launch import config
from evaluation.launch.progress import EVERY, Bar, Lines, progress
from evaluation.launch.worker import Session
from methods.errors import command_line

TURNS = ["hello there hello there", "abc abc abc abc"]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> Call:
    """Runs pld on two questions, with these further options. Returns the exit status, stdout and stderr."""
    lines = [{"question_id": i, "category": "qa", "turns": [turn]} for i, turn in enumerate(TURNS)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = ["--questions", str(tmp_path / "questions.jsonl"), "--max-new-tokens", "8", "--dtype", "fp32"]

    def start(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", "pld", "--target", str(tiny), *task, "--threads", "1", *more])
        with pytest.raises(SystemExit) as end:
            command_line(run.main)
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return start


def test_stdout_is_one_document_and_the_rest_is_told_beside_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "ROOT", tmp_path)
    status, out, err = call("--json")
    (row,) = json.loads(out)
    assert (status, row["method"], row["identical"]) == (0, "pld", 2)
    assert "pld: 2/2 identical" in err and "pld against autoregressive" in err
    assert "2/2 questions in 0:00:0" in err, "a bar is for terminals"
    (folder,) = (tmp_path / "results/local").glob("pld-*")
    assert (tmp_path / "results/local/latest").resolve() == folder
    assert f"answers in {folder}/questions/tiny" in err and f"evaluation/report.py {folder}\n" in err


def test_without_json_stdout_is_for_readers(call: Call, tmp_path: Path) -> None:
    odd = tmp_path / "[/odd]"  # brackets are no markup
    status, out, err = call("--output", str(odd))
    assert (status, f"answers in {odd}" in err) == (0, True)
    assert "pld: 2/2 identical" in out and "pld against autoregressive" in out
    assert not out.startswith("{") and "latest" not in [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("broken", "status", "document"),
    [
        ({("autoregressive", 0), ("autoregressive", 1)}, 1, "autoregressive failed on every question"),
        ({("autoregressive", 0), ("pld", 1)}, 2, "no question was finished in both"),
    ],
)
def test_a_run_that_cannot_be_judged_says_so_in_its_document(
    broken: set[tuple[str, int]], status: int, document: str, call: Call, tmp_path: Path, monkeypatch: Any
) -> None:
    fail_on(broken, monkeypatch)
    code, out, _ = call("--json", "--output", str(tmp_path / "out"))
    assert code == status
    assert document in json.loads(out)["error"]


def test_a_method_that_failed_everywhere_is_in_the_document(call: Call, tmp_path: Path, monkeypatch: Any) -> None:
    fail_on({("pld", 0), ("pld", 1)}, monkeypatch)
    code, out, _ = call("--json", "--output", str(tmp_path / "out"))
    assert code == 1
    assert json.loads(out)[-1] == {"method": "pld", "error": "failed on every question"}


def fail_on(broken: set[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods raise on these questions."""
    whole = Session.choice

    def choice(self: Session, name: str, question: Any, repeat: int) -> Any:
        if (name, question.question_id) in broken:
            raise RuntimeError("out of paper")
        return whole(self, name, question, repeat)

    monkeypatch.setattr(Session, "choice", choice)


def test_a_pipe_gets_a_line_every_half_minute() -> None:
    now, out = [0.0], io.StringIO()
    with Lines(Console(file=out), 80, clock=lambda: now[0]) as lines:
        for _ in range(12):
            now[0] += EVERY / 6
            lines.advance("pld 1.52x")
        now[0] += EVERY
        lines.tick()
        lines.tick()
    printed = out.getvalue().splitlines()
    assert printed == [
        "0/80 questions, warming up",
        "6/80 questions in 0:00:30, 12.0 a minute, 0:06:10 to go: pld 1.52x",
        "12/80 questions in 0:01:00, 12.0 a minute, 0:05:40 to go: pld 1.52x",
        "12/80 questions in 0:01:30, 8.0 a minute, 0:08:30 to go: pld 1.52x",
        "12/80 questions in 0:01:30, 8.0 a minute, 0:08:30 to go: pld 1.52x",  # and one at the end
    ]


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    shown = progress(Console(file=out, force_terminal=True), 2)
    assert isinstance(shown, Bar)
    with shown:
        shown.tick()
        shown.advance("pld 1.52x")
    assert "1/2" in out.getvalue() and "pld 1.52x" in out.getvalue()
    assert isinstance(progress(Console(file=out), 2), Lines)
