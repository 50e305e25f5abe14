"""What the Transformer asks of the operators that it runs on. Each backend keeps the contract of row-invariance: a row
has the same bits however many rows are computed together, and wherever in the cache its keys lie.

Legend: N rows of a pass, A kept rows of a tree, I inputs, O outputs, D width, E width of what lies beside.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from methods.engine.tree import TokenTree

Best = Tensor | Sequence[tuple[float, float]]  # of each row the best token and its logit, on a device or here


class LinearLayer(Protocol):
    """y = x W^T + b for x [N, I] -> y [N, O], weights fixed for inference."""

    @property
    def weight_size(self) -> float:
        """Bytes that a weight takes in memory, in 4 bits with its part of what a group shares."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        ...

    def __call__(self, x_NI: Tensor) -> Tensor: ...


class LayerParts(Protocol):
    """A layer of the Transformer, whose parts a stack may run its own way."""

    device: torch.device
    attention_norm_D: Tensor | None
    beside_norm_E: Tensor | None
    mlp_norm_D: Tensor
    q_norm_d: Tensor | None
    k_norm_d: Tensor | None
    qkv: LinearLayer
    out: LinearLayer
    gate_up: LinearLayer
    down: LinearLayer

    def __call__(
        self, x_ND: Tensor, rotation: tuple[Tensor, Tensor], attend: Any, beside_NE: Tensor | None = None
    ) -> Tensor: ...


class KeyValueCache(Protocol):
    """Keys and values of all layers. Row i holds the i-th committed token; the rows behind those are provisional. What
    `prompt` and `view` give is the backend's own, for its `Stack`."""

    def prompt(self) -> Any:
        """What the rows of a pass over a whole prompt see."""
        ...

    def view(self, start: int, tree: TokenTree, known: int = 0, exact: bool = True) -> Any:
        """What the rows of a pass over the nodes of `tree` behind its first `known` see, which have their rows already.
        The root follows the first `start` rows. Not `exact`: of a draft, whose rows need not have the same bits in
        every pass; a backend that pays for these may be faster then."""
        ...

    def pack(self, start: int, path_A: Tensor) -> None:
        """Move rows start + path_A to start .. start + A (path_A ascending)."""
        ...


class RecordedPasses(Protocol):
    """Passes of a model over its cache that are recorded, and replayed by one command."""

    def __call__(
        self, tree: TokenTree, known: int, start: int, rows: int, taps: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, Best] | None:
        """Logits, features, and of each row the best token and its logit, of the nodes of a tree behind its first
        `known`, which have their rows already, by a pass that was recorded with so many rows, or is now. The root
        follows the first `start` rows. None where passes cannot be recorded, or not for so many nodes."""
        ...


class Stack(Protocol):
    """The layers of a model on a backend. `operators`: their name, for the run header; `min_rows`: fewest rows of a
    pass whose bits are those of any other. `row_counts`: the numbers of rows, ascending, at which a row has the same
    bits: a pass has one of them, and a larger one is made in parts. None: any number from `min_rows` on."""

    operators: str
    min_rows: int
    row_counts: tuple[int, ...] | None

    def measure_rows(self, *others: LinearLayer) -> None:
        """Find out at which numbers of rows these layers, and `others`, give the same bits."""
        ...

    def fewer_rows(self) -> bool:
        """Give up all numbers of rows but the surest one. Returns whether that changes anything."""
        ...

    def new_cache(self, layers: int, rows: int) -> KeyValueCache:
        """An empty cache for the first `layers` layers."""
        ...

    def recorder(self, model: Any, cache: Any) -> RecordedPasses | None:
        """What records passes of `model`, which is made of these layers, over its cache. None: nothing is recorded."""
        ...

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019)."""
        ...

    def __call__(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: Any,
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        """The residual stream x_ND after layers first .. stop. `rotation`: cosine and signed sine, [N, 1, d], fp32.
        `beside_NE`: what layers that have a norm for it read beside the stream."""
        ...
