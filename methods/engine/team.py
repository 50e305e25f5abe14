"""The ranks that share a target by tensor parallelism: the first leads, the others follow.

The leading rank decides what is computed and tells the others before each pass; then all run the same layers, each its
part, and add up what the others have. Whatever a pass reads travels with the order, so a follower decides nothing.

Legend: N rows of a pass, D width, T prompt tokens, A kept nodes of a tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from methods.engine.link import Link
from methods.engine.split import Part
from methods.errors import PeerError


@dataclass(frozen=True)
class Loaded:
    """Follower to leader: its part is loaded, and gives a row the same bits at these numbers of rows (none: at any)."""

    row_counts: list[int]


@dataclass(frozen=True)
class Prompt:
    """A pass over a whole prompt, with which the cache begins anew."""

    tokens_T: list[int]


@dataclass(frozen=True)
class Pass:
    """A pass over the nodes of a tree behind its first `known`; its root follows the first `start` rows of the cache.
    parents_N: none of a chain."""

    start: int
    known: int
    tokens_N: list[int]
    parents_N: list[int] | None


@dataclass(frozen=True)
class Pack:
    """The rows start + path_A move to start .. start + A."""

    start: int
    path_A: list[int]


@dataclass(frozen=True)
class Rest:
    """There are no orders until the ranks have done something else together."""


KINDS = (Loaded, Prompt, Pass, Pack, Rest)


class Team:
    """One rank's side. `group`: of all the team's ranks; `links`: the leader has one to each of the others, in order,
    each of these one to the leader. `collective`: sums are gathered by the group's own operation, as NCCL has to; else
    each rank sends its own to each other one, which over gloo takes a fourth of the time."""

    def __init__(self, part: Part, group: dist.ProcessGroup, links: Sequence[Link], collective: bool) -> None:
        self.part, self.group, self.links, self.collective = part, group, list(links), collective

    def tell(self, order: Any) -> None:
        """Leader: give all others an order."""
        for link in self.links:
            link.send(order)

    def close(self) -> None:
        """Part from the others. All must call it."""
        for link in self.links:
            link.close()

    def gather(self, own_ND: Tensor) -> Tensor:
        """The partial sums of all ranks in their order, [ranks, N, D] in fp32, on each of them. To be called by all,
        with equally many rows."""
        try:
            return self._gathered(own_ND.contiguous())
        except RuntimeError as error:  # of which the transport has many
            reason = str(error).splitlines()[0]
            raise PeerError(
                f"{self.links[0].names[0]} waited for the sums of the target's other ranks, of which one has ended "
                f"({reason})"
            ) from error

    def _gathered(self, own_ND: Tensor) -> Tensor:
        parts_RND = own_ND.new_empty(self.part.count, *own_ND.shape)
        if self.collective:
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name
            gather(parts_RND.flatten(0, 1), own_ND, self.group)
            return parts_RND
        others = [rank for rank in range(self.part.count) if rank != self.part.index]
        coming = [self.group.recv([parts_RND[rank]], rank, 0) for rank in others]
        for work in [*(self.group.send([own_ND], rank, 0) for rank in others), *coming]:
            work.wait()
        parts_RND[self.part.index] = own_ND
        return parts_RND
