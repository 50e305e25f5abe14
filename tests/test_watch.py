"""Which silence of a rank is a hang, as its starter and the other ranks of its launch see it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from torch._C._distributed_c10d import HashStore, TCPStore

from evaluation.launch.watch import Silences, Watch
from methods.paths import ROOT


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock."""
    return lambda now: monkeypatch.setattr(time, "monotonic", lambda: now)


def test_silence_counts_from_the_last_sign_and_not_while_the_listener_stood_still(at: Callable[[float], None]) -> None:
    at(0)
    silences = Silences([0, 1, 2], limit=4.0, first=8.0)

    def hung(now: float) -> int | None:
        at(now)
        return silences.too_long()

    silences.ended(2)
    silences.heard(0)
    assert [hung(now) for now in (1, 2, 3)] == [None, None, None]
    silences.heard(0)
    assert [hung(now) for now in (1003, 1004, 1005)] == [None, None, None]  # stopped by Ctrl-Z, like the ranks
    assert hung(1006) == 0  # rank 1 has not begun, and has longer for that
    silences.heard(0)
    assert hung(1007) == 1
    silences.ended(1)
    assert hung(1008) is None


def test_ranks_of_an_outer_launcher_see_each_other_hang(at: Callable[[float], None]) -> None:
    store = HashStore()
    at(0)
    here, there, done = (Watch(store, rank, 3, limit=4.0, first=16.0) for rank in range(3))
    done.look()
    done.end()
    for now in range(1, 20):
        at(now)
        assert here.look() is None and there.look() is None
    found = []
    for now in range(20, 24):
        at(now)
        found.append(here.look())
    assert found == [None, None, None, 1]


@pytest.fixture
def outer_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[subprocess.Popen[str]], list[TCPStore]]]:
    """Two ranks with nothing to do for minutes, started as an outer launcher does, when both have given signs; and the
    launcher's store, in a list that holds it alone."""
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    code = "from evaluation.launch.processes import run_rank; import time; run_rank(lambda: time.sleep(200) or 0)"
    ours = {"PYTHONPATH": str(ROOT), "PEARL_BENCH_PATIENCE": "0.6", "WORLD_SIZE": "2"}
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[0].port)}
    ranks = []
    for rank in range(2):
        env = {**os.environ, **ours, **here, "RANK": str(rank)}
        ranks.append(subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True))
    while not all(stores[0].add(f"signs of {rank}", 0) for rank in range(2)):
        time.sleep(0.05)
    yield ranks, stores
    for process in ranks:
        process.kill()
        process.communicate()


def test_a_rank_of_an_outer_launcher_ends_where_another_hangs_or_the_launcher_has_ended(
    outer_launch: tuple[list[subprocess.Popen[str]], list[TCPStore]],
) -> None:
    (one, other), stores = outer_launch
    other.send_signal(signal.SIGSTOP)
    _, errors = one.communicate(timeout=60)
    assert one.returncode == 1
    assert "error: rank 1 has given no sign of life for long: it hangs" in errors
    stores.clear()
    other.send_signal(signal.SIGCONT)
    _, errors = other.communicate(timeout=60)
    assert other.returncode == 1
    assert "error: rank 1 has lost the store of its launch" in errors
