"""One tiny checkpoint for every kind of weights that a drafter may need: what its row in the table names. A new kind is
named there, and nowhere here; the tests of all methods then pick it up by themselves."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from methods import DRAFTERS
from methods.build import write_tiny_weights
from tests import toy_head  # noqa: F401  (adds a row to the table of methods)
from tests.tiny import VOCABULARY, save_draft, save_model


def _model(folder: Path, target: Path) -> Path:
    """Another tiny model of the target's vocabulary, padded to a larger size, as Qwen's models are."""
    return save_model(folder, seed=1, layers=1, vocab_size=104)


def _sorted(folder: Path, target: Path) -> Path:
    """The tiny target's own layers as a draft with exits, in int8, that knows three quarters of the tokens."""
    return save_draft(folder, target, [token for token in range(VOCABULARY) if token % 4])


ODDER = {"model": _model, "sorted": _sorted}  # than those of the table
WEIGHTS: dict[str, Callable[[Path, Path], Path]] = {  # folder, target -> folder
    spec.weights: ODDER.get(spec.weights) or partial(write_tiny_weights, spec)
    for spec in DRAFTERS.values()
    if spec.weights
}
