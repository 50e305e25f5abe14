"""Matrices in 8 bits with a scale per row: half the bytes of bf16 to read, for drafts, whose precision costs agreement
and never exactness.

Legend: O outputs (rows), I inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SCALE = ".scale"  # a matrix NAME may be stored in int8, its scales in NAME.scale


@dataclass(frozen=True)
class Int8:
    """Row o is values_OI[o] * scales_O[o], the values -127 .. 127, the scales in fp32. `dtype`: of what the matrix is
    multiplied with."""

    values_OI: Tensor
    scales_O: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """The nearest, symmetric: a row's largest weight becomes 127."""
        scales_O = weight_OI.float().abs().amax(1).clamp(min=1e-12) / 127
        return cls((weight_OI / scales_O[:, None]).round().to(torch.int8), scales_O, weight_OI.dtype)

    @property
    def shape(self) -> torch.Size:
        return self.values_OI.shape

    @property
    def device(self) -> torch.device:
        return self.values_OI.device

    def widened(self) -> Tensor:
        """The matrix in its dtype."""
        return (self.values_OI * self.scales_O[:, None]).to(self.dtype)


class ScaledWeights(Mapping[str, Tensor]):
    """Tensors as a file holds them, of which any matrix may be in int8. Scales are found, but not listed."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored[name]
        if tensor.dtype == torch.int8 and name + SCALE not in self.stored:
            raise KeyError(name)  # without its scales a matrix is not there
        return tensor

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.stored if not name.endswith(SCALE))

    def __len__(self) -> int:
        return sum(1 for _ in self)
