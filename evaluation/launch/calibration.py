"""A calibration is a run as any other, of a pair whose models are scripted: their passes take times that are known, and
so does what they say. This module writes the pair and the questions, and measures.

Beside the answers each rank leaves what tells how busy the machine was: by how much its waits were late.
"""

import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluation.answers.calibration import Calibration, Disturbance, read_disturbance
from evaluation.answers.files import answers_of, write_whole
from evaluation.answers.run import Run
from evaluation.answers.trace import read_trace
from evaluation.judge.calibration import (
    CASES,
    DRAFT_SECONDS,
    LINK_SECONDS,
    PASS_SECONDS,
    ROW_SECONDS,
    Case,
    Measured,
    judge,
    settled,
)
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.measure import answer, open_session, spoken, start
from methods import BASELINE
from methods.engine.script import EOS, UNKNOWN, WORDS, Script
from methods.errors import RunError

VOCABULARY = 49152  # as many tokens as the embedded target has: to look through a row takes its time
CONTEXT = 4096
PAIR = "synthetic"
TRACE = "trace.json"
ONE_CORE = "one core only: PEARL, whose two ranks are busy all the time, cannot be calibrated"
# How often drafts are kept differs, and so do lengths: a mean of ratios is not the ratio of sums.
SCRIPTS = (
    Script(kept=95, other=5, tokens=90, prompt=10, seed=1),
    Script(kept=85, other=10, tokens=70, prompt=10, seed=2),
    Script(kept=70, other=20, tokens=60, prompt=10, seed=3),
    Script(kept=50, other=30, tokens=50, prompt=10, seed=4),
    Script(kept=30, other=50, tokens=40, prompt=10, seed=5),
    Script(kept=10, other=60, tokens=30, prompt=10, seed=6),
)


def cases_here() -> list[Case]:
    """Return what can be calibrated here: two ranks that are busy all the time need two cores."""
    ranks = min(len(os.sched_getaffinity(0)), 2)
    return [case for case in CASES if case.ranks <= ranks]


def calibrate(
    folder: Path, cases: Sequence[Case], scripts: Sequence[Script], told: Console, attempts: int = 3
) -> Calibration:
    """Measure the cases below the folder, again and for longer where the machine was too busy, or the outcome is to be
    believed only if it comes twice. Raises RunError where a launch fails."""
    found: list[Calibration] = []
    while not found or not settled([one.verdict for one in found], attempts):
        attempt = len(found) + 1
        again = [replace(script, seed=script.seed + 100 * n) for n in range(attempt) for script in scripts]
        told.print(f"attempt {attempt}: {len(cases)} methods, {len(again)} answers of each")
        if status := measure(folder, cases, again):
            raise RunError(f"the run of the calibration ended with exit status {status}; its answers are in {folder}")
        found.append(read(folder, cases, again))
    return found[-1]


def read(folder: Path, cases: Sequence[Case], scripts: Sequence[Script]) -> Calibration:
    """Judge what `measure` has left in a folder."""
    disturbed = [read_disturbance(path) for path in sorted(folder.glob(disturbance_name("*")))]
    stolen = max(noted.stolen / noted.seconds for noted in disturbed) / (os.cpu_count() or 1)
    measured = _measured(folder, cases, scripts, disturbed, stolen)
    header = measured[0].base.header
    assert header is not None, "a run of ours has a header"
    alone = [] if any(case.ranks > 1 for case in cases) else [ONE_CORE]
    return Calibration(
        created=header.created or "",
        cpu=header.cpu or "",
        git_commit=header.git_commit,
        pass_seconds=PASS_SECONDS,
        draft_seconds=DRAFT_SECONDS,
        link_seconds=LINK_SECONDS,
        stolen=stolen,
        switches=max(noted.switches / noted.seconds for noted in disturbed),
        rows=[judge(one, measured[0].lost) for one in measured],
        notes=alone,
    )


def _measured(
    folder: Path, cases: Sequence[Case], scripts: Sequence[Script], disturbed: Sequence[Disturbance], stolen: float
) -> list[Measured]:
    """The runs of the cases, of which the first is the baseline."""
    trace, answers = read_trace(folder / TRACE), folder / "scripts" / PAIR
    base, found = Run.read(answers_of(answers, BASELINE)), []
    for case in cases:
        spans = [trace.answers[case.name][number, 0] for number in range(1, len(scripts) + 1)]
        found.append(Measured(case, scripts, Run.read(answers_of(answers, case.name)), base, spans, disturbed, stolen))
    return found


def measure(folder: Path, cases: Sequence[Case], scripts: Sequence[Script]) -> int:
    """Run the cases on the scripts as `run.py` runs methods on questions, into a folder that is made anew. Returns the
    exit status of the launch."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return start(configuration(folder, cases, scripts), _job)


def configuration(folder: Path, cases: Sequence[Case], scripts: Sequence[Script]) -> RunConfig:
    """Write the pair and the questions into the folder, and return what the command line of their run says."""
    target, draft, questions = folder / PAIR, folder / "draft", folder / "scripts.jsonl"
    write_model(target, {"pass_seconds": PASS_SECONDS, "row_seconds": ROW_SECONDS, "drafts": False})
    write_model(draft, {"pass_seconds": DRAFT_SECONDS, "row_seconds": 0.0, "drafts": True})
    lines = [
        json.dumps({"question_id": number, "category": f"kept {script.kept}", "turns": [script.text]})
        for number, script in enumerate(scripts, 1)
    ]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = ",".join(case.name for case in cases if case.name != BASELINE) or BASELINE
    options: dict[str, object] = {
        "target": target,
        "draft": draft,
        "questions": questions,
        "output": folder,
        "trace": folder / TRACE,
        "template": "raw",
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "max-new-tokens": max(script.tokens for script in scripts) + 1,
    }
    typed = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return parse([names, *typed, "--alone"])


def write_model(folder: Path, pace: dict[str, float | bool]) -> None:
    """Write a scripted model of that pace with its tokenizer. One that drafts can serve as a draft with exits, too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    table: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 2,
        "intermediate_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": EOS,
        "scripted": pace,
    } | ({"draft": {"format": 1, "exits": [1]}} if pace["drafts"] else {})
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")
    raw = Tokenizer(models.WordLevel({word: token for token, word in enumerate(WORDS)}, WORDS[UNKNOWN]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=WORDS[EOS], unk_token=WORDS[UNKNOWN])
    tokenizer.save_pretrained(folder)


def _job(config: RunConfig) -> int:
    """What each rank does: its part of the run, and a note of how it was disturbed."""
    from methods.engine.paced_link import PacedLink
    from methods.engine.socket_link import SocketLink

    session = open_session(config)
    if isinstance(session.link, SocketLink):
        session.link = PacedLink(session.link, LINK_SECONDS)
    with disturbance_noted(config.output / disturbance_name(session.ranks.rank)):
        failed = answer(session, spoken(session.ranks.rank))
    return int(bool(failed))


def disturbance_name(rank: int | str) -> str:
    return f"disturbance-{rank}.json"


@contextmanager
def disturbance_noted(path: Path) -> Iterator[None]:
    """Write what has kept this process from its core meanwhile."""
    from methods.engine.scripted import WAITS

    switches, stolen, begin = _switches(), _stolen(), time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    noted = Disturbance(seconds, _stolen() - stolen, _switches() - switches, WAITS.ends, WAITS.late)
    write_whole(path, json.dumps(asdict(noted)).encode())


def _switches() -> int:
    """How often this process has lost its core against its will."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _stolen() -> float:
    """Seconds for which the host of a virtual machine has taken its cores away, of all cores together; 0 where Linux
    does not tell."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(words[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
