"""CUDA graphs of passes: what a pass launches is recorded once for each number of rows, and is one launch from then on.
A small model's pass takes the host longer to launch than the GPU to run.

All that differs from pass to pass lies in one tensor: how many rows are committed, the nodes' parents and tokens. It is
sent in one copy, and depths, positions, paths and masks are made of it on the device.

Legend: N nodes of a tree, R rows of a pass, V vocabulary, F feature width.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from methods.engine import traffic
from methods.engine.backends.cuda.attention import STATE, PositionCache, TreeView
from methods.engine.tree import TokenTree
from methods.errors import one_line

Outputs = tuple[Tensor, Tensor | None]  # logits [R, V], features [R, F]


class Graph(Protocol):
    """A recorded pass."""

    def replay(self) -> None: ...


class Model(Protocol):
    """A Transformer. `rotations`: its table, which another decoder may replace by a larger one."""

    rotations: tuple[Tensor, Tensor]

    def grow(self, positions: int) -> None: ...

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, view: Any, taps: Sequence[int]) -> Outputs: ...

    def logits(self, hidden_ND: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Recorded:
    """A graph, where it reads and where it writes, and the bytes of the weights that it reads."""

    graph: Graph
    inputs_I: Tensor
    rotations: tuple[Tensor, Tensor]
    outputs: Outputs
    bytes: int


RUNS = 2  # of a pass that is captured


class Graphs:
    """Passes of a model on one GPU over a cache."""

    def __init__(self, model: Model, cache: PositionCache) -> None:
        self.model, self.cache = model, cache
        (self.device,) = cache.data
        self.capacity = cache.layers[0].shape[2]
        self._recorded: dict[tuple[int, tuple[int, ...]], Recorded] = {}
        self._usable = True

    def __call__(self, tree: TokenTree, start: int, rows: int, taps: Sequence[int]) -> Outputs | None:
        """Logits [N, V] and features [N, F] of a tree of N <= R nodes behind `start` committed rows, by a graph of R
        rows. The first such pass records it. None where passes cannot be recorded."""
        recorded = self._recorded.get((rows, tuple(taps)))
        numbers_I = torch.tensor(inputs(tree, start, rows), dtype=torch.int32, pin_memory=torch.cuda.is_available())
        if recorded is None:
            recorded = self._record(numbers_I, rows, tuple(taps))
        if recorded is None:
            return None
        recorded.inputs_I.copy_(numbers_I, non_blocking=True)  # its memory is PyTorch's again when it has been read
        recorded.graph.replay()
        traffic.add(recorded.bytes)
        nodes, (logits_RV, features_RF) = len(tree.tokens_N), recorded.outputs
        return logits_RV[:nodes].clone(), None if features_RF is None else features_RF[:nodes].clone()

    def _record(self, numbers_I: Tensor, rows: int, taps: tuple[int, ...]) -> Recorded | None:
        if not self._usable:
            return None
        self.model.grow(self.capacity)
        inputs_I = numbers_I.to(self.device)
        before = traffic.moment().read
        try:
            graph, outputs = capture(lambda: self._run(inputs_I, rows, taps), self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a driver or a library that cannot
            self._usable = False
            warnings.warn(f"passes cannot be recorded, which makes them slower: {one_line(error)}", stacklevel=2)
            return None
        read = (traffic.moment().read - before) // RUNS
        self._recorded[rows, taps] = Recorded(graph, inputs_I, self.model.rotations, outputs, read)
        return self._recorded[rows, taps]

    def _run(self, inputs_I: Tensor, rows: int, taps: tuple[int, ...]) -> Outputs:
        """The pass; nothing in it asks the host for a number."""
        state_S, tokens_R = inputs_I[: STATE + rows], inputs_I[STATE + rows :]
        view = TreeView(self.cache, {self.device: state_S}, rows, self.capacity)
        hidden_RD, features_RF = self.model.hidden(tokens_R, view.positions(self.device), view, taps)
        return self.model.logits(hidden_RD), features_RF


def inputs(tree: TokenTree, start: int, rows: int) -> list[int]:
    """The committed rows, no known node, the parents of R nodes, their tokens. Behind the tree's last node there is a
    chain that fills the rows."""
    parents, tokens = tree.parents_N.tolist(), tree.tokens_N.tolist()
    more = rows - len(tokens)
    chain = range(len(tokens) - 1, rows - 1)
    return [start, 0, *parents, *chain, *tokens, *tokens[:1] * more]


def records(device: torch.device) -> bool:
    """Whether the device has graphs."""
    return device.type == "cuda"


@cache
def _pool(device: torch.device) -> Any:
    """The memory that all graphs of a device work in: only one runs at a time."""
    return torch.cuda.graph_pool_handle()


def capture(run: Callable[[], Outputs], device: torch.device) -> tuple[Graph, Outputs]:
    """A graph of what `run` launches, and what it fills; it runs RUNS times. First it runs as it is, on a stream of its
    own as PyTorch asks: then its kernels are compiled and loaded."""
    with torch.cuda.device(device):
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            run()
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=_pool(device), capture_error_mode="thread_local"):
            outputs = run()
    return graph, outputs
