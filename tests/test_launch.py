"""How the ranks of a launch end: with jobs that need no model, nor torch, so that a launch takes a second."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from evaluation.launch.ending import Ending, worst
from evaluation.launch.processes import launch
from methods.errors import PeerError, RunError, UserError
from methods.paths import ROOT

LONG = 60.0


def job(*acts: Callable[[], int]) -> int:
    """Rank by rank another act."""
    return acts[int(os.environ["RANK"])]()


def well() -> int:
    return 0


def naps() -> int:
    time.sleep(4)
    return 0


def lasts() -> int:
    time.sleep(LONG)
    return 0


def raises(error: Exception, after: float = 0.0) -> int:
    time.sleep(after)
    raise error


def signals_itself(number: signal.Signals) -> int:
    os.kill(os.getpid(), number)
    return 0


def exits() -> int:
    os._exit(3)


def waits_in_a_thread() -> int:
    """As a thread of gloo's does."""
    threading.Thread(target=time.sleep, args=(LONG,)).start()
    return 0


ECHO = PeerError("rank 0 saw rank 1 end")
MISTAKE = UserError("expected an apple, got a pear")


@pytest.mark.parametrize(
    "acts, status, sentence",
    [
        ((well, waits_in_a_thread), 0, ""),
        ((lasts, partial(raises, MISTAKE)), 2, "error: expected an apple, got a pear"),
        ((partial(raises, ECHO, 0.5), partial(raises, MISTAKE, 0.7)), 2, "error: expected an apple, got a pear"),
        ((partial(raises, MISTAKE), partial(raises, MISTAKE)), 2, "error: expected an apple, got a pear"),
        ((partial(raises, RunError("no luck")), lasts), 1, "error: rank 0: no luck"),
        ((partial(raises, ECHO), well), 1, "error: rank 0 saw rank 1 end"),
        (
            (partial(raises, ECHO, 0.5), partial(signals_itself, signal.SIGTERM)),
            1,
            "error: rank 1 was ended by SIGTERM",
        ),
        (
            (partial(signals_itself, signal.SIGKILL), lasts),
            1,
            "error: rank 0 was ended by SIGKILL, as the system does where memory runs out",
        ),
        (
            (lasts, partial(raises, MemoryError("no room for 5 bytes"))),
            1,
            "error: rank 1 ran out of memory (no room for 5 bytes); take smaller models or a machine with more memory",
        ),
        ((lasts, exits), 1, "error: rank 1 ended with exit status 3 and did not tell why"),
        ((partial(signals_itself, signal.SIGINT), well), 0, ""),  # Ctrl-C is the starter's affair
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_launch_tells_the_cause_once_and_ends_soon(
    capfd: pytest.CaptureFixture[str], acts: tuple[Callable[[], int], ...], status: int, sentence: str
) -> None:
    began = time.monotonic()
    assert launch(partial(job, *acts), 2) == status
    assert capfd.readouterr().err.splitlines() == ([sentence] if sentence else [])
    assert time.monotonic() - began < LONG / 2


def test_a_fault_of_our_own_is_told_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(partial(job, partial(raises, ValueError("odd")), lasts), 2) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-2] == "ValueError: odd"
    assert lines[-1] == "error: rank 0 failed with ValueError: odd"


def test_a_rank_that_hangs_is_noticed_and_one_that_is_busy_is_not(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEARL_BENCH_PATIENCE", "0.6")  # 3 seconds without a sign
    assert launch(partial(job, naps, well), 2) == 0
    assert launch(partial(job, lasts, partial(signals_itself, signal.SIGSTOP)), 2) == 1
    assert "rank 1 has given no sign of life for long: it hangs" in capfd.readouterr().err


STARTER = """
import os, signal, sys
from functools import partial
from multiprocessing.context import SpawnProcess
from evaluation.launch.processes import launch
from methods.errors import command_line
from tests.test_launch import job, lasts
start, started = SpawnProcess.start, []
def start_and_tell(process):
    start(process)
    started.append(process)
    print(process.pid, flush=True)
    if len(started) == 1 and sys.argv[1:]:
        os.kill(os.getpid(), int(sys.argv[1]))
SpawnProcess.start = start_and_tell
if __name__ == "__main__":
    command_line(lambda: launch(partial(job, lasts, lasts), 2))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("between", [True, False], ids=["between two starts", "when all are started"])
def test_ranks_die_with_their_starter(tmp_path: Path, number: signal.Signals, between: bool) -> None:
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    process = subprocess.Popen(
        [sys.executable, str(script), *([str(int(number))] if between else [])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = [process.stdout.readline()]
    if not between:
        first.append(process.stdout.readline())
        process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    ranks = [int(pid) for pid in "".join([*first, rest]).split()]
    try:
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        assert "Traceback" not in errors
        assert _gone(ranks)
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)


def _gone(pids: list[int]) -> bool:
    """Whether the processes end within seconds."""
    end = time.monotonic() + 15
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_rank_whose_starter_had_ended_before_it_could_be_told_ends() -> None:
    code = "from evaluation.launch.processes import _die_with; _die_with({}); print('lives')"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for starter, status in ((os.getpid(), 0), (os.getppid(), 1)):
        done = subprocess.run([sys.executable, "-c", code.format(starter)], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, "" if status else "lives\n")


def test_a_users_mistake_is_told_before_a_failure_and_that_before_its_echo() -> None:
    mistake, failure, echo, well = Ending(2, "m"), Ending(1, "f"), Ending(1, "e", echo=True), Ending(0)
    assert worst([well, echo, failure, mistake]) == mistake
    assert worst([echo, well, failure, Ending(1, "later")]) == failure
    assert worst([well, echo]) == echo
    assert worst([well, well]) == well
