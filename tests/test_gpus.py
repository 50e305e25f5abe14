"""Which GPUs each rank owns, on machines that are not here: several replicas, a larger draft, slices, several nodes."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation.answers.header import RunHeader
from evaluation.launch import measure, provenance, worker
from evaluation.launch.config import RunConfig, default_output, parse
from evaluation.launch.gpus import VISIBLE, slices, split_gpus
from evaluation.launch.header import devices_of
from evaluation.launch.measure import meaningful
from evaluation.launch.provenance import GPU_READS, read_bandwidth
from evaluation.launch.ranks import Ranks, Share, choose_device, gpus_of, join_ranks, take_share
from methods import get_method
from methods.errors import UserError
from tests.pretended_gpus import PretendedGpus, pretended


@pytest.mark.parametrize(
    "gpus, ranks, size, draft, expected",
    [
        (1, 1, 1, 1, [[0]]),
        (4, 1, 1, 1, [[0, 1, 2, 3]]),
        (4, 2, 1, 1, [[0, 1], [2, 3]]),
        (2, 4, 1, 1, [[0], [1], [0], [1]]),
        (1, 2, 2, 1, [[0], [0]]),
        (2, 2, 2, 1, [[0], [1]]),
        (3, 2, 2, 1, [[0, 1], [2]]),
        (4, 2, 2, 1, [[0, 1, 2], [3]]),
        (4, 2, 2, 2, [[0, 1], [2, 3]]),
        (8, 4, 2, 1, [[0, 1, 2], [3], [4, 5, 6], [7]]),
        (8, 8, 2, 1, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        (3, 4, 2, 1, [[0], [1], [2], [0]]),
    ],
)
def test_the_draft_has_a_gpu_of_its_own_and_the_target_the_others(
    gpus: int, ranks: int, size: int, draft: int, expected: list[list[int]]
) -> None:
    assert split_gpus(gpus, ranks, size, draft) == expected


@pytest.mark.parametrize("gpus, ranks, size, draft", [(2, 2, 2, 2), (4, 4, 2, 2), (1, 2, 2, 2)])
def test_a_draft_that_leaves_the_target_none_is_refused(gpus: int, ranks: int, size: int, draft: int) -> None:
    with pytest.raises(UserError, match=f"expected --draft-gpus to leave the target one .* got {draft}"):
        split_gpus(gpus, ranks, size, draft)


def test_a_draft_that_has_no_rank_of_its_own_needs_no_gpus() -> None:
    for method in ("sps", "pearl"):
        with pytest.raises(UserError, match="expected --draft-gpus beside PEARL on GPUs"):
            measure.check(parse([method, "smollm2-135m", "--draft-gpus", "2", "--device", "cpu"]))


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """CUDA_VISIBLE_DEVICES of two slices."""
    monkeypatch.setenv(VISIBLE, "MIG-aa, MIG-bb")
    slices.cache_clear()
    yield monkeypatch
    slices.cache_clear()


@pytest.mark.parametrize("rank, own", [(None, "MIG-aa, MIG-bb"), (0, "MIG-aa"), (1, "MIG-bb"), (2, "MIG-aa")])
def test_each_rank_sees_its_own_slice_of_a_gpu(sliced: pytest.MonkeyPatch, rank: int | None, own: str) -> None:
    if rank is not None:
        sliced.setenv("LOCAL_RANK", str(rank))
    sliced.setattr(torch.cuda, "is_available", lambda: own == os.environ[VISIBLE])  # CUDA looks when it is first asked
    assert choose_device("cuda") == "cuda"
    assert slices() == ["MIG-aa", "MIG-bb"]
    assert gpus_of(Ranks(0, 2, 0, 2, 2), 1) == [["MIG-aa"], ["MIG-bb"]]


def test_whole_gpus_are_no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,GPU-abc")
    slices.cache_clear()
    assert slices() == [] and os.environ[VISIBLE] == "0,GPU-abc"
    slices.cache_clear()


@pytest.fixture
def restored() -> Iterator[None]:
    """The threads and cores that a share takes are given back."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored")
def test_a_share_names_its_devices_and_those_of_both_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    slices.cache_clear()
    with pretended(PretendedGpus(4)):
        share = take_share(Ranks(0, 2, 0, 2, 2), "cuda", 1)
        assert [str(device) for device in share.devices] == share.names == ["cuda:0", "cuda:1", "cuda:2"]
        assert share.names_of == [share.names, ["cuda:3"]] and share.all_names[-1] == "cuda:3"
        assert share.shared == []
    with pretended(PretendedGpus(1)):
        assert take_share(Ranks(0, 2, 0, 2, 2), "cuda", 1).shared == ["cuda:0"]
        assert take_share(Ranks(0, 1, 0, 1, 1), "cuda", 1).shared == []
    assert take_share(Ranks(0, 2, 0, 2, 2), "cpu", 1).shared == []


class Lies:
    """Models that lie on these GPUs, of a rank that owns more."""

    def __init__(self, *used: int) -> None:
        self.used_devices = [torch.device("cuda", number) for number in used]


@pytest.mark.parametrize(
    "method, own, draft, used, expected",
    [
        ("pld", [0, 1, 2, 3], [], [0], ["cuda:0"]),
        ("sps", [0, 1, 2, 3], [], [0, 2], ["cuda:0", "cuda:2"]),
        ("pearl", [0, 1, 2], [3], [1, 2], ["cuda:1", "cuda:2", "cuda:3"]),
        ("pld", [0, 1, 2], [3], [1], ["cuda:1"]),
        ("pearl", [0], [0], [0], ["cuda:0 for both ranks"]),
    ],
)
def test_a_header_names_the_gpus_on_which_models_lie(
    method: str, own: list[int], draft: list[int], used: list[int], expected: list[str]
) -> None:
    names, drafts = ([f"cuda:{number}" for number in numbers] for numbers in (own, draft))
    share = Share([torch.device(name) for name in names], names, 1, [names, drafts] if draft else [names], [0], 1)
    lies = Lies(*used)
    session: Any = SimpleNamespace(share=share, models=lies, models_of=lambda spec: lies, server=lambda spec: None)
    assert devices_of(session, get_method(method)) == expected


def test_a_draft_rank_warms_up_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """So its first pass takes as long as it likes."""
    done = list[str]()
    monkeypatch.setattr(worker, "build_chain_drafter", lambda spec, models, options: done.append(f"load {spec.name}"))
    monkeypatch.setattr(worker, "warm_up", lambda drafter, models: done.append("warm up"))
    monkeypatch.setattr(worker, "serve", lambda link, drafters: done.append(f"serve {', '.join(drafters)}"))
    config = parse(["pearl,pearl-pld", "smollm2-135m"])
    session: Any = SimpleNamespace(config=config, link="a link", models_of=lambda spec: None)
    worker.Session.serve(session)
    assert done == ["load pearl", "load pearl-pld", "warm up", "warm up", "serve pearl, pearl-pld"]


@pytest.mark.parametrize(
    "local_rank, rank, local_world, fits", [(0, 0, 2, True), (1, 3, 2, True), (0, 0, 1, False), (0, 1, 3, False)]
)
def test_a_replica_lies_on_one_node(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, rank: int, local_world: int, fits: bool
) -> None:
    import accelerate

    monkeypatch.setattr(accelerate, "PartialState", lambda **_: None)
    told = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_world}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    if fits:
        assert join_ranks(2).replica == rank // 2
    else:
        with pytest.raises(UserError, match="the 2 ranks of a replica on one node"):
            join_ranks(2)


@pytest.mark.parametrize("device, left_out", [("cpu", False), ("cuda", True)])
def test_the_baseline_is_not_run_twice_on_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, left_out: bool
) -> None:
    from evaluation.launch import ranks

    monkeypatch.setattr(ranks, "choose_device", lambda wanted: device)
    config = parse(["pearl", "smollm2-135m", "--gamma", "3"])
    found: RunConfig = meaningful(config)
    assert ("autoregressive-all" in found.methods) != left_out
    assert set(config.methods) - set(found.methods) <= {"autoregressive-all"}
    assert found.output == default_output(found)
    assert ("autoregressive-all is left out" in capsys.readouterr().err) == left_out
    elsewhere = meaningful(parse(["pearl", "smollm2-135m", "--output", "there"]))
    assert elsewhere.output == Path("there")
    assert measure.meaningful(parse(["pld", "smollm2-135m"])).methods == ("autoregressive", "pld")


class Clock:
    """A GPU's events, on a GPU that reads two terabytes in a second."""

    read = 0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = Clock.read / 2e12

    def synchronize(self) -> None:
        return

    def elapsed_time(self, end: "Clock") -> float:
        return 1e3 * (end.at - self.at)


def test_a_gpu_reads_much_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    summed, sizes = torch.Tensor.sum, list[int]()

    def sum_(self: torch.Tensor, *args: object) -> torch.Tensor:
        if not self.is_cuda:
            return summed(self)
        Clock.read += self.nbytes
        sizes.append(self.nbytes)
        return summed(self[:8])

    monkeypatch.setattr(torch.Tensor, "sum", sum_)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(provenance, "MOST_BYTES", 1 << 20)
    gpus = PretendedGpus(1)
    with pretended(gpus):
        assert read_bandwidth(1, "cuda") == pytest.approx(2e12)
    assert len(sizes) == 3 * GPU_READS and set(sizes) == {1 << 20}
    assert gpus.log["read"] == 0, "nothing waits but for the events"


def test_a_header_keeps_the_rows_that_were_found() -> None:
    assert RunHeader.from_json(RAW | {"row_counts": [4, 64]}).to_json()["row_counts"] == [4, 64]
    with pytest.raises(UserError, match="row_counts"):
        RunHeader.from_json(RAW | {"row_counts": "all"})


RAW = {
    "schema_version": 1,
    "method": "pld",
    "pair": "p",
    "benchmark": "b",
    "dtype": "float32",
    "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0},
    "max_new_tokens": 4,
}
