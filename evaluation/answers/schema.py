"""What pydantic finds wrong in a file that is read, in one sentence: which key, what was expected, what came. And what
traces must look like. Imported only where a file is read, since pydantic takes a moment to load.
"""

import json
import math
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json
from typing_extensions import TypedDict

from evaluation.answers.files import told
from evaluation.answers.kinds import LARGEST_ID, Count, Line, Number, QuestionNumber

LONGEST_SHOWN = 40


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
    """`round`: the number of the target pass within the answer; older traces lack it. `depth`: of the first token that
    was drafted, behind the last true feature; only where a drafter reads features."""

    question: QuestionNumber | str
    turn: Count
    round: NotRequired[Count]
    depth: NotRequired[Count]


class SpanKeys(TypedDict):
    """A trace event that is a span of time; `ts` and `dur` in microseconds."""

    ph: Literal["X"]
    name: Literal["draft", "prepare", "verify", "wait"]
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


TRACE: TypeAdapter[Any] = TypeAdapter(TraceKeys)


def torn(line: bytes) -> bool:
    """Whether a line ends where a crash has torn it, so that it is the beginning of one."""
    try:
        from_json(line)
    except ValueError as error:
        return str(error).startswith("EOF while parsing") or b"\0" in line
    return False


def parse_trace(data: bytes) -> dict[str, Any]:
    """What a trace file holds. Raises ValueError saying what is wrong."""
    try:
        return TRACE.validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(sentence(error.errors(include_url=False), "trace")) from None


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


def sentence(errors: list[ErrorDetails], kind: str) -> str:
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
