"""The table of methods: rows, data only. Importing it imports nothing heavy, so that help and error messages are
instant.

A method is a loop over a drafter. To add a drafter: one file below `drafters/` with a `build` function, and one row in
DRAFTERS; those of METHODS, draft-then-verify and PEARL, come by themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from methods.errors import UserError, nearest
from methods.options import AUTO, DRAFT, VARIANT, Option, Value, read_settings

BASELINE = "autoregressive"
ALL_DEVICES = "autoregressive-all"

Loop = Literal["alone", "turns", "pearl", "peer"]
Shape = Literal["chain", "tree"]
CHAIN: Shape = "chain"
TREE: Shape = "tree"


@dataclass(frozen=True)
class DrafterSpec:
    """A drafter. `build`: "module:function" of (models, **options) that builds it; `about`: completes "by ...";
    `weights`: the kind of weights that it needs, as pairs name them, "" for none; `check`: "module:function" of
    (models) that refuses weights which do not fit, before anything is loaded; `shapes`: of what it proposes, the first
    by default. A drafter of both is built with an option `shape`. One of chains may be PEARL's. `gamma`: the default
    window of its chains in draft-then-verify; `tree`: options of its trees alone, of which PEARL has none. `typical`:
    draft-then-verify may judge what it drafts by typical acceptance, as its paper does."""

    name: str
    build: str
    about: str
    paper: str = ""
    weights: str = ""
    tiny: str = ""  # "module:function" of (folder, the target's folder) that writes a tiny checkpoint of that kind
    check: str = ""
    shapes: tuple[Shape, ...] = (CHAIN,)
    gamma: int = 5
    options: Mapping[str, Option] = field(default_factory=dict)
    tree: Mapping[str, Option] = field(default_factory=dict)
    typical: bool = False

    @property
    def all_options(self) -> dict[str, Option]:
        """What its `build` takes."""
        return {**self._shape, **self.tree, **self.options}

    @property
    def _shape(self) -> dict[str, Option]:
        if len(self.shapes) == 1:
            return {}
        return {"shape": Option(self.shapes[0], "of what is drafted", least=None, words=self.shapes, flag=True)}


@dataclass(frozen=True)
class MethodSpec:
    """One row: a loop over a drafter (None: the target alone, or another library's own loop).

    `weights` and `check`: as a drafter has them; `options`: the loop's and the drafter's;
    `beside`: methods that are measured with it; `all_devices`: it runs on what all ranks of a replica own; `lossless`:
    its greedy output must be the baseline's (False: another library's arithmetic); `peer`: "module:function" that
    builds another library's loop. `fixed`: options of a variant, which the command line's do not change; `draft`: a
    variant's own."""

    name: str
    loop: Loop
    about: str
    drafter: DrafterSpec | None = None
    paper: str = ""
    weights: str = ""
    check: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    all_devices: bool = False
    lossless: bool = True
    peer: str = ""
    fixed: Mapping[str, Value] = field(default_factory=dict)
    draft: str | None = None

    @property
    def method(self) -> str:
        """The name without a variant's options."""
        return self.name.partition(VARIANT)[0]

    @property
    def ranks(self) -> int:
        """Processes that it needs: PEARL's target and draft have one each."""
        return 2 if self.loop == "pearl" else 1

    def shape(self, options: Mapping[str, object]) -> Shape | None:
        """Of what is drafted under these options."""
        if self.drafter is None:
            return None
        chosen = CHAIN if self.loop == "pearl" else options.get("shape")
        return next((shape for shape in self.drafter.shapes if shape == chosen), self.drafter.shapes[0])

    def is_lossless(self, options: Mapping[str, object]) -> bool:
        """Whether its output is the target's under these options."""
        return self.lossless and not any(options.get(name) in option.lossy for name, option in self.options.items())

    def counting(self, options: Mapping[str, Value]) -> dict[str, Value]:
        """Those of its options that count for what is drafted under them: a tree has no window, a chain no nodes.

        Raises UserError where a variant sets another one."""
        if self.drafter is None or len(self.drafter.shapes) == 1:
            return dict(options)
        shape = self.shape(options)
        idle = ["gamma"] if shape == TREE else list(self.drafter.tree)
        for name in idle:
            if name in self.fixed:
                other = CHAIN if shape == TREE else TREE
                raise UserError(f"{self.name}: {name} counts for a {other} only, this is a {shape}; add @shape={other}")
        return {name: value for name, value in options.items() if name not in idle}


def _window(default: int | str, help: str = "tokens drafted per round", words: tuple[str, ...] = ()) -> Option:
    return Option(default, help, words=words, flag=True)


_NGRAM = Option(3, "longest n-gram looked up")
_EXITS = {
    "threshold": Option(0.5, "top probability above which the draft is left at an exit", least=0),
    "exit": Option(0, "always leave the draft after this many layers (0: adaptive)", least=0),
}


def _nodes(published: int) -> dict[str, Option]:
    """Of every tree."""
    help = f"drafted tokens in the tree: a number ({published}: the paper's); auto: as are best on this machine"
    return {"nodes": Option(AUTO, help, words=(AUTO,), flag=True)}


def _growing(branches: int, depth: int, nodes: int) -> dict[str, Option]:
    """Of a tree that grows a level at a time."""
    return {
        "branches": Option(branches, "nodes expanded per level of the tree, and children of each", flag=True),
        "depth": Option(depth, "levels of the tree", flag=True),
        **_nodes(nodes),
    }


_TYPICAL = {
    "acceptance": Option(
        "exact",
        "exact: the output is the target's; typical: lossy, all drafts that the target finds likely enough are kept",
        least=None,
        words=("exact", "typical"),
        flag=True,
        lossy=("typical",),
    )
}
_ROPE = {
    "rope": Option(
        "config",
        "base of its rotary embedding: a number, its config's or the target's (published configs may be wrong)",
        words=("config", "target"),
    )
}
_PEARL = {
    "gamma": _window(
        AUTO,
        "tokens drafted per round: a number; auto: as fit into a pass of the target; free: until it has decided",
        (AUTO, "free"),
    ),
    "without": Option(
        "nothing",
        "leave out pre-verify, post-verify or both",
        least=None,
        words=("nothing", "pre-verify", "post-verify", "both"),
        flag=True,
    ),
}

DRAFTERS: dict[str, DrafterSpec] = {
    spec.name: spec
    for spec in (
        DrafterSpec(
            "model",
            "methods.drafters.language_model:build",
            "a smaller language model",
            "Leviathan et al. 2023; Chen et al. 2023",
            weights="model",
            tiny="methods.tiny:write_draft",
            check="methods.drafters.draft_model:check",
        ),
        DrafterSpec(
            "pld",
            "methods.drafters.lookup:build",
            "copying what followed the last occurrence of the current n-gram",
            "Saxena 2023",
            gamma=7,
            options={"max_ngram": _NGRAM},
        ),
        DrafterSpec(
            "sd2",
            "methods.drafters.sd2.chain:build",
            "a trained draft that is left at the first of its exits that is confident",
            "Kavehzadeh et al. 2024",
            weights="sorted",
            tiny="methods.tiny:write_draft",
            check="methods.drafters.sd2.chain:exits_here",
            options=_EXITS,
        ),
        DrafterSpec(
            "sd2-tree",
            "methods.drafters.sd2.tree:build",
            "the same draft, as a tree where it is confident",
            "Kavehzadeh et al. 2024",
            weights="sorted",
            tiny="methods.tiny:write_draft",
            check="methods.drafters.sd2.chain:exits_here",
            shapes=(TREE,),
            tree=_growing(10, 4, 60),
            options=_EXITS,
        ),
        DrafterSpec(
            "recycling",
            "methods.drafters.recycling:build",
            "the target's own runners-up of the last time that a token came, as a tree",
            "Luo et al. 2025",
            shapes=(TREE,),
            tree=_nodes(80),
        ),
        DrafterSpec(
            "medusa",
            "methods.drafters.medusa:build",
            "heads on the target's last state, one for each of the next places",
            "Cai et al. 2024",
            weights="medusa",
            tiny="methods.drafters.tiny_heads:write_medusa",
            check="methods.drafters.medusa:check",
            shapes=(TREE, CHAIN),
            tree=_nodes(63),
            typical=True,
        ),
        DrafterSpec(
            "hydra",
            "methods.drafters.hydra:build",
            "heads on the target's last state, each of which knows the tokens before its own",
            "Ankner et al. 2024",
            weights="hydra",
            tiny="methods.drafters.tiny_heads:write_hydra",
            check="methods.drafters.hydra:check",
            shapes=(TREE, CHAIN),
            tree=_nodes(63),
            typical=True,
        ),
        DrafterSpec(
            "eagle",
            "methods.drafters.eagle.build:eagle",
            "a head that predicts the target's next states, as EAGLE-1's static tree",
            "Li et al. 2024 (EAGLE)",
            weights="eagle",
            tiny="methods.drafters.eagle.tiny:write_eagle",
            check="methods.drafters.eagle.files:check_eagle",
            shapes=(TREE, CHAIN),
            tree=_nodes(25),
            options=_ROPE,
        ),
        DrafterSpec(
            "eagle2",
            "methods.drafters.eagle.build:eagle2",
            "the same head, as a tree that grows where it is confident",
            "Li et al. 2024 (EAGLE-2)",
            weights="eagle",
            tiny="methods.drafters.eagle.tiny:write_eagle",
            check="methods.drafters.eagle.files:check_eagle",
            shapes=(TREE, CHAIN),
            tree=_growing(10, 6, 59),
            options=_ROPE,
        ),
        DrafterSpec(
            "eagle3",
            "methods.drafters.eagle.build:eagle3",
            "a head that reads three layers of the target, as a tree that grows where it is confident",
            "Li et al. 2025 (EAGLE-3)",
            weights="eagle3",
            tiny="methods.drafters.eagle.tiny:write_eagle3",
            check="methods.drafters.eagle.files:check_eagle3",
            shapes=(TREE, CHAIN),
            tree=_growing(10, 8, 59),
            options=_ROPE,
        ),
    )
}


def _turns(spec: DrafterSpec) -> MethodSpec:
    """Draft, then verify."""
    window = {"gamma": _window(spec.gamma)} if CHAIN in spec.shapes else {}
    options = {**window, **spec.all_options, **(_TYPICAL if spec.typical else {})}
    name, about = "sps" if spec.name == "model" else spec.name, f"drafts by {spec.about}, then verifies"
    return MethodSpec(name, "turns", about, spec, spec.paper, spec.weights, spec.check, options)


def _pearl(turns: MethodSpec) -> MethodSpec:
    """PEARL over the drafter of a draft-then-verify row, which is measured beside it."""
    spec = turns.drafter
    assert spec is not None, "a row of turns has a drafter"
    return MethodSpec(
        "pearl" if spec.name == "model" else f"pearl-{spec.name}",
        "pearl",
        f"drafts by {spec.about} while it verifies, on two ranks",
        spec,
        "; ".join(filter(None, ("Liu et al. 2025", spec.paper))),
        spec.weights,
        spec.check,
        {**_PEARL, **spec.options},
        beside=(ALL_DEVICES, turns.name),
    )


def _pearls(rows: Iterable[MethodSpec]) -> list[MethodSpec]:
    """PEARL over every drafter of chains."""
    return [_pearl(row) for row in rows if row.drafter is not None and CHAIN in row.drafter.shapes]


_ALONE = (
    MethodSpec(BASELINE, "alone", "the target alone, one token per pass"),
    MethodSpec(
        ALL_DEVICES,
        "alone",
        "the same on the devices of the target's and the draft's rank together",
        all_devices=True,
    ),
)
_TURNS = tuple(map(_turns, DRAFTERS.values()))
_PEERS = (
    MethodSpec(
        "hf-generate",
        "peer",
        "Transformers' generate, for reference",
        lossless=False,
        peer="methods.peers.hf:build_generate",
    ),
    MethodSpec(
        "hf-assisted",
        "peer",
        "Transformers' assisted generation with the pair's draft, for reference",
        weights="model",
        check="methods.drafters.draft_model:check",
        options={"gamma": _window(5)},
        lossless=False,
        peer="methods.peers.hf:build_assisted",
    ),
    MethodSpec(
        "hf-pld",
        "peer",
        "Transformers' prompt lookup, for reference",
        options={"gamma": _window(7), "max_ngram": _NGRAM},
        lossless=False,
        peer="methods.peers.hf:build_pld",
    ),
)
METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in (*_ALONE, *_TURNS, *_pearls(_TURNS), *_PEERS)}


def add_drafter(spec: DrafterSpec) -> None:
    """Give a drafter of your own its rows: draft-then-verify by its name, and PEARL where it drafts chains."""
    DRAFTERS[spec.name] = spec
    turns = _turns(spec)
    METHODS.update({row.name: row for row in (turns, *_pearls([turns]))})


def weight_kinds() -> list[str]:
    """The kinds of weights that drafters need beside the target's, as pairs name them."""
    return list(dict.fromkeys(spec.weights for spec in DRAFTERS.values() if spec.weights))


def get_method(name: str) -> MethodSpec:
    """The row of a method, or of a variant METHOD@OPTION=VALUE[@OPTION=VALUE...], where draft=MODEL is an option of all
    that need weights. What is not known, or does not fit, is a UserError that suggests what would."""
    method, *settings = name.split(VARIANT)
    if method not in METHODS:
        raise UserError(f"no method '{method}'{nearest(method, METHODS)}")
    spec = METHODS[method]
    fixed = read_settings(method, spec.options, bool(spec.weights), settings)
    draft = fixed.pop(DRAFT, None)
    return replace(spec, name=name, fixed=fixed, draft=None if draft is None else str(draft))
