"""How the two ends of a link part: on every path the threads end, or the other rank is named."""

import socket
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.engine.link import Close, LinkError
from methods.engine.socket_link import SocketLink, meeting_place, reach
from methods.errors import UserError
from methods.pearl.messages import Ready
from tests.test_pearl import two_ends


def close_both(ends: list[SocketLink]) -> None:
    other = threading.Thread(target=ends[1].close)
    other.start()
    ends[0].close()
    other.join(20)
    assert not other.is_alive()


@pytest.mark.parametrize("said", [False, True], ids=["nothing was said", "something was said"])
def test_ends_that_part_leave_no_thread(said: bool) -> None:
    ends = two_ends()
    if said:
        ends[1].send(Ready("pearl", []))
        ends[0].send(Close())  # as the draft's rank is told that there are no more prompts
        assert ends[0].receive("its drafter") == Ready("pearl", [])
        assert ends[1].receive("a prompt") == Close()
    close_both(ends)
    assert not any(thread.is_alive() for end in ends for thread in end._threads)
    close_both(ends)  # again: nothing happens


def test_an_end_that_does_not_part_is_named() -> None:
    here, there = two_ends(patience=0.5)
    began = time.monotonic()
    with pytest.raises(LinkError, match=r"rank 0 \(target\) waited 0.5 seconds for the farewell of rank 1 \(draft\)"):
        here.close()
    assert time.monotonic() - began < 10
    there.close()


def test_an_end_that_breaks_off_is_named() -> None:
    here, there = two_ends(patience=2.0)
    there.end.sendall(struct.pack("@qqq", 16, 99, 0))  # no such message: nothing more is read
    with pytest.raises(LinkError, match=r"rank 1 \(draft\) has ended while rank 0 \(target\) waited for its farewell"):
        here.close()
    with pytest.raises(LinkError, match=r"for rank 0 \(target\) to take a message: it has ended, or hangs"):
        there.close()


@dataclass(frozen=True)
class Two:
    """A message of several tensors."""

    first: Tensor
    second: Tensor


def test_tensors_of_any_size_follow_each_other() -> None:
    names, ends = ("rank 0 (target)", "rank 1 (draft)"), socket.socketpair()
    links = [SocketLink(ends[0], names, 30, [Two]), SocketLink(ends[1], names[::-1], 30, [Two])]
    for first in (torch.arange(3, dtype=torch.int8), torch.tensor(True), torch.zeros(0, 5), torch.ones(3).bfloat16()):
        links[0].send(Two(first, torch.arange(2.0)))
        got = links[1].receive("it")
        assert torch.equal(got.first, first) and got.first.dtype == first.dtype and got.first.shape == first.shape
        assert got.second.tolist() == [0, 1]
    close_both(links)


def test_without_a_place_to_meet_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/gone")
    with pytest.raises(UserError, match=r"in which PEARL's ranks can meet: .*; set TMPDIR"), meeting_place(1.0):
        pass


def test_who_waits_and_who_comes_are_linked() -> None:
    with meeting_place(5.0) as (address, wait):
        one, other = reach(address), wait()
        assert not Path(address).is_symlink() and Path(address).parent.stat().st_mode & 0o077 == 0
    one.sendall(b"well")
    assert other.recv(4) == b"well" and not Path(address).exists()
    with meeting_place(0.05) as (_, wait), pytest.raises(TimeoutError):
        wait()
    for end in (one, other):
        end.close()
