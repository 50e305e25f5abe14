"""What the rows of the table build: EAGLE-1, EAGLE-2 and EAGLE-3."""

from methods.drafters.base import Drafter
from methods.drafters.eagle.drafters import DynamicTree, EagleChain, StaticTree
from methods.drafters.eagle.files import EAGLE, EAGLE3, Reading, load
from methods.drafters.static_tree import Path, cheapest_first
from methods.models import Models

# The tree of EAGLE-1's published code (choices.py, "mc_sim_7b_63"): 25 nodes, 5 levels.
PATHS: tuple[Path, ...] = (
    *((rank,) for rank in range(4)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)


def eagle(models: Models, shape: str, nodes: int, rope: int | str) -> Drafter:
    """EAGLE-1."""
    head, taps = load(models, EAGLE, Reading(rope))
    if shape == "chain":
        return EagleChain(head, taps, models.vocabulary)
    return StaticTree(head, taps, models.vocabulary, cheapest_first(PATHS)[:nodes])


def eagle2(models: Models, shape: str, branches: int, depth: int, nodes: int, rope: int | str) -> Drafter:
    """EAGLE-2: the same weights."""
    return _dynamic(models, EAGLE, shape, branches, depth, nodes, rope)


def eagle3(models: Models, shape: str, branches: int, depth: int, nodes: int, rope: int | str) -> Drafter:
    """EAGLE-3."""
    return _dynamic(models, EAGLE3, shape, branches, depth, nodes, rope)


def _dynamic(models: Models, kind: str, shape: str, branches: int, depth: int, nodes: int, rope: int | str) -> Drafter:
    head, taps = load(models, kind, Reading(rope))
    if shape == "chain":
        return EagleChain(head, taps, models.vocabulary)
    return DynamicTree(head, taps, branches, depth, nodes)
