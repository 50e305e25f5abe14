"""The main job on a tiny model: a whole run, one that is killed, and replicas as a user starts them, by real processes;
what runs differ in, refusals and failures in this process."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evaluation.answers.header import read_header
from evaluation.answers.record import read_answers
from evaluation.launch.config import parse
from evaluation.launch.measure import open_session
from evaluation.run import main
from methods.drafters.draft_model import draft_model
from methods.drafters.lookup import LookupDrafter
from methods.paths import ROOT
from tests.commands import Done, in_process
from tests.tiny import save_model

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = [sys.executable, str(ROOT / "evaluation/run.py")]
TURNS = [["hello there hello there"], ["one two", "three"], ["abc abc abc abc"], ["what is 1+1"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft, and questions, one of two turns."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "target", seed=0, layers=3)
    save_model(folder / "draft", seed=1, layers=1)
    lines = [{"question_id": i + 1, "category": "qa", "turns": turns} for i, turns in enumerate(TURNS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(folder: Path, output: Path, *more: str, methods: str = "pld,sps", tokens: int = 24) -> list[str]:
    models = ["--target", str(folder / "target"), "--draft", str(folder / "draft")]
    task = ["--questions", str(folder / "questions.jsonl"), "--max-new-tokens", str(tokens), "--template", "chat"]
    return [methods, *models, *task, "--dtype", "float32", "--threads", "1", "--output", str(output), *more]


def start(arguments: list[str], launcher: list[str] | None = None) -> Done:
    # Not in the repository's folder: everything must work from anywhere.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*(launcher or RUN), *arguments], capture_output=True, text=True, env=env, cwd="/", timeout=200
    )


def run(arguments: list[str]) -> Done:
    return in_process(main, *arguments)


def answers(output: Path, method: str) -> Path:
    return output / "questions" / "target" / f"{method}.jsonl"


@pytest.fixture(scope="module")
def started(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A run as a process, and where its answers are."""
    output = tmp_path_factory.mktemp("started")
    done = start(command(folder, output, "--json"))
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.fixture
def finished(started: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of its answers."""
    return Path(shutil.copytree(started[0], tmp_path / "finished"))


def test_a_run_answers_judges_and_reports(folder: Path, started: tuple[Path, Done]) -> None:
    output, done = started
    assert "pld: 4/4 identical" in done.stderr
    rows = json.loads(done.stdout)
    assert [row["method"] for row in rows] == ["pld", "sps"]
    assert all(row["identical"] == row["questions"] == 4 and row["speedup"] > 0 for row in rows)
    assert {"pair", "benchmark", "low", "high", "mat", "tokens_per_second", "floor_tokens_per_second"} <= set(rows[0])
    config, places = parse(command(folder, output, "--json")), {"output": None, "json": None}
    for method in ("autoregressive", "pld", "sps"):
        header = read_header(answers(output, method))
        assert header is not None
        assert header["methods"] == ["autoregressive", "pld", "sps"]
        assert str(output) not in header["command"] and "--json" not in header["command"]
        assert {**vars(parse(shlex.split(header["command"])[1:])), **places} == {**vars(config), **places}
        assert header["row_invariant"] is True
        assert header["failures"] == []
        for answer in read_answers(answers(output, method)).values():
            (choice,) = answer.choices
            assert sum(choice.accept_lengths) == sum(choice.new_tokens)
            assert len(choice.turns) == len(TURNS[answer.question_id - 1])  # type: ignore[operator]


def test_a_killed_run_is_continued_and_nothing_is_run_twice(folder: Path, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path, methods="pld", tokens=400)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*RUN, *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = answers(tmp_path, "pld")
    while not (path.exists() and path.read_bytes().count(b"\n")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_answers(path)
    assert 0 < len(before) < len(TURNS), "killed too late to test anything"
    with path.open("ab") as file:
        file.write(b'{"question_id": 3, "categ')  # as a torn write leaves it
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    after = read_answers(path)
    assert sorted(after) == [1, 2, 3, 4]
    assert len(path.read_text().splitlines()) == 4
    assert all(after[q].answer_id == answer.answer_id for q, answer in before.items())


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.jsonl")}


def test_a_finished_run_is_only_judged_again(folder: Path, finished: Path) -> None:
    before = contents(finished)
    again = run(command(folder, finished))
    assert (again.returncode, contents(finished)) == (0, before)
    assert "pld: 4/4 identical" in again.stdout and "sps: 4/4 identical" in again.stdout


def test_another_configuration_is_refused_and_named(folder: Path, finished: Path) -> None:
    before = contents(finished)
    refused = run(command(folder, finished, tokens=25))
    assert refused.returncode == 2
    assert "max_new_tokens=24, now 25" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert contents(finished) == before


def test_two_replicas_share_the_questions_and_leave_one_file(folder: Path, finished: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", RUN[1]]
    done = start(command(folder, tmp_path / "two", "--device", "cpu", methods="pld"), launcher)
    assert done.returncode == 0, done.stderr
    one, two = (read_answers(answers(output, "pld")) for output in (finished, tmp_path / "two"))
    assert sorted(two) == sorted(one)
    assert all(two[q].choices[0].token_ids == one[q].choices[0].token_ids for q in one)
    assert not list((tmp_path / "two").rglob("parts"))
    header = read_header(answers(tmp_path / "two", "pld"))
    assert header is not None
    assert header["replicas"] == 2


def test_a_failed_question_is_no_answer_and_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drafter that raises on one question."""
    whole = LookupDrafter.begin

    def begin(self: LookupDrafter, prompt_T: list[int], *more: Any) -> None:
        if ord("+") - 31 in prompt_T:  # the last question
            raise RuntimeError("out of paper")
        whole(self, prompt_T, *more)

    arguments = command(folder, tmp_path / "out", methods="pld")
    with monkeypatch.context() as broken:
        broken.setattr(LookupDrafter, "begin", begin)
        failed = run(arguments)
    assert failed.returncode == 1
    assert "pld: 1 questions failed" in failed.stderr
    assert "RuntimeError: out of paper" in failed.stderr
    header = read_header(answers(tmp_path / "out", "pld"))
    assert header is not None
    assert [failure["error"] for failure in header["failures"]] == ["RuntimeError: out of paper"]
    assert len(read_answers(answers(tmp_path / "out", "pld"))) == 3
    mended = run(arguments)
    assert mended.returncode == 0, mended.stderr
    assert len(read_answers(answers(tmp_path / "out", "pld"))) == 4


def test_sampling_runs_are_reported_without_a_verdict_on_equality(folder: Path, tmp_path: Path) -> None:
    done = run(command(folder, tmp_path, "--temperature", "1", "--top-k", "20", "--repeats", "2", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["identical"] is None
    (first, *_) = read_answers(answers(tmp_path, "sps")).values()
    assert [choice.index for choice in first.choices] == [0, 1]
    assert first.choices[0].token_ids != first.choices[1].token_ids


def test_variants_of_a_method_are_compared_in_one_run(folder: Path, tmp_path: Path) -> None:
    """Each has its own options, file and row; a plain method has those of the command line."""
    done = run(command(folder, tmp_path, "--gamma", "4", "--json", methods="sps@gamma=1,sps@gamma=3,sps"))
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["sps@gamma=1", "sps@gamma=3", "sps"]
    assert all(row["identical"] == 4 for row in rows.values())
    for name, gamma in zip(rows, (1, 3, 4), strict=True):
        header = read_header(answers(tmp_path, name))
        assert header is not None and (header["method"], header["options"]) == ("sps", {"gamma": gamma})
        choices = [choice for answer in read_answers(answers(tmp_path, name)).values() for choice in answer.choices]
        longest = max(drafted for choice in choices for turn in choice.drafted or [] for drafted in turn)
        assert longest == gamma


def test_methods_of_one_draft_share_it_and_all_share_the_target(folder: Path, tmp_path: Path) -> None:
    session = open_session(parse(command(folder, tmp_path, methods="sps,sps@gamma=3,sps@draft=int8")))
    one, other, own = (session.models_of(spec) for spec in session.config.specs if spec.weights)
    assert draft_model(one) is draft_model(other) is not draft_model(own)
    assert one.target is own.target


def test_drafts_are_compared_in_one_run(folder: Path, tmp_path: Path) -> None:
    """Each variant has its own draft, which its header and the file's name tell; a plain method has the pair's."""
    names = ["sps", "sps@draft=int8", f"sps@draft={folder / 'target'}@gamma=3", "sps@draft=int4-90@gamma=2"]
    done = run(command(folder, tmp_path, "--json", methods=",".join(names)))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["identical"] for row in rows] == [4, 4, 4, 4]
    assert rows[0]["mat"] < rows[1]["mat"] <= rows[2]["mat"] + 2  # a random draft, the target in 8 bits, the target
    assert rows[2]["mat"] > 3  # all kept but where answers end
    sources = [str(folder / "draft"), "int8", str(folder / "target"), "int4-90"]
    for name, source in zip(names, sources, strict=True):
        header = read_header(answers(tmp_path, name.replace("/", "--")))
        assert header is not None and header["draft"]["source"] == source
        assert f"draft {source} for {name}" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["spss@gamma=2", "smollm2-135m"], "no method 'spss'; did you mean 'sps'?"),
        (["sps@gama=2", "smollm2-135m"], "sps has no option 'gama'; did you mean 'gamma'?"),
        (["sps@gamma=0", "smollm2-135m"], "expected sps@gamma=VALUE to be a number from 1 to 1000000000, got '0'"),
        (["autoregressive@gamma=2", "smollm2-135m"], "autoregressive has no option 'gamma'"),
        (["pld@draft=int8", "smollm2-135m"], "pld has no option 'draft'"),
        (["sps@draft=", "smollm2-135m"], "expected sps@draft=MODEL to name a model, got nothing"),
        (["sps@drafts=int8", "smollm2-135m"], "sps has no option 'drafts'; did you mean 'draft'?"),
        (["sps@draft=int4@head=9", "smollm2-135m"], "sps has no option 'head'"),
        (["sps@draft=int4-0", "smollm2-135m"], "expected a draft that knows 1 to 49152 of the target's tokens"),
        (["sps", "smollm2-135m", "--draft", "int4-x"], "a hub id like 'owner/name', got 'int4-x'"),
        (["sd2@draft=int8", "smollm2-135m"], "int8 has none"),
        (["pearl-sd2@draft=int8", "smollm2-135m"], "int8 has none"),
        (["spss", "smollm2-135m"], "no method 'spss'; did you mean 'sps'?"),
        (["pld", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
        (["pld"], "expected a pair"),
        (["pld", "smollm2-135m", "--benchmark", "humanevil"], "did you mean 'humaneval'?"),
        (["pld", "smollm2-135m", "--dtype", "float61"], "did you mean 'float16'?"),
        (["pld", "smollm2-135m", "--dtype", "float16"], "float16 runs on CUDA only"),
        (["pld", "smollm2-135m", "--questions", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["sps", "--target", "/nowhere"], "needs a draft of the kind 'model'"),
        (["pld", "--target", "/nowhere"], "expected a model folder"),
        (["pld", "smollm2-135m", "--temperature", "-1"], "temperature >= 0"),
        (["sps", "smollm2-135m", "--depth", "2"], "none of autoregressive, sps has an option --depth"),
        (["pld", "smollm2-135m", "--gamma", "0"], "--gamma to be a number from 1 to 1000000000, got 0"),
    ],
)
def test_mistakes_get_one_sentence(
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    if "/nowhere" in arguments:
        arguments = [*arguments, "--benchmark", "mini_bench"]
    refused = run([*arguments, "--output", str(tmp_path)])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert f"answers in {tmp_path}" not in refused.stderr, "the plan is told only where it can be carried out"
    assert not list(tmp_path.rglob("*.jsonl"))


def test_help_names_methods_and_pairs_at_once() -> None:
    begin = time.perf_counter()
    done = start([])
    assert done.returncode == 0
    assert time.perf_counter() - begin < 5
    for word in ("autoregressive", "sps", "pld", "smollm2-135m", "vicuna-7b-68m"):
        assert word in done.stdout


def test_broken_questions_are_named_by_number(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text((folder / "questions.jsonl").read_text() + "{nonsense\n")
    arguments = ["pld", "--target", str(folder / "target"), "--questions", str(bad), "--output", str(tmp_path / "out")]
    done = run(arguments)
    assert done.returncode == 2
    assert "5" in done.stderr
    assert "bad.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
