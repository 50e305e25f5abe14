"""The cache on CUDA, and attention to it that sums keys in the order of their positions: see kernels.py.

Legend: N rows of a pass, M nodes of its tree, the known ones included, T prompt tokens, H query heads, K key/value
heads, d head width, S splits of positions, C cache rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from methods.engine.backends.cuda.kernels import merge_kernel, partial_kernel, paths_kernel
from methods.engine.backends.cuda.launch import INTERPRETED, launch, power_of_two
from methods.engine.backends.pytorch import Cache, causal_attention
from methods.engine.config import ModelConfig
from methods.engine.tree import TokenTree

SPLIT = 256  # positions of a partial sum,
BLOCK = 64  # of which so many are multiplied at once
TOGETHER = 16  # splits that are merged at once
STATE = 2  # numbers of a state before the parents: committed rows, known nodes


class PositionCache(Cache):
    """Keys and values as PyTorch's operators have them. What a pass must know of the cache lies on its device."""

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
        super().__init__(config, rows, dtype, devices)
        self.config = config

    def prompt(self) -> "PromptView":  # type: ignore[override]
        """What the rows of a prompt see."""
        return PromptView(self)

    def view(self, start: int, tree: TokenTree, known: int = 0, exact: bool = True) -> "TreeView":  # type: ignore[override]
        """What the rows of a pass over the nodes of `tree` behind its first `known` see, which have their rows already.
        The root follows the first `start` rows. Bits cost nothing here, so there is no other view for a draft."""
        nodes = tree.nodes
        state_S = torch.cat((torch.tensor([start, known]), tree.parents_N)).int().to(next(iter(self.data)))
        return TreeView(self, {device: state_S.to(device) for device in self.data}, nodes - known, start + nodes)


class PromptView:
    """Attention of a prompt to itself: the same call for every method, so it may be any kernel."""

    def __init__(self, cache: PositionCache) -> None:
        self.cache = cache
        self.states = {device: torch.zeros(STATE, dtype=torch.int32, device=device) for device in cache.data}

    def attend(self, layer: int, q_THd: Tensor) -> Tensor:
        """[T, H d], behind the prompt's keys and values having been written."""
        k_TKd, v_TKd = (part[:, : len(q_THd)].transpose(0, 1) for part in self.cache.layers[layer])
        return causal_attention(q_THd, k_TKd, v_TKd)


class TreeView:
    """Attention of a pass to the cache."""

    def __init__(self, cache: PositionCache, states: dict[torch.device, Tensor], rows: int, longest: int) -> None:
        """`states`: on each device int32 [STATE + M], the committed rows, the known nodes, the parents of all nodes.
        `rows`: N. `longest`: the most positions that a row may see."""
        self.cache, self.states = cache, states
        self._of = {device: _Working(cache.config, state_S, rows, longest) for device, state_S in states.items()}

    def positions(self, device: torch.device) -> Tensor:
        """Of the rows, int32 [N], computed on that device."""
        of = self._of[device]
        return of.state_S[0] + of.depths_N

    def attend(self, layer: int, q_NHd: Tensor) -> Tensor:
        """[N, H d], behind the pass's keys and values having been written."""
        return self._of[q_NHd.device].attend(q_NHd, *self.cache.layers[layer])


class _Working:
    """What the kernels of a pass know on one device, and where they put partial sums, layer after layer."""

    def __init__(self, config: ModelConfig, state_S: Tensor, rows: int, longest: int) -> None:
        self.state_S, self.nodes = state_S, len(state_S) - STATE
        self.splits = -(-longest // SPLIT)
        self.own_splits = (SPLIT + self.nodes - 2) // SPLIT + 1  # from the root's on: it may be the last of its split
        self.depths_N = state_S.new_empty(rows)
        self.paths_NM = state_S.new_empty(rows, self.nodes)
        size = rows, config.heads, self.splits
        self.sums_NHSd = state_S.new_empty(*size, config.head_dim, dtype=torch.float32)
        self.tops_NHS2 = state_S.new_empty(*size, 2, dtype=torch.float32)
        launch(paths_kernel, (rows,), state_S, self.depths_N, self.paths_NM, self.nodes, num_warps=1)

    def attend(self, q_NHd: Tensor, keys_KCd: Tensor, values_KCd: Tensor) -> Tensor:
        rows, heads, width = q_NHd.shape
        kv_heads, capacity, _ = keys_KCd.shape
        group = heads // kv_heads
        tile = power_of_two(group)
        shared_tiles = -(-rows * group // tile)
        sizes: dict[str, Any] = {"H": heads, "D": width, "BD": power_of_two(width), "SPLIT": SPLIT}
        launch(
            partial_kernel,
            (shared_tiles * self.splits + rows * self.own_splits, kv_heads),
            *(q_NHd, keys_KCd, values_KCd, self.state_S, self.depths_N, self.paths_NM, self.sums_NHSd, self.tops_NHS2),
            *(rows, self.nodes, capacity, self.splits, shared_tiles, self.own_splits),
            math.log2(math.e) * width**-0.5,
            **sizes,
            KH=kv_heads,
            TILE=tile,
            BLOCK=BLOCK,
            WIDEN=INTERPRETED,
            num_stages=1 if q_NHd.dtype == torch.float32 else 2,
        )
        y_NHd = torch.empty_like(q_NHd)
        parts = self.sums_NHSd, self.tops_NHS2, self.state_S, self.depths_N, y_NHd
        launch(merge_kernel, (rows, heads), *parts, self.splits, **sizes, TOGETHER=TOGETHER)
        return y_NHd.flatten(1)
