"""Memory for weights: as they were, apart from each other, and asked for in huge pages."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.engine.backends import huge_pages
from methods.engine.backends.cpu import NativeLinear, runs
from methods.engine.backends.huge_pages import ARENA, LINE, in_huge_pages

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def advised(tensor: Tensor) -> bool:
    """Whether the system was asked for huge pages where a tensor lies."""
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if not word.endswith(":"):
            begin, end = (int(number, 16) for number in word.split("-"))
            within = begin <= tensor.data_ptr() < end
        elif within and word == "VmFlags:":
            return "hg" in line.split()
    return False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8, torch.uint8])
def test_copies_keep_what_they_hold(dtype: torch.dtype) -> None:
    tensors = [(torch.arange(size) % 100).to(dtype).view(size, 1) for size in (1, 7, 4096)]
    copies = [in_huge_pages(tensor) for tensor in tensors]
    copies[0].zero_()
    for tensor, copy in zip(tensors[1:], copies[1:], strict=True):
        assert torch.equal(tensor, copy) and copy.dtype == dtype
        assert copy.data_ptr() % LINE == 0 and copy.data_ptr() != tensor.data_ptr()


def test_arenas_are_full_before_the_next_and_as_large_as_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_arena", None)
    first, second = (in_huge_pages(torch.ones(1000, dtype=torch.uint8)) for _ in range(2))
    assert second.data_ptr() - first.data_ptr() == 1024
    assert in_huge_pages(torch.ones(ARENA + 1, dtype=torch.uint8)).sum() == ARENA + 1
    assert first.sum() == second.sum() == 1000  # the arena before is still there


@pytest.mark.skipif(not SYSTEM.exists() or "[never]" in SYSTEM.read_text(), reason="no huge pages here")
def test_weights_lie_where_huge_pages_were_asked_for() -> None:
    if not runs(torch.float32, torch.device("cpu")):
        pytest.skip("no native operators")
    assert advised(NativeLinear(torch.ones(8, 8), None, torch.float32)._weight)
    assert not advised(torch.ones(ARENA))
