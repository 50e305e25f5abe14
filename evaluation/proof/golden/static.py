"""Shapes of static trees in a golden: their `choices`, and the `parents` of the nodes."""

from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.proof.golden.agreement import Agreement, same
from methods.drafters.static_tree import PUBLISHED, Path, StaticShape, level_order

THE_PUBLISHED = "mc_sim_7b_63"


def paths_of(table: Mapping[str, Any]) -> list[Path]:
    """In the order in which a tree is filled."""
    return level_order(tuple(path) for path in table["choices"])


def shapes(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Agreement]:
    """The nodes' parents in every setting, and that the published tree is ours."""
    yield same("the published tree", [("paths", PUBLISHED, paths_of(tables[THE_PUBLISHED]))])
    parents = [(setting, _parents(paths_of(table)), table["parents"]) for setting, table in tables.items()]
    yield same("parents", parents)


def _parents(paths: list[Path]) -> list[int]:
    parents = list(StaticShape(paths).filled(0, dict.fromkeys(paths, 0)).parents)
    return parents
