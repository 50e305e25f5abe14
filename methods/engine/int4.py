"""Matrices in 4 bits with a step and a minimum per group of 32 inputs: 5 bits a weight to read, for drafts, whose
precision costs agreement and never exactness.

The grid is that of GGUF's Q4_1 blocks (llama.cpp's ggml-common.h). Weights that came in such blocks are found on it
again, exactly in fp32; rounded to bf16 they lose nothing more, as a bf16 number is nearer to its own of the 16 levels
than to any other. Of weights that never were on a grid, 4 bits keep less: see methods/README.md.

Legend: O outputs (rows), I inputs, G groups of a row, K inputs of a group, M groups in all.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

GROUP = 32  # K
LEVELS = 15  # the largest value
MINIMUM = ".minimum"  # a matrix NAME in 4 bits has its steps where one in 8 has its scales, its minima in NAME.minimum
INWARD = (0.0, 0.05)  # parts of a group's range by which the outermost levels begin inside it
REFITS = 3  # by then a refit lowers the error by less than 1%
BATCH = 8192  # groups at a time, which the processor's caches hold


@dataclass(frozen=True)
class Int4:
    """Weight (o, i) is values_OI[o, i] * steps_OG[o, i // 32] + minima_OG[o, i // 32], the values 0 .. 15. `packed_OJ`
    has two of them in a byte, uint8 [O, I / 2]: input 2 j in the lower half. Steps and minima are in fp16. `dtype`: of
    what the matrix is multiplied with."""

    packed_OJ: Tensor
    steps_OG: Tensor
    minima_OG: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """The nearest that a short search finds, by squared error in each group: no worse than levels from a group's
        smallest to its largest weight. I is a multiple of 32, and weights beyond fp16's range become infinite."""
        groups_MK = weight_OI.reshape(-1, GROUP)
        values, steps, minima = (torch.cat(parts) for parts in zip(*map(_fitted, groups_MK.split(BATCH)), strict=True))
        rows = len(weight_OI)
        pairs = values.view(rows, -1, 2)
        return cls(pairs[..., 0] | pairs[..., 1] << 4, steps.view(rows, -1), minima.view(rows, -1), weight_OI.dtype)

    @property
    def shape(self) -> torch.Size:
        rows, bytes_of_row = self.packed_OJ.shape
        return torch.Size((rows, 2 * bytes_of_row))

    @property
    def device(self) -> torch.device:
        return self.packed_OJ.device

    @property
    def values_OI(self) -> Tensor:
        """0 .. 15, uint8."""
        return torch.stack((self.packed_OJ & 15, self.packed_OJ >> 4), -1).flatten(1)

    def widened(self) -> Tensor:
        """The matrix in its dtype."""
        values_OGK = self.values_OI.unflatten(1, (-1, GROUP))
        weights_OGK = values_OGK * self.steps_OG.float()[..., None] + self.minima_OG.float()[..., None]
        return weights_OGK.flatten(1).to(self.dtype)


def _fitted(groups_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, uint8 [M, K], steps and minima, fp16 [M]. Only groups that are on no grid are searched."""
    groups_MK = groups_MK.float()
    found = _from_range(groups_MK, 0.0)
    off_M = found.errors_M > 0
    if bool(off_M.any()):
        found.put(off_M, _searched(groups_MK[off_M]))
    values_MK = found.values_MK.nan_to_num(0).to(torch.uint8)  # what is NaN has a minimum that is
    return values_MK, found.steps_M.half(), found.minima_M.half()


@dataclass(frozen=True)
class _Fit:
    """A grid for each group and the nearest values on it, all in fp32, with the squared errors."""

    values_MK: Tensor
    steps_M: Tensor
    minima_M: Tensor
    errors_M: Tensor

    def put(self, where_M: Tensor, other: "_Fit") -> None:
        """Take the other's groups, in order, for those that are marked."""
        for name in ("values_MK", "steps_M", "minima_M", "errors_M"):
            getattr(self, name)[where_M] = getattr(other, name)

    def at(self, where_M: Tensor) -> "_Fit":
        return _Fit(*(part[where_M] for part in (self.values_MK, self.steps_M, self.minima_M, self.errors_M)))


def _searched(groups_MK: Tensor) -> _Fit:
    """From levels over the whole range, and over a little less, steps and minima are fitted to the values and values
    rounded to these in turn, as in llama.cpp's make_qkx2_quants; the best of all that came up."""
    best = _from_range(groups_MK, 0.0)
    for inward in INWARD:
        fit = _from_range(groups_MK, inward)
        for _ in range(REFITS):
            fit = _on_grid(groups_MK, *_least_squares(groups_MK, fit.values_MK))
            better_M = fit.errors_M < best.errors_M
            best.put(better_M, fit.at(better_M))
    return best


def _from_range(groups_MK: Tensor, inward: float) -> _Fit:
    """Levels evenly from a group's smallest to its largest weight, both moved inward by a part of the range."""
    low_M, high_M = groups_MK.aminmax(dim=1)
    range_M = high_M - low_M
    return _on_grid(groups_MK, range_M * (1 - 2 * inward) / LEVELS, low_M + inward * range_M)


def _on_grid(groups_MK: Tensor, steps_M: Tensor, minima_M: Tensor) -> _Fit:
    """The nearest values on grids whose steps and minima are rounded to fp16."""
    steps_M, minima_M = steps_M.half().float(), minima_M.half().float()
    per_step_M = torch.where(steps_M > 0, 1 / steps_M, 0)
    values_MK = ((groups_MK - minima_M[:, None]) * per_step_M[:, None]).round_().clamp_(0, LEVELS)
    weights_MK = values_MK * steps_M[:, None] + minima_M[:, None]
    return _Fit(values_MK, steps_M, minima_M, (weights_MK - groups_MK).square_().sum(1))


def _least_squares(groups_MK: Tensor, values_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Steps and minima that are best for the values; steps of 0 where these are all the same."""
    values_M, weights_M = values_MK.sum(1), groups_MK.sum(1)
    spread_M = GROUP * (values_MK * values_MK).sum(1) - values_M * values_M
    common_M = GROUP * (values_MK * groups_MK).sum(1) - values_M * weights_M
    steps_M = torch.where(spread_M > 0, common_M / spread_M, 0)
    return steps_M, (weights_M - steps_M * values_M) / GROUP
