"""Answers, headers and answer files for the tests of `evaluation/`, small enough to check by hand."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from evaluation.answers.header import RunHeader, what_it_is
from evaluation.answers.record import Answer, Choice
from evaluation.answers.run import Run
from evaluation.answers.writer import AnswerFile
from evaluation.judge import equality, summary
from evaluation.judge.equality import Comparison
from evaluation.judge.summary import Summary
from methods import METHODS

ROOT = Path(__file__).resolve().parents[1]


def choice(tokens: Sequence[Sequence[int]], seconds: Sequence[float], index: int = 0, per_pass: int = 1) -> Choice:
    """A repeat with these token ids and wall time (s) per turn, `per_pass` tokens to each pass, 0.1 s of prefill."""
    lengths = [[len(turn[i : i + per_pass]) for i in range(0, len(turn), per_pass)] for turn in tokens]
    return Choice(
        index=index,
        turns=[" ".join(map(str, turn)) for turn in tokens],
        decoding_steps=[len(turn) for turn in lengths],
        new_tokens=[len(turn) for turn in tokens],
        wall_time=list(seconds),
        accept_lengths=[length for turn in lengths for length in turn],
        token_ids=[list(turn) for turn in tokens],
        finish=["length"] * len(tokens),
        prefill_time=[0.1] * len(tokens),
        draft_time=[0.01 * len(turn) for turn in lengths],
        verify_time=[0.05 * len(turn) for turn in lengths],
        drafted=[[per_pass - 1] * len(turn) for turn in lengths],
        accepted=[[length - 1 for length in turn] for turn in lengths],
        nodes=[[per_pass] * len(turn) for turn in lengths],
    )


def answer(question_id: int | str = 81, category: str = "writing", **keys: Any) -> Answer:
    """An answer of one turn: ten tokens in one second, unless `choices` or other fields are given."""
    keys.setdefault("choices", [choice([range(10)], [1.0])])
    return Answer(question_id, category, keys.pop("model_id", "tiny-pld"), **keys)


def keys(method: str = "pld", **changes: Any) -> dict[str, Any]:
    """A run header as the runner writes it, shortened to what judging reads."""
    row = METHODS.get(method)
    options = changes.get("options")
    options = options if isinstance(options, dict) else {}
    return {
        "schema_version": 2,
        "method": method,
        **(what_it_is(row, options) if row else {"loop": None, "drafter": None, "shape": None}),
        "taps": [],
        "methods": ["autoregressive", "pld"],
        "pair": "tiny",
        "target": {"source": "tiny/model", "revision": "r1", "weight_bytes": 100},
        "dtype": "float32",
        "devices": ["cpu:0,1"],
        "threads": 2,
        "replicas": 1,
        "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0},
        "max_new_tokens": 64,
        "eos_token_ids": [2],
        "template": "chat",
        "benchmark": "mini_bench",
        "benchmark_sha256": "abc",
        "row_invariant": True,
        "floor_seconds_per_token": 0.02,
        "cpu": "some CPU",
        "gpu": None,
        "created": "2025-01-01T00:00:00+00:00",
        "failures": [],
    } | changes


def header(method: str = "pld", **changes: Any) -> RunHeader:
    """The same as it is read."""
    return RunHeader.from_json(keys(method, **changes))


def write(path: Path, answers: Sequence[Answer], run: RunHeader | None = None) -> Path:
    """An answer file with its header, written by the project's own writer."""
    with AnswerFile.open(path, run or header(path.stem)) as file:
        for item in answers:
            file.append(item)
    return path


def write_spec_bench(path: Path, rows: Sequence[tuple[int, str, list[str], list[int], list[float]]]) -> Path:
    """A file as Spec-Bench's scripts write it, from rows of question, category, turns, new tokens, seconds."""
    lines = [
        {
            "question_id": question,
            "category": category,
            "answer_id": f"id{question}",
            "model_id": "vicuna-7b-v1.3-" + path.stem,
            "choices": [
                {
                    "index": 0,
                    "turns": turns,
                    "decoding_steps": [count - 1 for count in tokens],
                    "new_tokens": tokens,
                    "wall_time": seconds,
                    "accept_lengths": [2] * (sum(tokens) // 2),
                }
            ],
            "tstamp": 1.5,
        }
        for question, category, turns, tokens, seconds in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def in_terminal(script: str, *arguments: object, columns: int) -> list[str]:
    """The lines that `evaluation/<script>` writes to a terminal of that width, without their colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    unset = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    command = [sys.executable, str(ROOT / "evaluation" / script), *map(str, arguments)]
    env = unset | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        written = b"".join(iter(lambda: _read_terminal(ours), b""))
    os.close(ours)
    assert process.returncode == 0, written
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).splitlines()


def _read_terminal(descriptor: int) -> bytes:
    """Nothing where the last program on the other side has ended, which Linux tells by an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def summarize(method: Path, base: Path, question_ids: Collection[int | str] | None = None) -> Summary:
    """The figures of two files."""
    return summary.summarize(Run.read(method), Run.read(base), question_ids)


def summarize_by_category(method: Path, base: Path) -> list[Summary]:
    """The same by category."""
    return summary.summarize_by_category(Run.read(method), Run.read(base))


def compare(one: Path, other: Path, question_ids: Collection[int | str] | None = None) -> Comparison:
    """How the output of two files compares."""
    return equality.compare(Run.read(one), Run.read(other), question_ids)
