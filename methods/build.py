"""From a row of the table to a method that runs. A rank builds only what runs on it."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.base import Method, Reference
from methods.drafter_rows import CHAIN, DrafterSpec
from methods.drafters.base import ChainDrafter, Drafter
from methods.models import Models
from methods.options import ALL, AUTO, MOST
from methods.table import MethodSpec


def build_method(spec: MethodSpec, models: Models, options: Mapping[str, Any]) -> Method | Reference:
    """The method, ready for `generate`: of PEARL the target's rank. `options` beyond the method's own are ignored,
    missing ones have their defaults."""
    chosen = chosen_options(spec, options)
    match spec.loop:
        case "alone":
            from methods.autoregressive import Autoregressive

            return Autoregressive(models.target)
        case "turns":
            from methods.speculative import Speculative
            from methods.tree_size import AutoNodes

            chain = spec.shape(chosen) == CHAIN
            sought = AutoNodes() if chosen.get("nodes") == AUTO and not chain else None
            drafter = build_drafter(spec, models, options)
            most = chosen.get("gamma") if chain else None
            return Speculative(models.target, drafter, most, sought, chosen.get("acceptance") == "typical")
        case "pearl":
            from methods.pearl.target import build

            spec.check_branches(chosen)
            branching = spec.drafter is not None and spec.drafter.branching
            asked = {name: chosen[name] for name in ("gamma", "without", "branches", "schedule")}
            return build(models, spec.name, branching=branching, **asked)
        case "peer":
            return _function(spec.peer)(models, **chosen)


def build_drafter(spec: MethodSpec, models: Models, options: Mapping[str, Any]) -> Drafter:
    """The drafter of a method, with the same options: of PEARL for the draft's rank."""
    chosen = chosen_options(spec, options)
    if spec.drafter is None:
        raise ValueError(f"expected a method with a drafter, got {spec.name}")
    chosen |= {"shape": spec.shape(chosen)}
    if spec.drafter.parts is not None:
        first, last = (_built(part, models, chosen) for part in spec.drafter.parts)
        return _one_behind(first, last) if spec.loop == "pearl" else _one_of(first, last)
    drafter = _built(spec.drafter, models, chosen)
    if (other := spec.behind(chosen)) is None:
        return drafter
    return _one_behind(drafter, _built(other, models.of_kind(other.weights), {"shape": CHAIN}))


def _one_behind(first: Drafter, other: Drafter) -> Drafter:
    """Both in one chain."""
    from methods.drafters.behind import Behind

    return Behind(_chain(first), _chain(other))


def _one_of(first: Drafter, other: Drafter) -> Drafter:
    """In each round one of the two."""
    from methods.drafters.either import Either

    return Either(_chain(first), other)


def _built(spec: DrafterSpec, models: Models, options: Mapping[str, Any]) -> Drafter:
    """A drafter with those of the options that it takes, the others by default."""
    taken = {name: options.get(name, option.default) for name, option in spec.all_options.items()}
    # "auto" is how many the loop wants each time.
    limits = {name: MOST for name, value in taken.items() if value == ALL or (name, value) == ("nodes", AUTO)}
    drafter: Drafter = _function(spec.build)(models, **taken | limits)
    return drafter


def _chain(drafter: Drafter) -> ChainDrafter:
    if not isinstance(drafter, ChainDrafter):
        raise ValueError(f"expected a drafter of chains, got {type(drafter).__name__}")
    return drafter


def build_chain_drafter(spec: MethodSpec, models: Models, options: Mapping[str, Any]) -> ChainDrafter:
    """The same of a method whose loop goes on behind what was drafted."""
    return _chain(build_drafter(spec, models, options))


def check_weights(check: str, models: Models) -> None:
    """Refuse a draft that a method cannot use, by what its files say of it: nothing is loaded. `check`: as the
    method's row names it, "" for none."""
    if check:
        _function(check)(models)


def write_tiny_weights(spec: DrafterSpec, folder: Path, target: Path) -> Path:
    """A tiny checkpoint of the kind of weights that the drafter needs, written into `folder` for a tiny target."""
    if not spec.tiny:
        raise ValueError(f"the row of {spec.name} does not name a function that writes tiny weights of its kind")
    _function(spec.tiny)(folder, target)
    return folder


def chosen_options(spec: MethodSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's own options, each as its variant has it, as given, or by default."""
    return {name: options.get(name, option.default) for name, option in spec.options.items()} | dict(spec.fixed)


def _function(entry: str) -> Any:
    module, function = entry.split(":")
    return getattr(importlib.import_module(module), function)
