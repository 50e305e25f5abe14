"""A command line, METHOD[,METHOD...] PAIR and options, says what a run measures; this module fills in every default.

Nothing heavy is imported here, so that help and error messages are instant.
"""

import argparse
import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.answers.files import answers_of, header_path, launch_folder
from evaluation.answers.header import SamplingKeys
from evaluation.launch import arguments
from evaluation.launch.benchmarks import known_benchmarks
from evaluation.launch.flags import all_options, command_parser
from evaluation.launch.servers import check_servers, turns
from methods import BASELINE, METHODS, VARIANT, MethodSpec, get_method
from methods.errors import UserError, nearest, shown
from methods.pairs import DTYPE_OF, DTYPES, Pair, every_kind, get_pair, known_pairs, own_pair
from methods.paths import ROOT, name_fault, path_fault

PASSED_ON = (
    *(
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "repeats",
        "threads",
        "device",
        "draft_gpus",
        "tensor_parallel",
        "replicas",
        "read_once",
        "trace",
    ),
    *("servers", "interleave", "json"),
)
ELSEWHERE = ("output", "launches", "pause", "trace", "json", "command", "launch")  # another one is the same work
COLDEST = 1e-6  # a temperature by which logits can be divided
LONGEST_ENDING = ".tmp"  # of a file beside an answer file
SHOWN = 40  # characters of a value
LONGEST_NAME = 100  # characters of the methods in the name of a folder


@dataclass(frozen=True)
class RunConfig:
    """A launch measures the baseline and the chosen methods on one pair and one benchmark."""

    methods: tuple[str, ...]
    pair: Pair
    benchmark: str
    questions: Path | None
    limit: int | None
    max_new_tokens: int
    dtype: str
    template: str
    temperature: float
    top_k: int
    top_p: float
    seed: int
    repeats: int
    read_once: bool
    threads: int | None
    device: str
    draft_gpus: int
    tensor_parallel: int
    options: dict[str, str]  # of methods, as typed
    replicas: int
    trace: Path | None
    servers: dict[str, list[str]]  # name -> URLs
    interleave: bool
    output: Path
    json: bool
    command: str = ""  # as typed, for the run headers
    launches: int = 1
    pause: float = 0.0  # seconds between two of them
    launch: int = 1  # the number of this one

    @property
    def specs(self) -> list[MethodSpec]:
        return [get_method(name) for name in self.methods]

    @property
    def folder(self) -> Path:
        """This is where the answer files of this launch go."""
        return self.folder_of(self.launch)

    def folder_of(self, launch: int) -> Path:
        """Return where those of another one do."""
        return launch_folder(self.output, launch) / self.benchmark / self.pair.name

    def options_of(self, spec: MethodSpec) -> dict[str, Any]:
        """Return a method's own options: its variant's, else those typed, else its defaults. A typed value that only
        another method of the run can take is not this one's, nor is one that does not count for what it drafts."""
        typed = {name: option.read(self.options.get(name, "")) for name, option in spec.options.items()}
        told = {name: value for name, value in typed.items() if value is not None}
        return spec.counting({name: option.default for name, option in spec.options.items()} | told | dict(spec.fixed))

    def draft_of(self, spec: MethodSpec) -> str | None:
        """Return the draft of a method: its variant's own, else the pair's."""
        return spec.draft or self.pair.drafts.get(spec.weights)

    def weights_of(self, spec: MethodSpec) -> dict[str, str | None]:
        """Return where the weights of each kind lie that a method needs, its own first; None where the pair has none.
        A variant's own draft is of its own kind."""
        found = {kind: self.pair.drafts.get(kind) for kind in spec.needs(self.options_of(spec))}
        return found | ({spec.weights: self.draft_of(spec)} if spec.weights else {})

    @property
    def turns(self) -> list[list[str]]:
        """Return which methods take turns, question by question."""
        return turns(self)

    @property
    def sampling(self) -> SamplingKeys:
        """How tokens are drawn, as headers say it."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    @property
    def ranks(self) -> int:
        """Count the processes of a replica."""
        return self.tensor_parallel - 1 + max(spec.ranks for spec in self.specs)


def parse(typed: list[str]) -> RunConfig:
    """Read a command line and fill in the defaults. Raises UserError for values that do not fit."""
    typed = arguments.join_methods(typed)
    args = command_parser().parse_args(typed)
    return replace(configure(args), command=_command(typed), launches=args.launches, pause=args.pause)


def _command(typed: list[str]) -> str:
    """The command line of one launch that does the same work, wherever its answers went."""
    places = argparse.ArgumentParser(add_help=False)
    for name in ("output", "trace", "launches", "pause"):
        places.add_argument(f"--{name}")
    places.add_argument("--json", action="store_true")
    _, work = places.parse_known_args(typed)
    return shlex.join(["./eval.sh", *work])


def configure(args: argparse.Namespace) -> RunConfig:
    """Do the same with arguments that a command has parsed."""
    _check_order(args)
    pair = _pair(args)
    own_benchmark = args.questions is None and args.benchmark in (None, pair.benchmark)
    config = RunConfig(
        methods=_with_companions(args.methods, args.alone),
        pair=pair,
        benchmark=_name_of(args.questions) if args.questions else args.benchmark or pair.benchmark,
        questions=args.questions,
        limit=args.limit or (pair.limit if own_benchmark else None),
        max_new_tokens=args.max_new_tokens or pair.max_new_tokens,
        dtype=DTYPE_OF.get(args.dtype, args.dtype) or pair.dtype,
        template=args.template or pair.template,
        options={name: value for name in all_options() if (value := getattr(args, name)) is not None},
        output=args.output or Path(),
        **{name: getattr(args, name) for name in PASSED_ON},
    )
    _check_methods(config)
    _check_names(config)
    _check_values(config)
    check_servers(config)
    return config if args.output else replace(config, output=default_output(config))


def _check_order(args: argparse.Namespace) -> None:
    """A pair in the place of the methods is told apart from an unknown method."""
    if args.methods in METHODS or args.methods not in known_pairs():
        return
    other = args.pair if args.pair and args.pair.partition(VARIANT)[0].split(",")[0] in METHODS else "METHOD"
    raise UserError(f"expected methods before the pair, got the pair '{args.methods}': write {other} {args.methods}")


def _name_of(questions: Path) -> str:
    """What the questions of a file are called: the file's name without what follows a dot."""
    return questions.name.lstrip(".").split(".")[0] or "questions"


def _with_companions(chosen: str, alone: bool) -> tuple[str, ...]:
    """The baseline, what is measured beside the chosen methods, and these."""
    names = [name for text in chosen.split(",") if (name := text.strip())]
    if not names:
        raise UserError(f"expected a method, or several with commas between, got {shown(chosen)}")
    specs = [get_method(name) for name in names]
    there = {spec.method for spec in specs}
    beside = [] if alone else [other for spec in specs for other in spec.beside if other not in there]
    return tuple(dict.fromkeys([BASELINE, *beside, *names]))


def _pair(args: argparse.Namespace) -> Pair:
    """The named pair, with --target and --draft put in; a target alone makes a pair of its own name."""
    if args.pair is None and args.target is None:
        raise UserError(f"expected a pair after the methods, got none; known: {', '.join(known_pairs())}")
    if args.pair is None:
        return own_pair(args.target, args.draft)
    if args.pair.partition(VARIANT)[0] in METHODS:
        raise UserError(f"expected a pair, got the method '{args.pair}': several methods have commas between")
    pair = get_pair(args.pair)
    drafts = every_kind(args.draft) or pair.drafts
    if args.target:  # whose tokens may be others
        return replace(pair, target=args.target, drafts=drafts, frequent=None)
    return replace(pair, drafts=drafts)


def _check_methods(config: RunConfig) -> None:
    for name in config.options:
        if not any(name in spec.options for spec in config.specs):
            flag = name.replace("_", "-")
            raise UserError(f"none of {', '.join(config.methods)} has an option --{flag}; leave it out")
    for spec in config.specs:
        for kind, source in config.weights_of(spec).items():
            if source is None:
                other = "pass --draft MODEL" if kind == spec.weights else f"add drafts.{kind} to data/pairs.toml"
                raise UserError(
                    f"'{spec.name}' needs a draft of the kind '{kind}', and {config.pair.name} has none; {other}"
                )


def _check_names(config: RunConfig) -> None:
    """What is to name files can do so."""
    drafts = [draft for spec in config.specs for draft in config.weights_of(spec).values()]
    for text in filter(None, (config.pair.target, *drafts)):
        if fault := path_fault(text):
            raise UserError(f"expected a model folder, a .gguf file or a hub id, but {shown(text)} {fault}")
    for name in config.methods:
        if name_fault(header_path(answers_of(Path(), name)).name + LONGEST_ENDING):
            raise UserError(f"the variant {shown(name)} has too long a name for a file; give its draft by --draft")


def _check_values(config: RunConfig) -> None:
    if config.questions is None and config.benchmark not in known_benchmarks():
        raise UserError(f"no benchmark '{config.benchmark}'{nearest(config.benchmark, known_benchmarks())}")
    if config.dtype not in DTYPES:
        raise UserError(f"no dtype '{config.dtype}'{nearest(config.dtype, DTYPES)}")
    if config.template not in ("chat", "raw") and not config.template.startswith("fschat:"):
        raise UserError(f"unknown template '{config.template}': expected chat, raw or fschat:NAME")
    if not (config.temperature == 0 or config.temperature >= COLDEST) or not 0 < config.top_p <= 1 or config.top_k < 0:
        given = f"{config.temperature}, {config.top_p}, {config.top_k}"
        raise UserError(
            f"expected temperature >= 0 (0, or at least {COLDEST}), 0 < top-p <= 1 and top-k >= 0, got {given}"
        )
    for spec in config.specs:
        if config.temperature == 0 and spec.lossless and not spec.is_lossless(config.options_of(spec)):
            raise UserError(f"{spec.name}: typical acceptance is a rule for sampling; add --temperature 0.7")
    for name, text in config.options.items():
        takers = [spec.options[name] for spec in config.specs if name in spec.options]
        if all(option.read(text) is None for option in takers):
            expected = max((option.expected for option in takers), key=len)
            raise UserError(f"expected --{name.replace('_', '-')} to be {expected}, got {text[:SHOWN] or 'nothing'}")


def default_output(config: RunConfig) -> Path:
    """One folder per configuration: the same command continues an interrupted run, another one starts its own."""
    known = {name: value for name, value in asdict(config).items() if name not in ELSEWHERE}
    del known["pair"]["download_gb"]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    methods = "+".join(name for name in config.methods if name != BASELINE) or BASELINE
    return ROOT / "results" / "local" / f"{methods[:LONGEST_NAME]}-{digest[:8]}"
