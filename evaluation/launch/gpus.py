"""This module says which GPUs, or slices of GPUs, each rank of a node owns.

Of a replica of two ranks the draft's gets one GPU, or as many as it needs, and the target's all others, as in the
papers: a target of 70 billion parameters on three, its draft on the fourth. Where the target is split among ranks, each
of these has one. MIG cuts a GPU into slices, of which CUDA shows a process one at most: each rank then sees its own.
"""

import os
from functools import cache

from methods.errors import UserError

VISIBLE, SLICE = "CUDA_VISIBLE_DEVICES", "MIG-"


def split_gpus(count: int, ranks: int, size: int, draft_gpus: int = 1, targets: int = 1) -> list[list[int]]:
    """Return the GPUs of each of a node's ranks, of which `size` make a replica, the `targets` of the target first.
    Where there are fewer GPUs than ranks, each rank has one, and several have the same."""
    replicas = ranks // size
    each = count // replicas
    if targets > 1:
        return [part for number in range(replicas) for part in _parts(number, each, size, draft_gpus, targets)]
    if draft_gpus > 1 and size > 1 and each <= draft_gpus:
        what = f"one of the {each} GPUs of a replica"
        raise UserError(f"expected --draft-gpus to leave the target {what}, got {draft_gpus}; make it smaller")
    if each < size:
        return [[rank % count] for rank in range(ranks)]
    found = []
    for first in range(0, ranks // size * each, each):
        own = list(range(first, first + each))
        found += [own[:-draft_gpus], own[-draft_gpus:]] if size > 1 else [own]
    return found


def _parts(number: int, each: int, size: int, draft_gpus: int, targets: int) -> list[list[int]]:
    """The GPUs of the ranks of a replica whose target is split: a draft that finds none left shares the last one's."""
    if each < targets:
        raise UserError(
            f"expected a GPU of this node for each of the {targets} ranks of --tensor-parallel, got {each}; make it "
            "smaller, or take fewer --replicas"
        )
    own = list(range(number * each, (number + 1) * each))
    drafts = own[targets : targets + draft_gpus] or own[-1:]
    if draft_gpus > len(drafts):
        raise UserError(f"expected --draft-gpus beside {targets} of {each} GPUs, got {draft_gpus}; make it smaller")
    return [[gpu] for gpu in own[:targets]] + ([drafts] if size > targets else [])


@cache
def slices() -> list[str]:
    """Return the slices of GPUs that the ranks of this node share, as the process was given them; none without MIG.

    To be called before CUDA is asked for anything: a rank is shown its own slice alone from then on."""
    names = [name for part in os.environ.get(VISIBLE, "").split(",") if (name := part.strip()).startswith(SLICE)]
    if names and "LOCAL_RANK" in os.environ:
        os.environ[VISIBLE] = names[int(os.environ["LOCAL_RANK"]) % len(names)]
    return names
