"""The target's own numbers in a golden."""

from collections.abc import Iterator

from torch import Tensor

from evaluation.proof.golden.agreement import Agreement, close
from evaluation.proof.golden.folder import Golden
from methods.engine.transformer import FINAL


def forward(golden: Golden, tensors: dict[str, Tensor]) -> Iterator[Agreement]:
    """The states and the last logits of the prompt `input_ids`."""
    scores = golden.models.target.prefill(tensors["input_ids"][0].tolist(), (FINAL,))
    assert scores.features_NF is not None
    yield close("last_hidden", scores.features_NF[None], tensors["last_hidden"])
    yield close("logits", scores.logits_NV, tensors["logits"][0, -1:])
