"""The table of methods: rows, data only. Importing it imports nothing heavy, so that help and error messages are
instant.

A method is a loop over a drafter. To add a drafter: one file below `drafters/` with a `build` function, and one row in
drafter_rows.py; those of METHODS, draft-then-verify and PEARL, come by themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from methods.drafter_rows import CHAIN, DRAFTERS, NGRAM, TREE, TYPICAL, DrafterSpec, Shape, add
from methods.errors import UserError, nearest
from methods.options import AUTO, DRAFT, GIVEN, NOTHING, VARIANT, Option, Value, read_settings

BASELINE = "autoregressive"
ALL_DEVICES = "autoregressive-all"


SERVER = "server"
PLAIN = "plain"  # the server of a URL without a name: the one that speculates nothing

BEHIND = "behind"  # an option: who drafts on where a drafter's chains end

Loop = Literal["alone", "turns", "pearl", "peer"]


@dataclass(frozen=True)
class MethodSpec:
    """One row: a loop over a drafter (None: the target alone, or another library's own loop).

    `weights` and `check`: as a drafter has them; `options`: the loop's and the drafter's; `beside`: methods that are
    measured with it; `all_devices`: it runs on what all ranks of a replica own; `lossless`: its greedy output must be
    the baseline's (False: another library's arithmetic); `peer`: "module:function" that builds another library's loop;
    `served`: that is a server, in a process of its own. `fixed`: options of a variant, which the command line's do not
    change; `draft`: a variant's own."""

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
    served: bool = False
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

    def check_branches(self, options: Mapping[str, object]) -> None:
        """Raises UserError where PEARL is to prepare branches with a drafter that cannot."""
        if options.get("branches") and self.drafter is not None and not self.drafter.branching:
            raise UserError(
                f"{self.name} drafts by {self.drafter.about}, which cannot prepare branches: leave out --branches, or "
                f"set it for those that can ({', '.join(_branching())}), as {_branching()[0]}@branches=3"
            )

    def behind(self, options: Mapping[str, object]) -> DrafterSpec | None:
        """Who drafts on where the chains of its own drafter end, under these options."""
        name = options.get(BEHIND, NOTHING)
        return None if name == NOTHING or self.shape(options) == TREE else DRAFTERS[str(name)]

    def needs(self, options: Mapping[str, object]) -> dict[str, str]:
        """The kinds of weights that it needs under these options, its own first, and what checks each, as `check`."""
        other = self.behind(options)
        found = {self.weights: self.check} | ({other.weights: other.check} if other else {})
        return {kind: check for kind, check in found.items() if kind}

    def is_lossless(self, options: Mapping[str, object]) -> bool:
        """Whether its output is the target's under these options."""
        return self.lossless and not any(options.get(name) in option.lossy for name, option in self.options.items())

    def counting(self, options: Mapping[str, Value]) -> dict[str, Value]:
        """Those of its options that count for what is drafted under them: a tree has no window, a chain no nodes, and
        PEARL without branches, or a draft that copies nothing, is the paper's.

        Raises UserError where a variant sets another one, or where the drafter cannot do what they ask for."""
        if self.loop == "pearl":
            self.check_branches(options)
            papers = {"branches": 0, "schedule": GIVEN, "copies": 0}
            return {name: value for name, value in options.items() if value != papers.get(name)}
        options = {name: value for name, value in options.items() if (name, value) != ("copies", 0)}
        if self.drafter is None or len(self.drafter.shapes) == 1:
            return dict(options)
        shape = self.shape(options)
        idle = ["gamma", BEHIND, *self.drafter.chain] if shape == TREE else list(self.drafter.tree)
        for name in idle:
            if name in self.fixed:
                other = CHAIN if shape == TREE else TREE
                raise UserError(f"{self.name}: {name} counts for a {other} only, this is a {shape}; add @shape={other}")
        return {name: value for name, value in options.items() if name not in idle}


def _branching() -> list[str]:
    """The rows of PEARL that can prepare branches."""
    return [spec.name for spec in METHODS.values() if spec.loop == "pearl" and spec.drafter and spec.drafter.branching]


def _window(default: int | str, help: str = "tokens drafted per round", words: tuple[str, ...] = ()) -> Option:
    return Option(default, help, words=words, flag=True)


_PEARL = {
    "gamma": _window(
        AUTO,
        "tokens drafted per round: a number; auto: as fit into a pass of the target; free: until it has decided",
        (AUTO, "free"),
    ),
    "without": Option(
        NOTHING,
        "leave out pre-verify, post-verify or both",
        least=None,
        words=(NOTHING, "pre-verify", "post-verify", "both"),
        flag=True,
    ),
    "schedule": Option(
        GIVEN,
        "given: as --without and --branches say; auto: the paper's, without pre-verify, or with branches, by what the "
        "warm-up shows",
        least=None,
        words=(GIVEN, AUTO),
        flag=True,
    ),
    "branches": Option(
        0,
        "other tokens at each place of PEARL's drafts behind which it prepares windows while it verifies (0: none)",
        least=0,
        flag=True,
    ),
}


def _behind(spec: DrafterSpec) -> dict[str, Option]:
    """Where its chains end, any other drafter of chains may go on."""
    alone = [other for other in DRAFTERS.values() if other.parts is None and other.name != spec.name]
    others = [other.name for other in alone if CHAIN in other.shapes]
    help = "who drafts on behind the last head of a chain, with the pair's weights of its kind"
    return {BEHIND: Option(NOTHING, help, least=None, words=(NOTHING, *others))} if spec.ends else {}


def _turns(spec: DrafterSpec) -> MethodSpec:
    """Draft, then verify."""
    window = {"gamma": _window(spec.gamma)} if CHAIN in spec.shapes else {}
    options = {**window, **spec.all_options, **_behind(spec), **(TYPICAL if spec.typical else {})}
    name, about = "sps" if spec.name == "model" else spec.name, f"drafts by {spec.about}, then verifies"
    return MethodSpec(name, "turns", about, spec, spec.paper, spec.weights, spec.check, options)


def _pearl(turns: MethodSpec) -> MethodSpec:
    """PEARL over the drafter of a draft-then-verify row, which is measured beside it."""
    spec = turns.drafter
    assert spec is not None, "a row of turns has a drafter"
    within = ", as far as they reach," if spec.ends else ""
    return MethodSpec(
        "pearl" if spec.name == "model" else f"pearl-{spec.name}",
        "pearl",
        f"drafts by {spec.about}{within} while it verifies, on two ranks",
        spec,
        "; ".join(filter(None, ("Liu et al. 2025", spec.paper))),
        spec.weights,
        spec.check,
        {**_PEARL, **spec.chain, **_behind(spec), **spec.options},
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
_LLAMA_LOOP = Option(
    "api",
    "api: over its C functions, so that all the time is its own; binding: its Python package's own loop",
    least=None,
    words=("api", "binding"),
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
        options={"gamma": _window(7), "max_ngram": NGRAM},
        lossless=False,
        peer="methods.peers.hf:build_pld",
    ),
    MethodSpec(
        "llama-cpp",
        "peer",
        "llama.cpp on the same weights, for reference",
        options={"loop": _LLAMA_LOOP},
        lossless=False,
        peer="methods.peers.llama_cpp:build",
    ),
    MethodSpec(
        "llama-cpp-lookup",
        "peer",
        "llama.cpp with its Python package's prompt lookup, for reference",
        options={"loop": _LLAMA_LOOP, "gamma": _window(10), "max_ngram": Option(2, NGRAM.help)},
        lossless=False,
        peer="methods.peers.llama_cpp:build_lookup",
    ),
    MethodSpec(
        SERVER,
        "peer",
        "a server that is asked over HTTP, of --server: vLLM, SGLang, llama.cpp or any other that does as OpenAI's",
        options={
            "name": Option(PLAIN, "which of the servers of --server NAME=URL", least=None, named=True),
            "timeout": Option(120.0, "seconds that it may say nothing for", least=0.001),
        },
        lossless=False,
        peer="methods.peers.server:build",
        served=True,
    ),
)
METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in (*_ALONE, *_TURNS, *_pearls(_TURNS), *_PEERS)}


def add_drafter(spec: DrafterSpec) -> None:
    """Give a drafter of your own its rows: draft-then-verify by its name, and PEARL where it drafts chains."""
    added = add(spec)
    changed = [each for each in DRAFTERS.values() if each.name in added or each.ends]  # behind these it may go on
    turns = [*map(_turns, changed)]
    METHODS.update({row.name: row for row in (*turns, *_pearls(turns))})


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
