"""A drafter that reads the target's features: it looks for the earlier position whose feature is nearest to the newest
one, by weights of its own, and drafts what followed there. Imported by conftest.py, it is a row like any other, so that
the tests of all methods are tests of features and of heads too, those that travel between ranks included.

Legend: T prompt tokens, P positions, D width of the features that it reads, H of what it compares.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.drafter_rows import DrafterSpec
from methods.drafters.base import ChainDrafter, Draft
from methods.engine.sampling import Sampling
from methods.engine.transformer import FINAL
from methods.models import Models
from methods.table import add_drafter
from methods.target import Outcome
from methods.tiny import config_of, random_tensors, save


class NearestDrafter(ChainDrafter):
    """`features_PD`: of every position that the target has read; `tokens[i]`: what position i chose."""

    taps = (FINAL, 0)

    def __init__(self, weights_HD: Tensor) -> None:
        self.weights_HD = weights_HD

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        assert features_TF is not None and len(features_TF) == len(prompt_T), "a feature for every token of the prompt"
        self.features_PD, self.tokens = features_TF[:-1], list(prompt_T[1:])
        self.place: int | None = None  # the position that the next draft copies

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self._learn(outcome)
        self.place = self._nearest()

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self._learn(outcome)

    def _learn(self, outcome: Outcome) -> None:
        features = outcome.features_AF
        assert features is not None and len(features) == len(outcome.tokens), "a feature for every decided token"
        self.features_PD, self.tokens = torch.cat((self.features_PD, features)), self.tokens + outcome.tokens
        assert len(self.features_PD) == len(self.tokens), "features and tokens in step"

    def _nearest(self) -> int | None:
        """The position behind the earlier one that is nearest to the newest."""
        *earlier, newest = self.features_PD.float() @ self.weights_HD.to(self.features_PD.device).T
        if not earlier:
            return None
        return int((torch.stack(earlier) - newest).norm(dim=1).argmin()) + 1

    def draft(self, n: int) -> Draft:
        found = [] if self.place is None else self.tokens[self.place : self.place + n]
        self.place = None if self.place is None else self.place + len(found)
        self.drafted += found
        return Draft(found)


def build(models: Models) -> NearestDrafter:
    assert models.draft_source is not None
    return NearestDrafter(load_file(Path(models.draft_source) / FILE)["weight"])


def write(folder: Path, target: Path) -> None:
    """Tiny weights."""
    width = len(NearestDrafter.taps) * config_of(target)["hidden_size"]
    save(folder, random_tensors({"weight": (8, width)}, 2), {}, FILE)


FILE = "toy.safetensors"
add_drafter(
    DrafterSpec(
        "toy-head",
        "tests.toy_head:build",
        "copying from the position with the nearest feature",
        weights="toy",
        tiny="tests.toy_head:write",
        gamma=3,
    )
)
