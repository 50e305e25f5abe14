"""What a head reads of its target, computed once by the engine and cached on disk in shards of some answers.

Shapes: P positions of a shard's answers in a row, prompts' included; T tokens of an answer; D width of the target.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.engine.decoder import Scores
from methods.training.data import Document
from methods.training.teacher import digest


def eagle3_taps(layers: int) -> tuple[int, int, int]:
    """A low, a middle and a high layer, as EAGLE-3 has them: their outputs go into layers 2, N/2 and N - 3."""
    return 1, max(layers // 2 - 1, 0), max(layers - 4, 0)


@dataclass(frozen=True)
class Features:
    """The target's state at each position and tap; rows starts[i] to starts[i + 1] are of document i."""

    states: dict[int, Tensor]  # by tap, [P, D] in bf16
    starts: list[int]


class Prefills(Protocol):
    """What is wanted of a decoder."""

    def prefill(self, tokens_T: Sequence[int], taps: Sequence[int] = ()) -> Scores: ...


class FeatureCache:
    """Shards by name, a file for each. A shard of other answers, or without a tap that is wanted, is computed again."""

    def __init__(self, decoder: Callable[[], Prefills], folder: Path | None, taps: Sequence[int]) -> None:
        """`decoder` gives the target's, and is asked for it when there is something to compute. `folder` None: nothing
        is kept, as where the disk is too small for it."""
        self.decoder, self.folder, self.taps = decoder, folder, tuple(dict.fromkeys(taps))

    def shard(self, name: str, documents: Sequence[Document]) -> Features:
        starts = [0, *itertools.accumulate(len(document.tokens) for document in documents)]
        if self.folder is None:
            return Features(self._compute(documents, self.taps), starts)
        path, answers = self.folder / f"{name}.safetensors", digest(document.tokens for document in documents)
        there = _taps_in(path, answers)
        if not there.issuperset(self.taps):
            self.folder.mkdir(parents=True, exist_ok=True)
            states = self._compute(documents, sorted(there.union(self.taps)))
            partial = path.with_suffix(".partial")
            save_file({str(tap): state for tap, state in states.items()}, partial, metadata={"answers": answers})
            partial.replace(path)
        return Features(_read(path, self.taps), starts)

    def _compute(self, documents: Sequence[Document], taps: Sequence[int]) -> dict[int, Tensor]:
        """Every answer is one prompt to the engine: so heads learn from the states that they will be given."""
        decoder = self.decoder()
        parts: dict[int, list[Tensor]] = {tap: [] for tap in taps}
        for document in documents:
            features_TF = decoder.prefill(document.tokens, taps).features_NF
            assert features_TF is not None
            for tap, state_TD in zip(taps, features_TF.chunk(len(taps), 1), strict=True):
                parts[tap].append(state_TD.to("cpu", torch.bfloat16))
        return {tap: torch.cat(states).contiguous() for tap, states in parts.items()}


def _taps_in(path: Path, answers: str) -> set[int]:
    if not path.is_file():
        return set()
    with safe_open(path, "pt") as file:
        return {int(tap) for tap in file.keys()} if file.metadata() == {"answers": answers} else set()  # noqa: SIM118


def _read(path: Path, taps: Sequence[int]) -> dict[int, Tensor]:
    with safe_open(path, "pt") as file:
        return {tap: file.get_tensor(str(tap)) for tap in taps}
