"""A model split among ranks by tensor parallelism (Shoeybi et al. 2019): which part of it each of them has.

Each rank has some of the query heads, with their keys and values, and some of the MLP's units: rows of the q, k, v,
gate and up matrices, and the columns of the out and down matrices that read these. What the latter give is a partial
sum. Where there are more ranks than key/value heads, several have the same one. All else is whole on every rank. Pure.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from methods.engine.config import ModelConfig
from methods.errors import UserError

PARTS = re.compile(r"\.(q|k|v|o|gate|up|down)_proj\.(?:weight|bias)$")
BY_INPUTS = ("o", "down")


@dataclass(frozen=True)
class Part:
    """The `index`-th of `count`."""

    index: int
    count: int

    def of(self, size: int) -> slice:
        """Its share of `size` things, of which `count` parts have equally many."""
        each = size // self.count
        return slice(self.index * each, (self.index + 1) * each)

    def kv_heads(self, kv_heads: int) -> slice:
        """The key/value heads that its query heads read: some, or one that other parts read too."""
        if self.count <= kv_heads:
            return self.of(kv_heads)
        first = self.index * kv_heads // self.count
        return slice(first, first + 1)


def splits(config: ModelConfig, count: int) -> bool:
    """Whether so many ranks can have equal parts of such a model."""
    evenly = config.heads % count == config.mlp_width % count == 0
    return evenly and (config.kv_heads % count == 0 or count % config.kv_heads == 0)


def part_of(config: ModelConfig, part: Part, source: str) -> ModelConfig:
    """The configuration of a part. Raises UserError where the model cannot be split so; `source`: what its user calls
    it."""
    if not splits(config, part.count):
        possible = [str(count) for count in range(2, config.heads + 1) if splits(config, count)]
        advice = f"choose {' or '.join(possible)}" if possible else "leave it out"
        raise UserError(
            f"expected --tensor-parallel to divide the {config.heads} query heads, the {config.kv_heads} key/value "
            f"heads and the {config.mlp_width} units of the MLP of {source}, got {part.count}; {advice}"
        )
    kv_heads = part.kv_heads(config.kv_heads)
    return replace(
        config,
        heads=config.heads // part.count,
        kv_heads=kv_heads.stop - kv_heads.start,
        mlp_width=config.mlp_width // part.count,
    )


class SplitWeights(Mapping[str, Tensor]):
    """A part's weights, each cut out of the whole one when it is asked for: files are mapped into memory, so no more
    than that is read."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], part: Part) -> None:
        """`config` and `weights` of the whole model."""
        heads, kv_heads = part.of(config.heads), part.kv_heads(config.kv_heads)
        queries, keys, units = (
            _rows(heads, config.head_dim),
            _rows(kv_heads, config.head_dim),
            part.of(config.mlp_width),
        )
        self._slices = {"q": queries, "k": keys, "v": keys, "o": queries, "gate": units, "up": units, "down": units}
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        tensor, found = self.weights[name], PARTS.search(name)
        if found is None:
            return tensor
        own = self._slices[found[1]]
        return tensor[:, own] if found[1] in BY_INPUTS else tensor[own]

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _rows(heads: slice, head_dim: int) -> slice:
    return slice(heads.start * head_dim, heads.stop * head_dim)
