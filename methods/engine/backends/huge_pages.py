"""Memory for weights in huge pages. Every pass reads all weights once; with pages of 4 KiB a core looks up an address
for each 64 lines of them. A matrix alone is often smaller than a huge page, so matrices share arenas."""

import contextlib
import mmap

import torch
from torch import Tensor

PAGE = 2 << 20  # bytes of a huge page
ARENA = 32 << 20
LINE = 64  # bytes of a cache line
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # None: the system knows no such pages


class Arena:
    """Zeroed bytes of its own, in huge pages where the system grants them, handed out from the front."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if ADVICE is not None:
            with contextlib.suppress(OSError):  # a kernel without them: the memory is as good as any other
                memory.madvise(ADVICE)
        self.free = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory as long as a part of it is used
        self.free = self.free[-self.free.data_ptr() % PAGE :]

    def take(self, size: int) -> Tensor:
        """The next `size` bytes. They begin at a cache line."""
        taken, self.free = self.free[:size], self.free[-(-size // LINE) * LINE :]
        return taken


_arena: Arena | None = None


def in_huge_pages(tensor: Tensor) -> Tensor:
    """A copy of a CPU tensor, whose memory is never given back to others."""
    global _arena
    size = tensor.nbytes
    if _arena is None or len(_arena.free) < size:
        _arena = Arena(max(ARENA, size))
    return _arena.take(size).view(tensor.dtype).view(tensor.shape).copy_(tensor)
