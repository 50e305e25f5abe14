"""The table of methods. Importing it imports nothing heavy, so that help and error messages are instant.

To add a method: one file with a `build` function, one row here.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from methods.base import Method, Reference
    from methods.drafters.base import Drafter
    from methods.models import Models


MOST = 10**9  # of anything that an option counts


@dataclass(frozen=True)
class Option:
    """A method's option: `--name` on the command line. One of `words`, or a number from `least` (None: words
    only) on, with a fraction if the default has one."""

    default: int | float | str
    help: str
    least: int | float | None = 1
    words: tuple[str, ...] = ()

    def read(self, text: str) -> int | float | str | None:
        """The value that the text stands for; None if it stands for none."""
        if text in self.words or self.least is None:
            return text if text in self.words else None
        try:
            value = float(text) if isinstance(self.default, float) else int(text)
        except ValueError:
            return None
        return value if self.least <= value <= MOST else None

    @property
    def expected(self) -> str:
        """What `read` takes, in words."""
        number = [] if self.least is None else [f"a number from {self.least} to {MOST}"]
        return " or ".join([*self.words, *number])


@dataclass(frozen=True)
class MethodSpec:
    """One row. `entry`: "module:function" that builds the method from Models and the options; `drafter`: one that
    builds its drafter, where that runs on a rank of its own. `beside`: methods that are measured with it.
    `all_devices`: runs on what all ranks of a replica own. `lossless`: greedy output must be the baseline's (False:
    another library's arithmetic). `sorted_draft`: its draft must have exits. `fixed`: options of a variant, which the
    command line's do not change; `draft`: a variant's own."""

    name: str
    entry: str
    about: str
    paper: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    lossless: bool = True
    needs_draft: bool = False
    sorted_draft: bool = False
    drafter: str = ""
    beside: tuple[str, ...] = ()
    all_devices: bool = False
    fixed: Mapping[str, int | float | str] = field(default_factory=dict)
    draft: str | None = None

    @property
    def method(self) -> str:
        """The name without a variant's options."""
        return self.name.partition(VARIANT)[0]

    @property
    def ranks(self) -> int:
        """Processes that it needs: one that decides, and one that drafts where the drafter has its own."""
        return 2 if self.drafter else 1

    def build(self, models: "Models", options: Mapping[str, Any]) -> "Method | Reference":
        """The method, ready for `generate`. `options` beyond the method's own are ignored, missing ones defaulted. One
        that has a drafter on another rank is told by what name to call it."""
        return self._call(self.entry, models, options, {"name": self.name} if self.drafter else {})

    def build_drafter(self, models: "Models", options: Mapping[str, Any]) -> "Drafter":
        """The drafter, ready for `serve`, with the same options."""
        return self._call(self.drafter, models, options, {})

    def _call(self, entry: str, models: "Models", options: Mapping[str, Any], more: Mapping[str, str]) -> Any:
        module, function = entry.split(":")
        chosen = {name: options.get(name, option.default) for name, option in self.options.items()}
        return getattr(importlib.import_module(module), function)(models, **more, **chosen)


def _window(default: int) -> Option:
    return Option(default, "tokens drafted per round")


_PEARL = {
    "gamma": Option(
        "auto",
        "tokens drafted per round: a number; auto: as fit into a pass of the target; free: until it has decided",
        words=("auto", "free"),
    ),
    "without": Option(
        "nothing",
        "leave out pre-verify, post-verify or both",
        least=None,
        words=("nothing", "pre-verify", "post-verify", "both"),
    ),
}
_PEARL_PAPER = "Liu et al. 2025"
ALL_DEVICES = "autoregressive-all"


_NGRAM = Option(3, "longest n-gram looked up")
_EXITS = {
    "threshold": Option(0.5, "top probability above which the draft is left at an exit", least=0),
    "exit": Option(0, "always leave the draft after this many layers (0: adaptive)", least=0),
}

BASELINE = "autoregressive"
VARIANT = "@"  # sps@gamma=2: a variant, so that one run can compare a method with itself under other options
METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec(BASELINE, "methods.autoregressive:build", "the target alone, one token per pass"),
        MethodSpec(
            ALL_DEVICES,
            "methods.autoregressive:build",
            "the same on the devices of the target's and the draft's rank together",
            all_devices=True,
        ),
        MethodSpec(
            "sps",
            "methods.speculative:build_sps",
            "speculative sampling with a smaller model",
            "Leviathan et al. 2023; Chen et al. 2023",
            {"gamma": _window(5)},
            needs_draft=True,
        ),
        MethodSpec(
            "pld",
            "methods.speculative:build_pld",
            "prompt lookup: copies what followed the last occurrence of the current n-gram",
            "Saxena 2023",
            {"gamma": _window(7), "max_ngram": _NGRAM},
        ),
        MethodSpec(
            "sd2",
            "methods.speculative:build_sd2",
            "a trained draft that is left at the first of its exits that is confident",
            "Kavehzadeh et al. 2024",
            {"gamma": _window(5), **_EXITS},
            needs_draft=True,
            sorted_draft=True,
        ),
        MethodSpec(
            "sd2-tree",
            "methods.speculative:build_sd2_tree",
            "the same draft, drafting a tree where it is confident",
            "Kavehzadeh et al. 2024",
            {
                "branches": Option(10, "nodes expanded per level of the tree, and children of each"),
                "depth": Option(4, "levels of the tree"),
                "nodes": Option(60, "drafted tokens in the tree"),
                **_EXITS,
            },
            needs_draft=True,
            sorted_draft=True,
        ),
        MethodSpec(
            "pearl",
            "methods.pearl:build_pearl",
            "drafts while it verifies: target and draft on a rank each",
            _PEARL_PAPER,
            _PEARL,
            needs_draft=True,
            drafter="methods.pearl:draft_pearl",
            beside=(ALL_DEVICES, "sps"),
        ),
        MethodSpec(
            "pearl-sd2",
            "methods.pearl:build_pearl_sd2",
            "the same with sd2's draft",
            f"{_PEARL_PAPER}; Kavehzadeh et al. 2024",
            {**_PEARL, **_EXITS},
            needs_draft=True,
            sorted_draft=True,
            drafter="methods.pearl:draft_pearl_sd2",
            beside=(ALL_DEVICES, "sd2"),
        ),
        MethodSpec(
            "hf-generate",
            "methods.reference:build_generate",
            "Transformers' generate, for reference",
            lossless=False,
        ),
        MethodSpec(
            "hf-assisted",
            "methods.reference:build_assisted",
            "Transformers' assisted generation with the pair's draft, for reference",
            options={"gamma": _window(5)},
            lossless=False,
            needs_draft=True,
        ),
        MethodSpec(
            "hf-pld",
            "methods.reference:build_pld",
            "Transformers' prompt lookup, for reference",
            options={"gamma": _window(7), "max_ngram": _NGRAM},
            lossless=False,
        ),
    )
}


def get_method(name: str) -> MethodSpec:
    """The row of a method, or of a variant METHOD@OPTION=VALUE[@OPTION=VALUE...], where draft=MODEL is an option of all
    that need one. What is not known, or does not fit, is a UserError that suggests what would."""
    method, *settings = name.split(VARIANT)
    if method not in METHODS:
        raise UserError(f"no method '{method}'{nearest(method, METHODS)}")
    spec = METHODS[method]
    if not settings:
        return spec
    fixed = dict(_setting(spec, text) for text in settings)
    draft = fixed.pop("draft", None)
    return replace(spec, name=name, fixed=fixed, draft=None if draft is None else str(draft))


def _setting(spec: MethodSpec, text: str) -> tuple[str, int | float | str]:
    """An option of a variant: its name and value."""
    flag, _, typed = text.partition("=")
    if flag == "draft" and spec.needs_draft:
        if not typed:
            raise UserError(f"expected {spec.name}{VARIANT}draft=MODEL to name a model, got nothing")
        return flag, typed
    option = spec.options.get(flag.replace("-", "_"))
    if option is None:
        flags = [name.replace("_", "-") for name in spec.options] + ["draft"] * spec.needs_draft
        raise UserError(f"{spec.name} has no option '{flag}'" + (nearest(flag, flags) if flags else ""))
    value = option.read(typed)
    if value is None:
        raise UserError(f"expected {spec.name}{VARIANT}{flag}=VALUE to be {option.expected}, got '{typed}'")
    return flag.replace("-", "_"), value
