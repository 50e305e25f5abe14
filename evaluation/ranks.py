"""Who this process is: its rank, its replica, and the devices it owns.

A replica is as many ranks as the most demanding method of the launch needs; replicas share the questions. Processes
come from `accelerate launch --num_processes N` on GPUs, or `torchrun --nproc_per_node N` on CPUs (of which accelerate
launches one only), on one node or several; a plain start is a launch of one.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from methods.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ranks:
    """`rank` of `world` processes, `local_rank` of `local_world` on this node, `size` ranks to a replica."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    size: int

    @property
    def replica(self) -> int:
        return self.rank // self.size

    @property
    def replicas(self) -> int:
        return self.world // self.size

    @property
    def leads(self) -> bool:
        """Whether this rank decodes and writes for its replica."""
        return self.rank % self.size == 0


def join_ranks(size: int, device: str) -> Ranks:
    """Join the process group that the launcher set up, if any. `size`: ranks that one replica needs."""
    env = {name: int(os.environ.get(name, default)) for name, default in _LAUNCHED.items()}
    ranks = Ranks(env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"], size)
    if ranks.world % size:
        raise UserError(
            f"expected processes in multiples of {size}, which the chosen methods need, got {ranks.world}: "
            f"launch {size} or a multiple of it"
        )
    if ranks.world > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
    return ranks


_LAUNCHED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def gather(ranks: Ranks, items: list[Any]) -> list[Any]:
    """The items of all ranks, in order of rank, on every rank. All must call it."""
    if ranks.world == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda" for "auto" and for what the user asked for."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a CUDA device for --device cuda, found none; leave it out to run on the CPU")
    return "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


def own_devices(ranks: Ranks, device: str, threads: int | None) -> tuple[list["torch.device"], list[str], int]:
    """Take this rank's share of the node: devices, their names for the run header, and CPU threads.

    CUDA: the visible GPUs in equal parts, shared where there are more ranks than GPUs. CPU: a set of cores each."""
    import torch

    cores = _share(sorted(os.sched_getaffinity(0)), ranks)
    if ranks.local_world > 1:
        os.sched_setaffinity(0, cores)
    threads = threads or len(cores)
    torch.set_num_threads(threads)
    if device == "cpu":
        return [torch.device("cpu")], ["cpu:" + ",".join(map(str, cores))], threads
    own = _share(list(range(torch.cuda.device_count())), ranks)
    torch.cuda.set_device(own[0])
    return [torch.device("cuda", i) for i in own], [f"cuda:{i}" for i in own], threads


def _share(items: list[int], ranks: Ranks) -> list[int]:
    """This local rank's part of the node's cores or GPUs; with fewer items than ranks, one item in turn."""
    if len(items) < ranks.local_world:
        return [items[ranks.local_rank % len(items)]]
    size = len(items) // ranks.local_world
    return items[ranks.local_rank * size : (ranks.local_rank + 1) * size]
