"""Launches of two ranks as a user starts them: real processes on a tiny model. Results, replicas, traces, faults."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trace_rounds

from evaluation.answers.header import read_header
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import read_answers
from evaluation.answers.trace import read_trace
from evaluation.judge.groups import read_groups
from evaluation.judge.timeline import spans_of
from evaluation.launch import processes
from evaluation.run import main
from methods.drafters.eagle.tiny import write_eagle3
from methods.paths import ROOT
from tests.commands import in_process
from tests.tiny import save_draft, save_model

RUN = [sys.executable, str(ROOT / "evaluation/run.py")]
TURNS = [["hello there hello there"], ["one two", "three"], ["abc abc abc abc"], ["what is 1+1"]]
HEAD = "pearl-eagle3"  # a method whose draft's rank reads features of the target
MANY = 12  # questions, so that every fault ends a run in the middle
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


SLOW = """
import time
from evaluation.run import main
from methods.errors import command_line
from methods.target import Target
scored = Target.score
def slowly(*arguments):
    time.sleep(0.005)
    return scored(*arguments)
Target.score = slowly
if __name__ == "__main__":
    command_line(main)
"""  # passes that leave a draft the time to prepare branches, on every machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft with exits, a head, and questions, one of two turns."""
    folder = tmp_path_factory.mktemp("ranks")
    save_model(folder / "target", seed=0, layers=3)
    (folder / "slow.py").write_text(SLOW)
    (folder / "draft").mkdir()
    save_draft(folder / "draft", folder / "target")
    write_eagle3(folder / "head", folder / "target")
    (folder / "many").mkdir()
    for place, turns in ((folder, TURNS), (folder / "many", [TURNS[i % len(TURNS)] for i in range(MANY)])):
        lines = [{"question_id": i + 1, "category": "qa", "turns": several} for i, several in enumerate(turns)]
        (place / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(folder: Path, output: Path, methods: str, *more: str, tokens: int = 24) -> list[str]:
    models = ["--target", str(folder / "target"), "--draft", str(folder / ("head" if methods == HEAD else "draft"))]
    task = ["--questions", str(folder / "questions.jsonl"), "--max-new-tokens", str(tokens), "--template", "chat"]
    return [methods, *models, *task, "--dtype", "float32", "--threads", "1", "--output", str(output), *more]


def run(arguments: list[str], start: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    # Not in the repository's folder: everything must work from anywhere.
    return subprocess.run([*(start or RUN), *arguments], capture_output=True, text=True, env=ENV, cwd="/", timeout=150)


def answers(output: Path, method: str) -> Path:
    return output / "questions" / "target" / f"{method}.jsonl"


def names_of(trace: Path, kind: str) -> dict[tuple[int, int], str]:
    """What the processes or the threads of a trace file are called, by (process, thread)."""
    events = json.loads(trace.read_text())["traceEvents"]
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == kind}


def test_a_plain_start_runs_both_ranks_and_what_belongs_beside(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    arguments = command(folder, tmp_path, "pearl,pearl-sd2", "--gamma", "3")
    done = run([*arguments, "--trace", str(trace), "--json"])
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert list(rows) == ["autoregressive-all", "sps", "sd2", "pearl", "pearl-sd2"]
    assert all(row["identical"] == 4 for row in rows.values())
    header = read_header(answers(tmp_path, "pearl"))
    assert header is not None
    assert (header["ranks"], header["options"]) == (2, {"gamma": 3, "without": "nothing"})
    assert header["settled"] is None and (header["loop"], header["drafter"], header["shape"]) == (
        "pearl",
        "model",
        "chain",
    )
    alone, both = (read_header(answers(tmp_path, name)) for name in ("autoregressive", "autoregressive-all"))
    assert alone is not None and both is not None
    assert header["devices"] == both["devices"] and set(alone["devices"]) <= set(both["devices"])
    assert set(names_of(trace, "process_name").values()) == {"replica 0, target", "replica 0, draft"}
    pearl = [span for spans in read_trace(trace).answers["pearl"].values() for span in spans]
    work = {(span.rank, span.work) for span in pearl}
    assert work == {("target", "verify"), ("target", "wait"), ("draft", "draft")}
    assert all(span.seconds >= 0 for span in pearl)
    for answer in read_answers(answers(tmp_path, "pearl")).values():
        assert answer.choices[0].wait_time is not None
    before = answers(tmp_path, "pearl").read_bytes()
    other = run([*arguments, "--max-new-tokens", "25"])
    assert other.returncode == 2
    (sentence,) = noise(other)
    assert "max_new_tokens=24, now 25; choose another --output" in sentence
    assert answers(tmp_path, "pearl").read_bytes() == before


def test_replicas_share_questions_and_a_trace_and_a_second_start_answers_nothing(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = run(command(folder, tmp_path, "pearl", "--alone", "--replicas", "2", "--trace", str(trace)))
    assert done.returncode == 0, done.stderr
    assert "pearl: 4/4 identical" in done.stdout
    header = read_header(answers(tmp_path, "pearl"))
    assert header is not None and header["replicas"] == 2
    assert header["options"]["gamma"] == "auto" and header["settled"]["gamma"]
    assert not (answers(tmp_path, "pearl").parent / "parts").exists()
    processes, threads = names_of(trace, "process_name"), names_of(trace, "thread_name")
    named = {f"{processes[place]}, {method}" for place, method in threads.items()}
    work = ["target, autoregressive", "target, pearl", "draft, pearl"]
    assert named == {f"replica {i}, {its}" for i in range(2) for its in work}
    (pearl,) = (result for result in read_groups([tmp_path])[0].results if result.method == "pearl")
    shown = spans_of(pearl, read_trace(trace))
    assert sorted(shown) == [(1, 0), (2, 0), (2, 1), (3, 0), (4, 0)]
    told = in_process(trace_rounds.main, trace)
    row = next(line.split("│") for line in told.stdout.splitlines() if " pearl " in line)
    assert int(row[2]) == sum(len(trace_rounds.rounds(spans)) for spans in shown.values())
    before = answers(tmp_path, "pearl").read_bytes()
    again = run(command(folder, tmp_path, "pearl", "--alone", "--replicas", "2"))
    assert (again.returncode, noise(again)) == (0, [])
    assert again.stdout == done.stdout, "it judges again"
    assert answers(tmp_path, "pearl").read_bytes() == before


def test_branches_are_recorded_shown_and_traced(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    name = "pearl@branches=3@gamma=1"
    arguments = command(folder, tmp_path, f"{name},pearl@gamma=1", "--alone", "--trace", str(trace), tokens=60)
    done = run(arguments, [sys.executable, str(folder / "slow.py")])
    assert done.returncode == 0, done.stderr
    assert f"{name}: 4/4 identical" in done.stdout
    header, plain = (
        read_header(answers(tmp_path, name)),
        read_header(answers(tmp_path, "pearl@gamma=1")),
    )
    assert header is not None and plain is not None
    assert header["options"] == plain["options"] | {"branches": 3} and "branches" not in plain["options"]
    choices = [answer.choices[0] for answer in read_answers(answers(tmp_path, name)).values()]
    assert sum(sum(choice.prepared or []) for choice in choices) > 0
    spans = [span for turns in read_trace(trace).answers[name].values() for span in turns]
    prepared = sum(span.seconds for span in spans if span.work == "prepare")
    assert prepared == pytest.approx(sum(sum(choice.prepare_time or []) for choice in choices))
    for choice in choices:
        needed = [a < d for drafted, accepted in zip(choice.drafted or [], choice.accepted or [], strict=True)
                  for d, a in zip(drafted, accepted, strict=True)]  # fmt: skip
        assert sum(choice.hits or []) + sum(choice.misses or []) == sum(needed)
    others = [answer.choices[0] for answer in read_answers(answers(tmp_path, "pearl@gamma=1")).values()]
    assert all(choice.prepared is choice.hits is choice.hidden_time is None for choice in others)
    assert "hits of" in done.stdout and "hidden" in done.stdout


def noise(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a run said behind the paragraph that tells of the launch, but for its last words on where answers lie."""
    lines = done.stderr.splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("answers in")) + 1 :]
    return [line for line in lines if not line.startswith(("answers in", "for a report"))]


def test_an_outer_launcher_may_start_the_ranks_and_variants_have_drafters_of_their_own(
    folder: Path, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", RUN[1]]
    names = ["pearl", *(f"pearl-sd2@exit={exit_}@gamma=2" for exit_ in (1, 3))]
    done = run(command(folder, tmp_path, ",".join(names), "--alone", "--json"), torchrun)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert list(rows) == names and all(row["identical"] == 4 for row in rows.values())
    assert rows[names[1]]["mat"] < rows[names[2]]["mat"] - 0.2  # the third exit is that of all the target's layers


def test_a_mistake_is_told_once_before_a_rank_is_started(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_start", lambda *_: pytest.fail("a rank is started"))
    done = in_process(main, *command(folder, tmp_path, "pearl", "--draft", str(tmp_path / "nothing")))
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "nothing" in done.stderr
    done = in_process(main, *command(folder, tmp_path, "pearl", "--gamma", "fast"))
    assert done.returncode == 2
    assert "expected --gamma to be auto or free or a number from 1 to 1000000000, got fast" in done.stderr
    monkeypatch.setenv("PEARL_BENCH_PATIENCE", "soon")
    done = in_process(main, *command(folder, tmp_path, "pearl"))
    assert done.returncode == 2
    assert "expected PEARL_BENCH_PATIENCE to be a number of seconds above 0, got 'soon'" in done.stderr


@pytest.fixture(scope="module")
def hurt_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of each method is begun that each fault ends and the next start goes on with."""
    return tmp_path_factory.mktemp("hurt")


def hurt_command(folder: Path, output: Path, method: str) -> list[str]:
    many = str(folder / "many/questions.jsonl")
    if method == HEAD:
        return command(folder, output, method, "--alone", "--questions", many, tokens=400)
    branches = ["--branches", "3", "--gamma", "1"]
    return command(folder, output, method, "--alone", "--questions", many, *branches, tokens=80)


def start_of(folder: Path, method: str) -> list[str]:
    """What starts it: where branches are prepared, passes take their time."""
    return RUN if method == HEAD else [sys.executable, str(folder / "slow.py")]


def kept_answers(output: Path, method: str) -> dict[QuestionId, str]:
    """The ids of PEARL's answers so far."""
    path = answers(output, method)
    return {q: answer.answer_id for q, answer in read_answers(path).items()} if path.exists() else {}


def start_and_wait_for_an_answer(
    folder: Path, output: Path, method: str, background: bool = False, **options: str
) -> subprocess.Popen[str]:
    """A run that has answered a question and is far from its last. `background`: as a script starts it with &, which
    makes it deaf to Ctrl-C."""
    path = answers(output, method)
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    process = subprocess.Popen(
        [*start_of(folder, method), *hurt_command(folder, output, method)],
        env=ENV | options,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Not as it is for the tests, which may run in the background themselves.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN if background else signal.SIG_DFL),
    )
    while not (path.exists() and path.read_bytes().count(b"\n") > before):
        assert process.poll() is None, "it ended before it could be hurt"
        time.sleep(0.01)
    return process


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return sorted(pid for pid, line in lines.items() if "spawn_main" in line)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def kill(rank: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: os.kill(ranks_of(process)[rank], signal.SIGKILL)


def stop(rank: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: os.kill(ranks_of(process)[rank], signal.SIGSTOP)


def interrupt(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def terminate(process: subprocess.Popen[str]) -> None:
    process.terminate()


@pytest.mark.parametrize(
    "method, hurt, background, status, message",
    [
        ("pearl", kill(1), False, 1, "rank 1 was ended by SIGKILL"),
        ("pearl", kill(0), False, 1, "rank 0 was ended by SIGKILL"),
        ("pearl", stop(1), False, 1, "rank 0 (target) waited"),
        ("pearl", stop(0), False, 1, "rank 1 (draft) waited"),
        ("pearl", interrupt, False, 130, "interrupted"),
        ("pearl", terminate, True, -signal.SIGTERM, ""),
        (HEAD, kill(1), False, 1, "rank 1 was ended by SIGKILL"),
        (HEAD, kill(0), False, 1, "rank 0 was ended by SIGKILL"),
        (HEAD, stop(1), False, 1, "rank 0 (target) waited"),
        (HEAD, stop(0), False, 1, "rank 1 (draft) waited"),
    ],
    ids=[
        *("draft killed", "target killed", "draft hangs", "target hangs", "Ctrl-C", "ended in the background"),
        *("head killed", "its target killed", "head hangs", "its target hangs"),
    ],
)
def test_a_fault_ends_both_ranks_soon_and_loses_nothing(
    folder: Path,
    hurt_output: Path,
    method: str,
    hurt: Callable[[subprocess.Popen[str]], None],
    background: bool,
    status: int,
    message: str,
) -> None:
    output = hurt_output / method
    before = kept_answers(output, method)
    process = start_and_wait_for_an_answer(folder, output, method, background, PEARL_BENCH_PATIENCE="1")
    ranks = ranks_of(process)
    hurt(process)
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=30)
        while any(map(alive, ranks)) and time.monotonic() - began < 30:
            time.sleep(0.05)
        assert time.monotonic() - began < 10
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status, errors
    assert message in errors
    kept = kept_answers(output, method)
    assert len(before) < len(kept) < MANY  # else nothing was ended
    assert kept.items() >= before.items()


@pytest.mark.parametrize("method", ["pearl", HEAD])
def test_a_run_that_faults_have_ended_goes_on(folder: Path, hurt_output: Path, method: str) -> None:
    output = hurt_output / method
    kept = kept_answers(output, method)
    again = run(hurt_command(folder, output, method), start_of(folder, method))
    assert again.returncode == 0, again.stderr
    now = kept_answers(output, method)
    assert len(now) == MANY and now.items() >= kept.items()
    assert f"{method}: {MANY}/{MANY} identical" in again.stdout


def test_kills_while_ranks_start_leave_nothing_behind_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """A sampling run, of which the others here are none."""
    arguments = command(folder, tmp_path, "pearl", "--alone", "--temperature", "1", "--top-p", "0.9")
    for number, to_rank, after in ((signal.SIGKILL, None, 0.0), (signal.SIGSTOP, 1, 1.0), (signal.SIGTERM, 0, 2.0)):
        process = subprocess.Popen(
            [*RUN, *arguments], env=ENV | {"PEARL_BENCH_PATIENCE": "0.6"}, cwd="/", stderr=subprocess.PIPE, text=True
        )
        while len(ranks := ranks_of(process)) < 2:
            time.sleep(0.01)
        time.sleep(after)
        os.kill(process.pid if to_rank is None else ranks[to_rank], number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-number if to_rank is None else 1)
        assert errors.count("error:") == (to_rank is not None)
        end = time.monotonic() + 15
        while any(map(alive, ranks)):
            assert time.monotonic() < end, "a rank has outlived its launch"
            time.sleep(0.05)
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert [len(read_answers(answers(tmp_path, name))) for name in ("autoregressive", "pearl")] == [4, 4]
    header = read_header(answers(tmp_path, "pearl"))
    assert header is not None and "gamma" in header["settled"]


BROKEN = """
import sys
from evaluation.run import main
from methods.errors import command_line
from {module} import {name}
whole = {name}.{function}
count = 0
def breaks(*arguments):
    global count
    count += 1
    if count == {calls}:
        raise RuntimeError("out of luck")
    return whole(*arguments)
{name}.{function} = breaks
"""
START = """
if __name__ == "__main__":
    command_line(main)
"""


@pytest.mark.parametrize(
    "method, rank, module, name, function",
    [
        ("pearl", 1, "methods.drafters.language_model", "ModelDrafter", "draft"),
        ("pearl", 1, "methods.pearl.branches", "Preparation", "grow"),
        ("pearl", 0, "methods.pearl.target", "Pearl", "_decide"),
        ("pearl", 0, "methods.pearl.target", "Pearl", "_note"),
        (HEAD, 1, "methods.drafters.eagle.drafters", "EagleChain", "draft"),
        (HEAD, 0, "methods.pearl.target", "Pearl", "_decide"),
    ],
    ids=["draft", "draft with branches", "target", "target with branches", "head", "its target"],
)
def test_an_exception_in_either_rank_ends_both(
    folder: Path, tmp_path: Path, method: str, rank: int, module: str, name: str, function: str
) -> None:
    script = tmp_path / "broken.py"
    branching = function in ("grow", "_note")
    text = BROKEN.format(module=module, name=name, function=function, calls=20 if branching else 300)
    script.write_text(text + SLOW if branching else text + START)
    began = time.monotonic()
    branches = ["--branches", "3"] if branching else []
    arguments = command(folder, tmp_path, method, "--alone", "--gamma", "1", *branches, tokens=400)
    done = run(arguments, [sys.executable, str(script)])
    assert done.returncode == 1
    assert "RuntimeError: out of luck" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: rank {rank}")
    assert done.stderr.count("error: ") == 1
    assert time.monotonic() - began < 100  # starting included
