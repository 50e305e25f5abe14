"""The run header `<method>.run.json` beside an answer file: under which conditions it was made.

`RunHeader` is the one place that knows its keys: what each must look like, and what it means for a comparison.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Flag, auto
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, Self, get_type_hints

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from evaluation.answers.files import header_path, read_file, write_whole
from evaluation.answers.kinds import Count, Line, Positive, QuestionNumber, Rate
from methods import METHODS, MethodSpec
from methods.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 2
SCHEMAS = (1, SCHEMA_VERSION)  # that can be read; 1 does not say what a run is (loop, drafter, shape, taps)
MEASURED = ("read_bandwidth", "floor_seconds_per_token")
RESTORE = "restore it, or delete it and its answer file"
SINCE_2 = ("loop", "drafter", "shape", "taps")  # keys that headers have since schema 2
UNSET = "unset"  # what a key is called in a header that lacks it


class Role(Flag):
    """What a key of a header means to who compares two runs. A key may have several roles, or none."""

    OWN = auto()  # what the method itself is; differs between methods of a launch
    TASK = auto()  # must agree for a run and an earlier one to be the same
    WORK = auto()  # must agree for times to be comparable: it is what was done
    OUTPUT = auto()  # must agree for outputs to be equal
    DRAWN = auto()  # as OUTPUT where tokens are drawn
    MACHINE = auto()  # must agree for times to be comparable: it is where it was done
    SHARE = auto()  # of the machine: told where it differs, for it may do so on purpose
    LAUNCH = auto()  # agrees between the methods that one launch measured in turn
    FOUND = auto()  # came out during the run
    TOLD = auto()  # for information: may change where a file is continued
    NULLABLE = auto()  # None says that there is none; of other keys, that an old header lacks it


class Target(TypedDict, total=False):
    """`weight_bytes`: as they lie in memory."""

    source: Required[Line]
    revision: Line | None
    weight_bytes: Count


class Draft(TypedDict, total=False):
    """The weights that a method needs beside the target's. `tokens`: the file by which those of a reduced head were
    chosen."""

    source: Required[Line]
    revision: Line | None
    tokens: Line


class SamplingKeys(TypedDict):
    """As `methods.engine.sampling.Sampling` has them."""

    temperature: Annotated[float, Ge(0), Le(1e6)]
    top_k: Count
    top_p: Annotated[float, Ge(0), Le(1)]


class Server(TypedDict):
    """Who answered over HTTP. `asked`: in which way, by token ids or text; `tokens`: by whom they were counted."""

    url: Line
    model: Line
    asked: Line
    tokens: Line


class Failure(TypedDict):
    """A question that could not be answered, and why."""

    question_id: QuestionNumber | str
    error: str


Choice = Positive | Line  # what a method has settled on: a number, or a word
Settled = Mapping[str, int | str | list[int | str]]
WORK, OUTPUT, TASK = Role.WORK, Role.WORK | Role.OUTPUT, Role.TASK


@dataclass(frozen=True)
class RunHeader:
    """The conditions of a run.

    `loop`, `drafter`, `shape` (of what is drafted) and `taps` (the target's features that the drafter reads) say what
    the run is; `behind`, the weights of who drafts on where its drafter ends, if it has any; `settled`, what the method
    has chosen by itself; `floor_seconds_per_token`, what reading the target's weights once takes; `operators`, whose:
    bits and speed depend on it; `row_counts`: the numbers of rows at which a GPU was found to give a row the same bits,
    one of which each pass has; `tensor_parallel`: ranks among which the target is split, if it is (`ranks` counts these
    as one); `read_once`: a prompt was read once for all methods; `apart`: it answered after the
    other methods of its launch, not in turns with them; `launch`, an id that all headers of a launch and its trace
    share, and `run` one that all launches of a comparison do; `huge_pages`, bytes of memory that the target's rank has
    in huge pages, its weights loaded. `others`: keys of another release, which are kept as they are."""

    method: Annotated[Line, Role.OWN]
    pair: Annotated[Line, TASK]
    benchmark: Annotated[Line, TASK | WORK]
    dtype: Annotated[Line, TASK | OUTPUT]
    sampling: Annotated[SamplingKeys, TASK | OUTPUT]
    max_new_tokens: Annotated[Positive, TASK | OUTPUT]
    options: Annotated[dict[Line, int | float | Line] | None, Role.OWN] = None
    loop: Annotated[Literal["alone", "turns", "pearl", "peer"] | None, Role.OWN | Role.NULLABLE] = None
    drafter: Annotated[Line | None, Role.OWN | Role.NULLABLE] = None
    shape: Annotated[Literal["chain", "tree"] | None, Role.OWN | Role.NULLABLE] = None
    taps: Annotated[list[int] | None, Role.OWN | Role.FOUND | Role.TOLD | Role.NULLABLE] = None
    settled: Annotated[dict[Line, Choice | list[Choice]] | None, Role.OWN | Role.FOUND | Role.TOLD] = None
    ranks: Annotated[Positive | None, Role.OWN] = None
    tensor_parallel: Annotated[Positive | None, Role.OUTPUT] = None
    lossless: Annotated[bool | None, Role.OWN] = None
    methods: Annotated[list[Line] | None, Role.LAUNCH] = None
    launch: Annotated[Line | None, Role.LAUNCH | Role.FOUND | Role.TOLD] = None
    run: Annotated[Line | None, Role.FOUND | Role.TOLD] = None
    command: Annotated[str | None, Role.TOLD] = None
    target: Annotated[Target | None, OUTPUT] = None
    draft: Annotated[Draft | None, Role.OWN | Role.NULLABLE] = None
    behind: Annotated[Draft | None, Role.OWN] = None
    server: Annotated[Server | None, Role.OWN] = None
    apart: Annotated[bool | None, Role.OWN] = None
    devices: Annotated[list[Line] | None, Role.SHARE] = None
    threads: Annotated[Count | None, Role.SHARE] = None
    replicas: Annotated[Positive | None, Role.SHARE] = None
    seed: Annotated[int | None, Role.DRAWN] = None
    context_length: Annotated[Positive | None, Role.TOLD] = None
    eos_token_ids: Annotated[list[Count] | None, OUTPUT] = None
    template: Annotated[Line | None, TASK | OUTPUT] = None
    prompt: Annotated[str | None, Role(0)] = None
    benchmark_sha256: Annotated[Line | None, OUTPUT] = None
    questions: Annotated[Count | None, Role(0)] = None
    repeats: Annotated[Positive | None, Role(0)] = None
    read_once: Annotated[bool | None, WORK] = None
    warm_up: Annotated[Count | None, Role(0)] = None
    operators: Annotated[Line | None, Role(0)] = None
    row_invariant: Annotated[bool | None, Role(0)] = None
    row_counts: Annotated[list[Positive] | None, Role.FOUND | Role.TOLD] = None
    huge_pages: Annotated[Count | None, Role.FOUND | Role.TOLD] = None
    read_bandwidth: Annotated[Rate | None, Role.FOUND | Role.TOLD] = None
    floor_seconds_per_token: Annotated[Annotated[float, Ge(1e-12), Le(1e9)] | None, Role.FOUND | Role.TOLD] = None
    versions: Annotated[dict[Line, Line | None] | None, Role(0)] = None
    cpu: Annotated[Line | None, Role.MACHINE] = None
    gpu: Annotated[Line | None, Role.MACHINE | Role.NULLABLE] = None
    git_commit: Annotated[Line | None, Role.TOLD] = None
    created: Annotated[Line | None, Role.LAUNCH | Role.TOLD] = None
    failures: Annotated[list[Failure], Role.FOUND | Role.TOLD] = field(default_factory=list)
    others: Annotated[Mapping[str, Any], Role(0)] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], place: object = "a run header") -> Self:
        """The header of these keys. Raises UserError, naming the `place`, where they cannot be one's."""
        check_header(raw, place)
        known = {name: raw[name] for name in KEYS if name in raw}
        others = {name: value for name, value in raw.items() if name not in KEYS and name != "schema_version"}
        header = cls(**known, others=others)
        return header if raw["schema_version"] >= SCHEMA_VERSION else header._as_the_table_has_it()

    def _as_the_table_has_it(self) -> Self:
        """With what the oldest headers lack: what the run was, by its method's row."""
        spec = METHODS.get(self.method)
        if spec is None:
            return self
        return replace(self, **what_it_is(spec, self.options or {}), taps=[])  # no drafter read features then

    def to_json(self) -> dict[str, Any]:
        """The keys as they stand in a file."""
        known = {name: getattr(self, name) for name in KEYS}
        written = {name: value for name, value in known.items() if value is not None or name in NULLABLE}
        return {"schema_version": SCHEMA_VERSION} | written | dict(self.others)

    def __getitem__(self, name: str) -> Any:
        """By the name of a key, for who is given names."""
        return getattr(self, name)

    def differences(self, other: "RunHeader", role: Role | None = None) -> dict[str, tuple[Any, Any]]:
        """The keys in which two headers differ, nested keys joined by dots, with both values: those of a role, or all
        that may not change while a file is written."""
        ours, theirs = self._values(role), other._values(role)
        pairs = {key: (ours.get(key, UNSET), theirs.get(key, UNSET)) for key in ours | theirs}
        return {key: values for key, values in pairs.items() if values[0] != values[1]}

    def same_launch(self, other: "RunHeader") -> bool:
        """Whether one launch measured both. Where its id is not recorded, when and with which methods it was begun."""
        names = (
            ["launch"] if self.launch and other.launch else [name for name in of_role(Role.LAUNCH) if name != "launch"]
        )
        return all(self[name] == other[name] for name in names)

    def _values(self, role: Role | None) -> dict[str, Any]:
        names = of_role(role) if role else [name for name in KEYS if not ROLES[name] & Role.TOLD]
        own = {name: self[name] for name in names if self[name] is not None or name in NULLABLE}
        return dict(_flatten(own if role else own | dict(self.others)))

    @property
    def greedy(self) -> bool:
        return self.sampling["temperature"] == 0

    @property
    def exact(self) -> bool:
        """Whether its greedy output must be the baseline's, token by token."""
        return self.lossless is not False

    @property
    def lossy(self) -> bool:
        """Whether it trades the target's distribution for speed, unlike another library's loop, whose output differs by
        its arithmetic."""
        return not self.exact and self.loop != "peer"


HINTS = get_type_hints(RunHeader, include_extras=True)
ROLES: dict[str, Role] = {
    f.name: next(mark for mark in HINTS[f.name].__metadata__ if isinstance(mark, Role))
    for f in fields(RunHeader)
    if f.name != "others"
}
KEYS = tuple(ROLES)
NEEDED = frozenset(f.name for f in fields(RunHeader) if f.default is MISSING and f.default_factory is MISSING)
COMMON = tuple(  # what the methods of a launch have in common, but for what is told of it by itself
    name for name in KEYS if not ROLES[name] & (Role.OWN | Role.FOUND) and name not in ("command", "methods")
)
NULLABLE = frozenset(name for name in KEYS if ROLES[name] & Role.NULLABLE)


def of_role(role: Role) -> list[str]:
    """The keys that have the role, or one of several."""
    return [name for name in KEYS if ROLES[name] & role]


def settled_together(one: Settled | None, other: Settled | None) -> Settled | None:
    """What runs have settled on whose answers are in one file: of each key one value, or all that occur."""
    if one is None or other is None:
        return one or other
    keys = dict.fromkeys([*one, *other])
    found = {key: sorted({*_listed(one.get(key)), *_listed(other.get(key))}, key=_rank) for key in keys}
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def as_it_reads(header: RunHeader) -> RunHeader:
    """The header as a file of it reads."""
    return RunHeader.from_json(json.loads(json.dumps(header.to_json(), allow_nan=False)))


def told_together(headers: Sequence[RunHeader]) -> RunHeader:
    """The header of several launches taken together: the first's, with what was found in any of them."""
    first = headers[0]
    commits = dict.fromkeys(name for h in headers for name in str(h.git_commit or "unknown").split(", "))
    together: dict[str, Any] = {name: _mean([h[name] for h in headers if h[name]]) for name in MEASURED}
    settled: list[Settled | None] = [h.settled for h in headers]
    together["settled"] = reduce(settled_together, settled)
    together["failures"] = [failure for h in headers for failure in h.failures]
    together["git_commit"] = ", ".join(commits) if any(h.git_commit for h in headers) else None
    return replace(first, **together)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _listed(value: int | str | list[int | str] | None) -> list[int | str]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _rank(value: int | str) -> tuple[bool, int, str]:
    """Numbers by size, then words."""
    return (True, 0, value) if isinstance(value, str) else (False, value, "")


def what_it_is(spec: MethodSpec, options: Mapping[str, object]) -> dict[str, Any]:
    """What a header says of its method's row under these options."""
    return {"loop": spec.loop, "drafter": spec.drafter.name if spec.drafter else None, "shape": spec.shape(options)}


def _flatten(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def read_header(path: str | Path) -> RunHeader | None:
    """The run header beside the answer file `path`; None where there is none, as beside Spec-Bench's own files."""
    path = header_path(path)
    if not path.exists():
        return None
    from pydantic_core import from_json  # pydantic takes a moment to load

    try:
        raw = from_json(read_file(path), allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {RESTORE}") from None
    return RunHeader.from_json(raw, path)


@cache
def _adapter() -> "TypeAdapter[Any]":
    """It checks the keys of a header."""
    from pydantic import TypeAdapter

    keys = {name: HINTS[name] if name in NEEDED else NotRequired[HINTS[name]] for name in KEYS}
    return TypeAdapter(TypedDict("HeaderKeys", keys))  # type: ignore[operator]


def check_header(raw: Any, place: object) -> None:
    """Raises UserError where these cannot be the keys of a run header."""
    from evaluation.answers.schema import sentence, shown

    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is not int or version not in SCHEMAS:
        expected = " or ".join(map(str, SCHEMAS))
        raise UserError(f"{place} has schema_version {shown(version)}, not {expected}; read it with a matching release")
    from pydantic import ValidationError

    try:
        _adapter().validate_python(raw, strict=True)
    except ValidationError as error:
        raise UserError(f"{place}: {sentence(error.errors(include_url=False), 'run header')}; {RESTORE}") from None
    for name in [name for name in SINCE_2 if version > 1 and name not in raw]:
        raise UserError(f"{place}: no key '{name}', as every run header has; {RESTORE}")
    for name, value, expected in _wrong_options(raw):
        raise UserError(f"{place}: options.{name}: expected {expected}, got {shown(value)}; {RESTORE}")


def _wrong_options(header: dict[str, Any]) -> Iterator[tuple[str, object, str]]:
    """The options that their method cannot have had: their name, their value, and what was expected."""
    known = METHODS[header["method"]].options if header["method"] in METHODS else {}
    for name, value in (header.get("options") or {}).items():
        if name in known and (isinstance(value, bool) or known[name].read(str(value)) != value):
            yield name, value, known[name].expected


def write_header(path: Path, header: RunHeader) -> None:
    """Write the header whole or leave the old one."""
    write_whole(header_path(path), json.dumps(header.to_json(), indent=2).encode() + b"\n")
