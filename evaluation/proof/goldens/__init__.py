"""Whether drafters do what the published code of their methods did on a tiny model: see tests/goldens/README.md."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from evaluation.proof.goldens.base import Agreement
from methods.errors import UserError

# What a folder of each kind must have, and "module" whose `check(folder)` compares it.
KINDS = {
    "eagle3": "evaluation.proof.goldens.eagle",
    "eagle2": "evaluation.proof.goldens.eagle",
    "eagle1": "evaluation.proof.goldens.eagle",
}


def check(folder: Path) -> Iterator[Agreement]:
    """Compare all that a folder holds. Its name begins with its kind; beside it lies `target`, the model."""
    kind = next((kind for kind in KINDS if folder.name.startswith(kind)), None)
    if kind is None or not (folder / "traces.jsonl").is_file() or not (folder.parent / "target").is_dir():
        raise UserError(
            f"expected a folder named after one of {', '.join(KINDS)}, with a traces.jsonl in it and a target beside "
            f"it, got {folder}"
        )
    compare: Callable[[Path], Iterator[Agreement]] = import_module(KINDS[kind]).check
    return compare(folder)
