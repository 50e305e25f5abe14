"""This module says who this process is: its rank, its replica, and the devices that it owns.

A replica is as many ranks as the most demanding method of the launch needs: the target's, of which there are several
where it is split by --tensor-parallel, and behind it the draft's, if that has one. The first leads. Replicas share the
questions. `processes.py` starts the processes, or an outer launcher does, on one node or several: `accelerate launch
--num_processes N` on GPUs, `torchrun --nproc_per_node N` on CPUs (of which accelerate launches one only).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from evaluation.launch.gpus import slices, split_gpus
from methods.errors import PeerError, UserError, one_line

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from methods.engine.link import Link
    from methods.engine.team import Team

PATIENCE = 6.0  # seconds that a rank waits for the other within a round
_PATIENT = timedelta(days=7)  # where replicas wait for each other, or the draft for the next question


@dataclass(frozen=True)
class Ranks:
    """`rank` of `world` processes, `local_rank` of `local_world` on this node, `size` ranks to a replica, of which the
    first `targets` are the target's."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    size: int
    targets: int = 1

    @property
    def replica(self) -> int:
        return self.rank // self.size

    @property
    def replicas(self) -> int:
        return self.world // self.size

    @property
    def leads(self) -> bool:
        """Say whether this rank decodes and writes for its replica."""
        return self.place == 0

    @property
    def follows(self) -> bool:
        """Say whether this rank has a part of the target and another one leads."""
        return 0 < self.place < self.targets

    @property
    def drafts(self) -> bool:
        """Say whether this rank drafts alone."""
        return self.place >= self.targets

    @property
    def place(self) -> int:
        """Of this rank in its replica."""
        return self.rank % self.size

    @property
    def first(self) -> int:
        """The rank that leads its replica."""
        return self.rank - self.place


def join_ranks(size: int, targets: int = 1) -> Ranks:
    """Join the process group that the launcher set up, if any. `size`: ranks that one replica needs, `targets` of them
    for the target."""
    env = {name: int(os.environ.get(name, default)) for name, default in _LAUNCHED.items()}
    ranks = Ranks(env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"], size, targets)
    if ranks.world % size:
        raise UserError(
            f"expected processes in multiples of {size}, which the chosen methods need"
            f"{' with --tensor-parallel' if targets > 1 else ''}, got {ranks.world}: launch {size} or a multiple of it"
        )
    if "LOCAL_WORLD_SIZE" in os.environ and (ranks.local_world % size or (ranks.rank - ranks.local_rank) % size):
        raise UserError(
            f"expected the {size} ranks of a replica on one node, where they have one clock, got {ranks.local_world} "
            f"processes on this node: launch {size} or a multiple of it on each"
        )
    if ranks.world > 1:
        from accelerate import PartialState

        # What ranks tell each other here is control: by gloo, so that two of them may share one GPU.
        with _together(ranks, "to join"):
            PartialState(cpu=True, timeout=_PATIENT)
    return ranks


_LAUNCHED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def gather(ranks: Ranks, items: list[Any]) -> list[Any]:
    """Return the items of all ranks, in order of rank, on every rank. All must call it."""
    if ranks.world == 1:
        return items
    from accelerate.utils import gather_object

    with _together(ranks, "for what they have"):
        return gather_object(items)


@contextmanager
def _together(ranks: Ranks, what: str) -> Iterator[None]:
    """What all ranks do together fails in the middle only where one of them has ended."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = one_line(error)
        raise PeerError(
            f"rank {ranks.rank} waited for the other ranks {what}, of which one has ended ({reason})"
        ) from error


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda" for "auto" and for what the user asked for."""
    import torch

    if wanted != "cpu":
        slices()  # before CUDA has seen what there is
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a CUDA device for --device cuda, found none; leave it out to run on the CPU")
    return "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


@dataclass(frozen=True)
class Share:
    """A share is what a rank owns: devices, their names for the run header, CPU threads. `names_of`: of every rank of
    its replica, of which the first `targets` are the target's; `all_cores`, `all_threads`: those of all ranks of its
    replica."""

    devices: list["torch.device"]
    names: list[str]
    threads: int
    names_of: list[list[str]]
    all_cores: list[int]
    all_threads: int
    targets: int = 1

    @property
    def all_names(self) -> list[str]:
        """Those of all ranks of its replica."""
        return self._names(slice(None))

    @property
    def target_names(self) -> list[str]:
        """Those of the target's ranks."""
        return self._names(slice(self.targets))

    @property
    def draft_names(self) -> list[str]:
        """Those of the draft's rank, if there is one."""
        return self._names(slice(self.targets, None))

    def _names(self, ranks: slice) -> list[str]:
        return list(dict.fromkeys(name for names in self.names_of[ranks] for name in names))

    @property
    def shared(self) -> list[str]:
        """The GPUs on which the target and the draft of its replica compute in turn."""
        return [name for name in self.target_names if name in self.draft_names and not name.startswith("cpu")]


def take_share(ranks: Ranks, device: str, threads: int | None, draft_gpus: int = 1) -> Share:
    """Take this rank's share of the node.

    CUDA: the visible GPUs, as `split_gpus` has them. CPU: a set of cores each."""
    import torch

    node = sorted(os.sched_getaffinity(0))
    cores = _share(node, ranks, ranks.local_rank)
    first = ranks.local_rank // ranks.size * ranks.size
    together = range(first, min(first + ranks.size, ranks.local_world))
    all_cores = sorted({core for local_rank in together for core in _share(node, ranks, local_rank)})
    if ranks.local_world > 1:
        os.sched_setaffinity(0, cores)
    threads = threads or len(cores)
    torch.set_num_threads(threads)
    all_threads = min(threads * len(together), len(all_cores))
    if device == "cpu":
        cores_of = (_share(node, ranks, local_rank) for local_rank in range(ranks.local_world))
        each = [["cpu:" + ",".join(map(str, own))] for own in cores_of]
        devices = [torch.device("cpu")]
    else:
        each = gpus_of(ranks, draft_gpus)
        numbers = [name.rpartition(":")[2] for name in each[ranks.local_rank]]
        devices = [torch.device("cuda", int(number) if number.isdecimal() else 0) for number in numbers]
        torch.cuda.set_device(devices[0])
    names_of = [each[local_rank] for local_rank in together]
    return Share(devices, each[ranks.local_rank], threads, names_of, all_cores, all_threads, ranks.targets)


def gpus_of(ranks: Ranks, draft_gpus: int) -> list[list[str]]:
    """The names of the GPUs that each rank of this node owns, or of its slice of one."""
    import torch

    if found := slices():
        if ranks.targets > 1:
            raise UserError("expected whole GPUs for --tensor-parallel, got slices of them (MIG), which share no sums")
        return [[found[rank % len(found)]] for rank in range(ranks.local_world)]
    split = split_gpus(torch.cuda.device_count(), ranks.local_world, ranks.size, draft_gpus, ranks.targets)
    return [[f"cuda:{number}" for number in numbers] for numbers in split]


@contextmanager
def all_devices(share: Share) -> Iterator[None]:
    """Let this rank use the cores of its whole replica. GPUs need no more: the target's layers run one after the other,
    so one sequence is no faster on several."""
    import torch

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share.all_cores)
    torch.set_num_threads(share.all_threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(share.threads)


def open_link(ranks: Ranks) -> "Link | None":
    """Open the link between the leading and the drafting rank of this replica; None for a rank that is neither. All
    ranks must call it."""
    if ranks.size == ranks.targets:
        return None
    from methods.pearl.messages import KINDS

    return _link(ranks, ranks.targets, "draft", KINDS)


def open_team(ranks: Ranks, device: str) -> "Team | None":
    """Bring the target's ranks of this replica together; None where there is one, or for one that drafts. All ranks
    must call it. `device`: "cpu" or "cuda", on which they add up their sums."""
    if ranks.targets == 1:
        return None
    from methods.engine.split import Part
    from methods.engine.team import KINDS, Team

    links = [_link(ranks, place, f"part {place + 1} of the target", KINDS) for place in range(1, ranks.targets)]
    on_cuda = device == "cuda"
    group = _group(ranks, range(ranks.targets), "nccl" if on_cuda else "gloo")
    if ranks.drafts:
        return None
    return Team(Part(ranks.place, ranks.targets), group, [link for link in links if link is not None], on_cuda)


def _link(ranks: Ranks, place: int, name: str, kinds: Sequence[type]) -> "Link | None":
    """Link the leading rank of each replica with another one, whose place and name are these; returns this rank's end
    if it has one. All ranks must call it."""
    from methods.engine.socket_link import SocketLink, meeting_place, reach

    names = f"rank {ranks.first} (target)", f"rank {ranks.first + place} ({name})"
    with meeting_place(patience()) as (address, wait), _together(ranks, "to be linked"):
        addresses = gather(ranks, [address])
        if ranks.place == place:
            end = reach(addresses[ranks.first])
        elif ranks.leads:
            end = wait()
        gather(ranks, [None])  # the places are needed until all have met
    if ranks.place not in (0, place):
        return None
    return SocketLink(end, names if ranks.leads else names[::-1], patience(), kinds)


def _group(ranks: Ranks, places: Sequence[int], backend: str) -> "dist.ProcessGroup":
    """Make a group of the ranks in these places for each replica; returns that of this one. All ranks must call it."""
    import torch.distributed as dist

    with _together(ranks, "to be linked"):
        groups = [
            dist.new_group([first + place for place in places], timeout=_PATIENT, backend=backend)
            for first in range(0, ranks.world, ranks.size)
        ]
    return groups[ranks.replica]


def patience() -> float:
    """Return how many seconds a rank waits for the other within a round."""
    given = os.environ.get("PEARL_BENCH_PATIENCE", str(PATIENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"expected PEARL_BENCH_PATIENCE to be a number of seconds above 0, got {given!r}")
    return seconds


def _share(items: list[int], ranks: Ranks, local_rank: int) -> list[int]:
    """A local rank's part of the node's cores; with fewer items than ranks, one item in turn."""
    if len(items) < ranks.local_world:
        return [items[local_rank % len(items)]]
    size = len(items) // ranks.local_world
    return items[local_rank * size : (local_rank + 1) * size]
