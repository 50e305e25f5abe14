"""CUDA graphs of passes: what a pass launches is recorded once for each number of rows, and is one launch from then on.
A small model's pass takes the host longer to launch than the GPU to run.

All that differs from pass to pass lies in one tensor: how many rows are committed, how many nodes known, the nodes'
parents and tokens. It is sent in one copy, and depths, positions, paths and masks are made of it on the device; so is
the best token of each row, which greedy decoding reads and nothing else.

Legend: N new nodes of a tree, M all of its nodes, R rows of a pass, V vocabulary, F feature width.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from methods.engine import traffic
from methods.engine.backends.best import best_of
from methods.engine.backends.cuda.attention import PositionCache, TreeView
from methods.engine.tree import TokenTree
from methods.errors import one_line

Outputs = tuple[
    Tensor, Tensor | None, Tensor
]  # logits [R, V], features [R, F], the best tokens and their logits [R, 2]


class Graph(Protocol):
    """A recorded pass."""

    def replay(self) -> None: ...


class Model(Protocol):
    """A Transformer. `rotations`: its table, which another decoder may replace by a larger one."""

    rotations: tuple[Tensor, Tensor]

    def grow(self, positions: int) -> None: ...

    def hidden(
        self, tokens_N: Tensor, positions_N: Tensor, view: Any, taps: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]: ...

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
KNOWN = 64  # most known nodes of a pass that is recorded


class Graphs:
    """Passes of a model on one GPU over a cache."""

    def __init__(self, model: Model, cache: PositionCache) -> None:
        self.model, self.cache = model, cache
        (self.device,) = cache.data
        self.capacity = cache.layers[0].shape[2]
        self._recorded: dict[tuple[int, tuple[int, ...]], Recorded] = {}
        self._usable = True

    def __call__(self, tree: TokenTree, known: int, start: int, rows: int, taps: Sequence[int]) -> Outputs | None:
        """What `RecordedPasses` says, of N <= R new nodes, by a graph of R rows. The first such pass records it."""
        if known > KNOWN:
            return None
        recorded = self._recorded.get((rows, tuple(taps)))
        numbers = inputs(tree, known, start, rows)
        numbers_I = torch.tensor(numbers, dtype=torch.int32, pin_memory=torch.cuda.is_available())
        if recorded is None:
            recorded = self._record(numbers_I, rows, tuple(taps))
        if recorded is None:
            return None
        recorded.inputs_I.copy_(numbers_I, non_blocking=True)  # its memory is PyTorch's again when it has been read
        recorded.graph.replay()
        traffic.add(recorded.bytes)
        nodes, (logits_RV, features_RF, best_R2) = tree.nodes - known, recorded.outputs
        features_NF = None if features_RF is None else features_RF[:nodes].clone()
        return logits_RV[:nodes].clone(), features_NF, best_R2[:nodes].clone()

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
        state_S, tokens_R = inputs_I[:-rows], inputs_I[-rows:]
        view = TreeView(self.cache, {self.device: state_S}, rows, self.capacity)
        hidden_RD, features_RF = self.model.hidden(tokens_R, view.positions(self.device), view, taps)
        logits_RV = self.model.logits(hidden_RD)
        return logits_RV, features_RF, best_of(logits_RV)


def inputs(tree: TokenTree, known: int, start: int, rows: int) -> list[int]:
    """The committed rows, the known nodes, the parents of KNOWN + R nodes, the tokens of R. Behind the tree's last node
    there is a chain that fills the rows; what is behind that is read by no row."""
    parents_M, tokens_N = tree.parents, list(tree.tokens[known:])
    chain = range(len(parents_M) - 1, KNOWN + rows - 1)
    return [start, known, *parents_M, *chain, *tokens_N, *tokens_N[:1] * (rows - len(tokens_N))]


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
