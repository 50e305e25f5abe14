"""One tiny checkpoint for every kind of weights that a drafter may need. A new kind is an entry here; the tests of all
methods then pick it up by themselves."""

from collections.abc import Callable
from pathlib import Path

from tests.tiny import VOCABULARY, save_draft, save_model


def _model(folder: Path, target: Path) -> Path:
    """Another tiny model of the target's vocabulary, padded to a larger size, as Qwen's models are."""
    return save_model(folder, seed=1, layers=1, vocab_size=104)


def _sorted(folder: Path, target: Path) -> Path:
    """The tiny target's own layers as a draft with exits, in int8, that knows three quarters of the tokens."""
    return save_draft(folder, target, [token for token in range(VOCABULARY) if token % 4])


WEIGHTS: dict[str, Callable[[Path, Path], Path]] = {"model": _model, "sorted": _sorted}  # folder, target -> folder
