"""Which GPU holds which layers of a model. Pure: bytes in, places out.

A model takes the fewest GPUs that hold its weights, its keys and values, and leave each GPU some room; among these GPUs
its layers lie in proportion to the room, so that what comes later finds as much as can be had. What is loaded behind
it, such as a draft, goes by the same rule where most room is left then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from methods.engine.config import ModelConfig
from methods.engine.weights import expected_shapes

RESERVE = 2 << 30  # bytes left free on each GPU: what a pass computes, and CUDA's own
STEPS = 40  # halvings, by which the least share of the GPUs' room is found


@dataclass(frozen=True)
class Need:
    """Bytes of each of the `layers`, with its keys and values; `first` and `last` lie beside the first and the last of
    them; `apart`: beside the last, where that is on another GPU than the first."""

    layers: int
    layer: int
    first: int
    last: int
    apart: int = 0

    @classmethod
    def of(cls, config: ModelConfig, size: int, rows: int) -> "Need":
        """Of a model whose weights take `size` bytes each and whose cache holds so many rows."""
        shapes = {name: size * prod(shape) for name, shape in expected_shapes(config).items()}
        layer = sum(bytes_ for name, bytes_ in shapes.items() if name.startswith("model.layers.0."))
        cached = 2 * config.kv_heads * config.head_dim * rows * size
        embedding, norm = shapes["model.embed_tokens.weight"], shapes["model.norm.weight"]
        head = shapes.get("lm_head.weight", 0)
        return cls(config.layers, layer + cached, embedding, norm + head, 0 if head else embedding)

    @property
    def total(self) -> int:
        """On one GPU."""
        return self.layers * self.layer + self.first + self.last


def place(need: Need, free: Mapping[int, int], reserve: int = RESERVE) -> list[int] | None:
    """The GPU of every layer, in ascending order; None where the GPUs together cannot hold it. `free`: bytes of each
    GPU, by its number. Where fewer GPUs are enough, those with most room are taken."""
    roomiest = sorted(free, key=lambda gpu: (-free[gpu], gpu))
    for count in range(1, len(free) + 1):
        chosen = sorted(roomiest[:count])
        layers = spread(need, [free[gpu] - reserve for gpu in chosen])
        if layers is not None:
            return [gpu for gpu, several in zip(chosen, layers, strict=True) for _ in range(several)]
    return None


def spread(need: Need, rooms: Sequence[int]) -> list[int] | None:
    """How many layers each GPU takes, at least one, so that the fullest is as empty as can be; None where they do not
    fit. `rooms`: bytes of each, in the order of the layers."""
    if _filled(need, rooms, 1.0) is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _filled(need, rooms, middle) else (middle, high)
    return _filled(need, rooms, high)


def _filled(need: Need, rooms: Sequence[int], share: float) -> list[int] | None:
    """The same where each GPU may be filled to this share of its room, the first ones first."""
    counts, left = list[int](), need.layers
    for place, room in enumerate(rooms):
        behind = len(rooms) - place - 1
        beside = need.first if place == 0 else 0
        beside += 0 if behind else need.last + (need.apart if place else 0)
        fits = int((share * room - beside) // need.layer)
        counts.append(min(fits, left - behind) if behind else left)
        if not 1 <= counts[-1] <= fits:
            return None
        left -= counts[-1]
    return counts
