"""What answer lines, run headers and traces must look like, checked as they are read.

A file that does not is refused in one sentence: where, which key, what was expected, what came, what to do. Imported
only where a file is read, since pydantic takes a moment to load.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json
from typing_extensions import TypedDict

from evaluation.answers.files import told
from evaluation.answers.header import (
    HINTS,
    KEYS,
    LARGEST_ID,
    NEEDED,
    SCHEMAS,
    Count,
    Line,
    Number,
    QuestionNumber,
    RunHeader,
)
from evaluation.answers.record import UNCATEGORIZED, Answer
from methods import METHODS
from methods.errors import UserError

LONGEST_SHOWN = 40
RESTORE = "restore it, or delete it and its answer file"
SINCE_2 = ("loop", "drafter", "shape", "taps")  # keys that headers have since schema 2


class NameKeys(TypedDict):
    name: Line


class NamingKeys(TypedDict):
    """A trace event that names a process or a thread."""

    ph: Literal["M"]
    name: Literal["process_name", "thread_name"]
    pid: Count
    tid: Count
    args: NameKeys


class TurnKeys(TypedDict):
    """`round`: the number of the target pass within the answer; older traces lack it."""

    question: QuestionNumber | str
    turn: Count
    round: NotRequired[Count]


class SpanKeys(TypedDict):
    """A trace event that is a span of time; `ts` and `dur` in microseconds."""

    ph: Literal["X"]
    name: Literal["draft", "verify", "wait"]
    pid: Count
    tid: Count
    ts: Number
    dur: Annotated[float, Ge(0), Le(1e15)]
    args: TurnKeys


class LaunchKeys(TypedDict, total=False):
    launch: Line


class TraceKeys(TypedDict):
    otherData: NotRequired[LaunchKeys]  # so the format calls it
    traceEvents: list[Annotated[NamingKeys | SpanKeys, Field(discriminator="ph")]]


ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
HEADER: TypeAdapter[Any] = TypeAdapter(
    TypedDict("HeaderKeys", {name: HINTS[name] if name in NEEDED else NotRequired[HINTS[name]] for name in KEYS})  # type: ignore[operator]
)
TRACE: TypeAdapter[Any] = TypeAdapter(TraceKeys)


def torn(line: bytes) -> bool:
    """Whether a line ends where a crash has torn it, so that it is the beginning of one."""
    try:
        from_json(line)
    except ValueError as error:
        return str(error).startswith("EOF while parsing") or b"\0" in line
    return False


def parse_answer(line: bytes, place: str) -> Answer:
    """The answer of a line of any answer file. `place`: where it stands, for the UserError if it is none."""
    try:
        return ANSWER.validate_json(line, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    if wrong[0]["type"] == "json_invalid":
        raise UserError(f"{place} is not valid JSON ({wrong[0]['ctx']['error']}); remove that line")
    if any(detail["type"] == "missing" for detail in wrong):
        translated = json.dumps(_translated(from_json(line))).encode()
        try:
            return ANSWER.validate_json(translated, strict=True)
        except ValidationError as error:
            wrong = error.errors(include_url=False)
    raise UserError(f"{place}: {_sentence(wrong, 'answer file')}; correct or remove that line")


def _translated(record: Any) -> Any:
    """A line of the scripts of REST or Medusa in Spec-Bench's keys: these have no categories; REST's accept lengths
    have a key of their own, and Medusa's are not there. Ours, which hold token ids, are left as they are."""
    choices = record.get("choices") if isinstance(record, dict) else None
    if not isinstance(choices, list) or not all(isinstance(c, dict) and "token_ids" not in c for c in choices):
        return record
    lengths = [{"accept_lengths": choice.get("accept_lengths:", [])} | choice for choice in choices]
    return {"category": UNCATEGORIZED} | record | {"choices": lengths}


def parse_header(data: bytes, path: Path) -> RunHeader:
    """A run header as it stands in the file at `path`. Raises UserError where it cannot be used."""
    try:
        raw = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {RESTORE}") from None
    return RunHeader.from_json(raw, path)


def check_header(raw: Any, place: object) -> None:
    """Raises UserError where these cannot be the keys of a run header."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is not int or version not in SCHEMAS:
        expected = " or ".join(map(str, SCHEMAS))
        raise UserError(f"{place} has schema_version {shown(version)}, not {expected}; read it with a matching release")
    try:
        HEADER.validate_python(raw, strict=True)
    except ValidationError as error:
        raise UserError(f"{place}: {_sentence(error.errors(include_url=False), 'run header')}; {RESTORE}") from None
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


def parse_trace(data: bytes) -> dict[str, Any]:
    """What a trace file holds. Raises ValueError saying what is wrong."""
    try:
        return TRACE.validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False), "trace")) from None


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags} as its {discriminator}",
    "union_tag_not_found": "a key {discriminator}",
    "none_required": "null",
    "predicate_failed": "a text of one line",
}


def _sentence(errors: list[ErrorDetails], kind: str) -> str:
    """The first thing that is wrong: the key, what was expected, what came."""
    first, place = errors[0], errors[0]["loc"]
    if first["type"] == "missing":
        within = f" in {_key(place[:-1])}" if place[:-1] else ""
        return f"no key '{place[-1]}'{within}, as every {kind} has"
    if first["type"] == "json_invalid":
        return f"no valid JSON: {first['ctx']['error']}"
    alike = [e for e in errors if e["loc"][:-1] == place[:-1] and e["input"] is first["input"]]
    if len(alike) > 1:  # of a union: one error for each of its types, which the last part of the place names
        place = place[:-1]
    where = f"{_key(place)}: " if place else ""
    if first["type"] == "value_error":
        return f"{where}{first['ctx']['error']}"
    expected = " or ".join(dict.fromkeys(map(_expected, alike)))
    return f"{where}expected {expected}, got {shown(first['input'])}"


def _expected(error: ErrorDetails) -> str:
    if isinstance(error["input"], float) and not math.isfinite(error["input"]):
        return "a finite number"
    return EXPECTED[error["type"]].format(**error.get("ctx", {})) if error["type"] in EXPECTED else told(error["msg"])


def _key(place: tuple[int | str, ...]) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return told(words.removeprefix("."))[: 2 * LONGEST_SHOWN]


def shown(value: object) -> str:
    """A value that came, as JSON has it; long ones shortened."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > LARGEST_ID:
        return f"a number of {value.bit_length()} bits"
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
