"""A model of known speed: each pass takes a time that is known beforehand, waited for busily, and says what the script
in its prompt says (script.py). For calibration: what a run measures of such a pair can be counted without running it.

Its folder has a config.json as any model's, with a table "scripted", and no weights. All but the layers and the head is
the engine's own: decoder, cache rows, trees, links. A state is the number of its row.

Legend: N rows of a pass, V vocabulary.
"""

import os
import time
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from methods.engine.backends import cpu
from methods.engine.backends.base import Best, RecordedPasses
from methods.engine.config import ModelConfig
from methods.engine.schema import Schema, checked
from methods.engine.script import BRIEF, WORDS, Script
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree

KEY = "scripted"  # of a config.json
SURE, LIKELY = 30.0, 29.0  # logits of the first and the second choice, all others are 0
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Pace(Schema):
    """The table of a config.json. A pass takes `pass_seconds`, and `row_seconds` more for each row beyond its first; a
    prompt takes as many passes as its script says. `drafts`: it says what the script's draft says, not its target, by a
    head over the words of scripts."""

    pass_seconds: Seconds
    row_seconds: Seconds
    drafts: bool


class Waits:
    """What this process has waited for: when each wait had to end, in seconds of the monotonic clock, and how much
    later it did, because the machine was doing something else."""

    def __init__(self) -> None:
        self.ends, self.late = list[float](), list[float]()

    def until(self, end: float) -> None:
        """Be busy until then. Other threads of this process may go on meanwhile, as they may beside matrices. No sleep,
        not even of no time: that halts the core."""
        if (lib := cpu.library()) is not None:  # without Python's lock
            lib.busy_until(end)
        while time.perf_counter() < end:
            os.sched_yield()
        self.late.append(time.perf_counter() - end)
        self.ends.append(end)


WAITS = Waits()


class View(NamedTuple):
    """What stands for what rows see: when the pass has begun, which asks for it first; whether it reads a prompt."""

    begin: float
    prompt: bool


class Rows:
    """What stands for a cache: nothing is kept, as positions are all that a row must know."""

    def prompt(self) -> View:
        return View(time.perf_counter(), True)

    def view(self, start: int, tree: TokenTree, known: int = 0, exact: bool = True) -> View:
        return View(time.perf_counter(), False)

    def pack(self, start: int, path_A: Tensor) -> None:
        return


class ScriptedStack:
    """What stands for the layers."""

    operators = "scripted"
    min_rows = 1
    row_counts: tuple[int, ...] | None = None

    def measure_rows(self, *others: Any) -> None:
        return

    def fewer_rows(self) -> bool:
        return False

    def new_cache(self, layers: int, rows: int) -> Rows:
        return Rows()

    def recorder(self, model: "ScriptedModel", cache: Any) -> RecordedPasses:
        """Its passes are as recorded ones: they need numbers, and give the best tokens too."""
        return model.replayed

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return x_ND

    def __call__(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: Any,
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        return x_ND


class ScriptedModel(Transformer):
    """A Transformer to whoever runs it."""

    def __init__(self, config: ModelConfig, pace: Pace) -> None:
        self.config, self.pace = config, pace
        self.dtype, self.devices, self.layers = torch.float32, [torch.device("cpu")], []
        self.stack = ScriptedStack()
        self.tokens_R = torch.arange(len(WORDS)) if pace.drafts else None
        self.embedding_VD = torch.arange(config.vocab_size, dtype=torch.float32)[:, None]  # a token's state is itself
        self._script, self._length, self._logits_NV = BRIEF, 0, torch.empty(0)

    def rotation(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        return positions_N, positions_N

    def __call__(
        self, tokens_N: Tensor, positions_N: Tensor, view: Any, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """A pass over a prompt. Its states are features too."""
        x_ND = self._pass(tokens_N, positions_N, view, 1.0)
        return x_ND, torch.cat([x_ND] * len(taps), 1) if taps else None

    def replayed(
        self, tree: TokenTree, known: int, start: int, rows: int, taps: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, Best]:
        """Any other whole pass, of so many rows, as `RecordedPasses` has it."""
        begin = time.perf_counter()
        best = self._say(tree.positions(start, known))
        features_NF = torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, len(taps)) if taps else None
        WAITS.until(begin + self._seconds(rows))
        return self._logits_NV, features_NF, best

    def run(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: View,
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        share = (stop - first) / self.config.layers
        return self._pass(x_ND[:, 0].long(), rotation[0], view, share)

    def _pass(self, tokens_N: Tensor, positions_N: Tensor, view: View, share: float) -> Tensor:
        """A share of a pass that has begun; returns when it is to end. Of a prompt the last row alone has logits."""
        rows, positions = positions_N.shape[0], positions_N.tolist()
        seconds = self._seconds(rows)
        states_ND = torch.arange(rows, dtype=torch.float32)[:, None]
        if view.prompt:
            self._script, self._length = Script.read(tokens_N.tolist()) or BRIEF, rows
            seconds = self.pace.pass_seconds * self._script.prompt
            positions, states_ND = positions[-1:], torch.zeros(rows, 1)
        self._say(positions)
        WAITS.until(view.begin + seconds * share)
        return states_ND

    def _seconds(self, rows: int) -> float:
        return self.pace.pass_seconds + self.pace.row_seconds * (rows - 1)

    def _say(self, positions: list[int]) -> list[tuple[float, float]]:
        """Make the logits of what follows these positions, [N, V], of a draft of the words alone. Returns the best
        token of each and its logit."""
        self._logits_NV = torch.zeros(len(positions), len(WORDS) if self.pace.drafts else self.config.vocab_size)
        best: list[tuple[float, float]] = []
        for row_V, position in zip(self._logits_NV, positions, strict=True):
            place = position + 1 - self._length
            if self.pace.drafts:
                token, second = self._script.choices(place)
                row_V[second] = LIKELY
            else:
                token = self._script.token(place)
            row_V[token] = SURE
            best.append((token, SURE))
        return best

    def logits(self, hidden_ND: Tensor) -> Tensor:
        if hidden_ND.shape[0] == self._logits_NV.shape[0]:
            return self._logits_NV
        return self._logits_NV[hidden_ND[:, 0].long()]

    def measure_rows(self) -> None:
        return

    def bytes_of(self, config: ModelConfig) -> int:
        """Of the embedding, which is all that it has."""
        return self.embedding_VD.nbytes


def scripted_model(config: ModelConfig, table: object, source: object) -> ScriptedModel:
    """The model of a folder whose config.json, `source`, has such a table."""
    return ScriptedModel(config, checked(Pace, table, source))
