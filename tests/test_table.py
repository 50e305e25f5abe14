"""Rows of the table: what a drafter's own row makes of its methods."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from evaluation.answers.header import what_it_is
from evaluation.launch.flags import all_options
from methods import METHODS, get_method
from methods.build import build_drafter, build_method
from methods.drafter_rows import CHAIN, DRAFTERS, TREE, DrafterSpec
from methods.drafters.lookup import LookupDrafter
from methods.errors import UserError
from methods.models import Models
from methods.options import Option
from methods.speculative import Speculative
from methods.table import add_drafter


class BothDrafter(LookupDrafter):
    """It says how it was built."""

    def __init__(self, **built: object) -> None:
        super().__init__(max_ngram=3)
        self.built = built


def build(models: Models, **options: object) -> BothDrafter:
    return BothDrafter(**options)


@pytest.fixture
def both() -> Iterator[str]:
    """A drafter of trees and of chains."""
    spec = DrafterSpec(
        "both",
        "tests.test_table:build",
        "both",
        shapes=(TREE, CHAIN),
        options={"wild": Option(1, "an option of both shapes")},
        tree={"nodes": Option(9, "drafted tokens in the tree", flag=True)},
    )
    drafters, methods = dict(DRAFTERS), dict(METHODS)
    add_drafter(spec)
    yield spec.name
    for table, before in ((DRAFTERS, drafters), (METHODS, methods)):  # rows of others name the new drafter, too
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def test_a_drafter_of_both_shapes_has_an_option_for_it(both: str) -> None:
    assert list(METHODS["both"].options) == ["gamma", "shape", "nodes", "wild"] and "shape" in all_options()
    assert not {"shape", "nodes"} & METHODS["pearl-both"].options.keys()
    with pytest.raises(UserError, match="expected both@shape=VALUE to be tree or chain, got 'bush'"):
        get_method("both@shape=bush")


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("both", {}, TREE),
        ("both", {"shape": CHAIN}, CHAIN),
        ("both@shape=chain", {}, CHAIN),
        ("pearl-both", {}, CHAIN),
        ("sps", {"shape": TREE}, CHAIN),
        ("recycling", {"shape": CHAIN}, TREE),
        ("autoregressive", {"shape": CHAIN}, None),
    ],
)
def test_the_header_says_what_is_drafted(both: str, name: str, options: Mapping[str, Any], shape: str | None) -> None:
    spec = get_method(name)
    assert what_it_is(spec, {**options, **spec.fixed})["shape"] == shape


def test_the_window_counts_for_chains_alone(both: str, tiny: Any) -> None:
    models = Models(str(tiny), None, "float32", [torch.device("cpu")])
    for name, window in (("both", None), ("both@shape=chain", 5), ("both@shape=chain@gamma=2", 2)):
        method = build_method(get_method(name), models, {})
        assert isinstance(method, Speculative) and method.drafter.most == window


def test_what_does_not_count_is_not_told_and_may_not_be_set(both: str) -> None:
    options = {"gamma": 5, "shape": TREE, "nodes": 9, "wild": 4}
    assert get_method("both").counting(options) == {"shape": TREE, "nodes": 9, "wild": 4}
    assert get_method("both").counting(options | {"shape": CHAIN}) == {"shape": CHAIN, "gamma": 5, "wild": 4}
    assert get_method("sps").counting({"gamma": 5}) == {"gamma": 5}
    with pytest.raises(UserError, match="gamma counts for a chain only, this is a tree; add @shape=chain"):
        get_method("both@gamma=2").counting(options)
    with pytest.raises(UserError, match="nodes counts for a tree only"):
        get_method("both@nodes=2").counting(options | {"shape": CHAIN})


def test_pearl_builds_the_chain(both: str) -> None:
    drafter = build_drafter(get_method("pearl-both"), Models("", None, "float32", []), {"wild": 4, "nodes": 2})
    assert isinstance(drafter, BothDrafter) and drafter.built == {"shape": CHAIN, "nodes": 9, "wild": 4}
