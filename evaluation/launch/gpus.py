"""This module says which GPUs, or slices of GPUs, each rank of a node owns.

Of a replica of two ranks the draft's gets one GPU, or as many as it needs, and the target's all others, as in the
papers: a target of 70 billion parameters on three, its draft on the fourth. MIG cuts a GPU into slices, of which CUDA
shows a process no more than one: each rank then sees its own.
"""

import os
from functools import cache

from methods.errors import UserError

VISIBLE, SLICE = "CUDA_VISIBLE_DEVICES", "MIG-"


def split_gpus(count: int, ranks: int, size: int, draft_gpus: int = 1) -> list[list[int]]:
    """Return the GPUs of each of a node's ranks, of which `size` make a replica, the target's first. Where there are
    fewer GPUs than ranks, each rank has one, and several have the same."""
    each = count // (ranks // size)
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


@cache
def slices() -> list[str]:
    """Return the slices of GPUs that the ranks of this node share, as the process was given them; none without MIG.

    To be called before CUDA is asked for anything: a rank is shown its own slice alone from then on."""
    names = [name for part in os.environ.get(VISIBLE, "").split(",") if (name := part.strip()).startswith(SLICE)]
    if names and "LOCAL_RANK" in os.environ:
        os.environ[VISIBLE] = names[int(os.environ["LOCAL_RANK"]) % len(names)]
    return names
