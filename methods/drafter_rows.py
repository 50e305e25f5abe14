"""The table of drafters: rows, data only. To add one: a file below `drafters/` with a `build` function, and a row here.
Importing this imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from methods.options import ALL, AUTO, NOTHING, Option

Shape = Literal["chain", "tree"]
CHAIN: Shape = "chain"
TREE: Shape = "tree"


@dataclass(frozen=True)
class DrafterSpec:
    """A drafter. `build`: "module:function" of (models, **options) that builds it; `about`: completes "by ...";
    `weights`: the kind of weights that it needs, as pairs name them, "" for none; `check`: "module:function" of
    (models) that refuses weights which do not fit, before anything is loaded; `shapes`: of what it proposes, the first
    by default. A drafter of both is built with an option `shape`. One of chains may be PEARL's. `gamma`: the default
    window of its chains in draft-then-verify; `tree` and `chain`: options of its trees alone, of which PEARL has none,
    and of its chains alone. `ends`: its chains end by themselves, so that another drafter may go on behind them.
    `typical`: draft-then-verify may judge what it drafts by typical acceptance, as its paper does. `branching`: it can
    also draft behind other tokens than its drafts, so that PEARL may prepare for them. `before`: it may come before any
    other drafter, which then drafts where it has nothing to, with these of its options by other defaults: for each
    other one there is a row NAME-OTHER by rule, whose `parts` the two are."""

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
    chain: Mapping[str, Option] = field(default_factory=dict)
    ends: bool = False
    typical: bool = False
    branching: bool = False
    before: Mapping[str, Option] = field(default_factory=dict)
    parts: "tuple[DrafterSpec, DrafterSpec] | None" = None

    @property
    def all_options(self) -> dict[str, Option]:
        """What its `build` takes."""
        return {**self._shape, **self.tree, **self.chain, **self.options}

    @property
    def _shape(self) -> dict[str, Option]:
        if len(self.shapes) == 1:
            return {}
        return {"shape": Option(self.shapes[0], "of what is drafted", least=None, words=self.shapes, flag=True)}


NGRAM = Option(3, "longest n-gram looked up")
_MATCH = Option(
    "last",
    "which occurrence is copied: the last, or the first, where a whole window follows it (the published code's)",
    least=None,
    words=("last", "first"),
)
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


def _window_of(columns: int, ngram: int, guesses: int) -> dict[str, Option]:
    """The W, N and G of lookahead decoding, with the published ones."""
    sizes = {
        "columns": (columns, "columns of the Jacobi window (W)", 1),
        "ngram": (ngram, "tokens of an n-gram, and rows of the window and one (N)", 2),
        "guesses": (guesses, "n-grams kept and verified for each first token (G)", 1),
    }
    words = "{}: a number ({}: the paper's); auto: as takes little time on such a device"
    return {n: Option(AUTO, words.format(about, paper), low, (AUTO,)) for n, (paper, about, low) in sizes.items()}


_POOL = Option(
    NOTHING,
    "what the n-grams come from beside the window: nothing, or the text, prompt and answer",
    least=None,
    words=(NOTHING, "text"),
)
TYPICAL = {
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
_HEADS = {"heads": Option(ALL, "most heads that draft: a number, or all that there are", words=(ALL,))}


def _sam(matched: int, alpha: float, longest: int | str) -> dict[str, Option]:
    """Before another drafter less is copied, as that one would draft instead."""
    return {
        "matched": Option(matched, "tokens that must have matched before anything is copied"),
        "alpha": Option(alpha, "most tokens copied for each that has matched", least=0),
        "longest": Option(longest, "most tokens copied at once: a number, or all", words=(ALL,)),
        "occurrence": Option("first", "of the match, behind which is copied", least=None, words=("first", "latest")),
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
            options={"copies": Option(0, "most tokens of the text that the draft checks in one pass", least=0)},
            branching=True,
        ),
        DrafterSpec(
            "pld",
            "methods.drafters.lookup:build",
            "copying what followed the last occurrence of the current n-gram",
            "Saxena 2023",
            gamma=7,
            options={"max_ngram": NGRAM, "match": _MATCH},
        ),
        DrafterSpec(
            "sam",
            "methods.drafters.sam:build",
            "copying what followed the longest suffix of the text that has occurred before",
            "Hu et al. 2025",
            gamma=10,
            options=_sam(1, 4.0, ALL),
            before=_sam(2, 2.0, 15),
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
            branching=True,
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
            options={
                "start": Option(
                    "cold",
                    "cold: every answer begins with nothing; hot: with what was seen in those before, as in the paper, "
                    "so that their order matters",
                    least=None,
                    words=("cold", "hot"),
                )
            },
        ),
        DrafterSpec(
            "rest",
            "methods.drafters.rest:build",
            "what followed the longest suffix that occurs in a datastore, as a tree of the most frequent",
            "He et al. 2024",
            weights="datastore",
            tiny="methods.drafters.rest:write_tiny",
            check="methods.drafters.rest:check",
            shapes=(TREE,),
            tree=_nodes(64),
            options={
                "shortest": Option(1, "tokens of the shortest suffix that is looked up"),
                "matches": Option(100, "most occurrences that are counted (5000: the paper's)"),
            },
        ),
        DrafterSpec(
            "lookahead",
            "methods.drafters.lookahead:build",
            "n-grams that the target has guessed far ahead, by Jacobi iteration in the passes that verify",
            "Fu et al. 2024",
            shapes=(TREE,),
            tree={**_window_of(7, 5, 7), "pool": _POOL},
        ),
        DrafterSpec(
            "ouroboros",
            "methods.drafters.ouroboros:build",
            "a smaller language model's own lookahead decoding, and phrases behind it that the target corrects",
            "Zhao et al. 2024",
            weights="model",
            tiny="methods.tiny:write_draft",
            check="methods.drafters.draft_model:check",
            shapes=(TREE,),
            tree={
                "gamma": Option(6, "tokens drafted per round", flag=True),
                **_window_of(15, 5, 15),
                "phrases": Option(3, "n-grams hung behind the last drafted token"),
            },
        ),
        DrafterSpec(
            "space",
            "methods.drafters.space:build",
            "a target that was trained to say its next tokens behind masks, in the passes that verify",
            "Yi et al. 2024",
            shapes=(TREE,),
            tree={
                "mask": Option(32002, "the mask token, or the last one of a smaller vocabulary", least=0),
                "masks": Option(5, "masks behind each candidate, and candidates of a pass"),
            },
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
            chain=_HEADS,
            ends=True,
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
            chain=_HEADS,
            ends=True,
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
            branching=True,
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
            branching=True,
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
            branching=True,
        ),
    )
}


def composed(first: DrafterSpec, other: DrafterSpec) -> DrafterSpec:
    """The first where it has something to draft, else the other, whose weights, shapes and window it has."""
    return replace(
        other,
        name=f"{first.name}-{other.name}",
        about=f"{first.name} where it has something to draft, else by {other.name}",
        paper="; ".join(filter(None, (first.paper, other.paper))),
        options={**other.options, **first.before},
        ends=False,
        typical=False,
        branching=False,
        parts=(first, other),
    )


def add(spec: DrafterSpec) -> list[str]:
    """Give a drafter its row, and those where it comes before others, or these before it. Returns the rows' names."""
    others = [other for other in DRAFTERS.values() if other.name != spec.name and other.parts is None]
    pairs = [(spec, other) for other in others if spec.before] + [(other, spec) for other in others if other.before]
    rows = {row.name: row for row in (spec, *(composed(*pair) for pair in pairs))}
    DRAFTERS.update(rows)
    return list(rows)


for _spec in [*DRAFTERS.values()]:
    add(_spec)
