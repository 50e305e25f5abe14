"""Answer files: what was generated, and how long it took.

One answer file holds one line per question, in the format of Spec-Bench (Xia et al. 2024) with further keys inside each
choice; the run header `<method>.run.json` beside it holds the conditions. A run writes both through `AnswerFile`. Files
written by Spec-Bench's own scripts, which have fewer keys and no header, are read too.
"""

import gc
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from io import BytesIO
from itertools import chain
from operator import le
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from evaluation.answers.files import read_file, uncompressed
from evaluation.answers.kinds import LARGEST_ID, Count, Number, Positive, QuestionId, Rate
from evaluation.answers.lines import to_line
from methods.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Seconds = Annotated[float, Ge(0), Le(1e9)]

FAILED_TURN = "ERROR"  # what Spec-Bench writes for a turn that raised
UNCATEGORIZED = "no category"  # where a script writes none
ROUNDED = 1e-5  # seconds, to which the time of a pass is written
FULL = "context"  # the `finish` of a turn that has come to the end of the context


@dataclass(frozen=True, slots=True)
class Choice:
    """One repeat of one question. Lists have one entry per turn, except `accept_lengths`, flat over the turns.

    Times are seconds, prefill included in `wall_time`. `decoding_steps` counts target passes after prefill. Keys from
    `token_ids` on are ours: Spec-Bench's files lack them. Raises ValueError where the counts contradict each other.
    """

    turns: list[str]
    new_tokens: list[Count]
    wall_time: list[Seconds]
    accept_lengths: list[Count]
    index: Count = 0
    decoding_steps: list[int] | None = None  # some of Spec-Bench's scripts call it "idxs", some store tokens in it
    token_ids: list[list[Count]] | None = None
    finish: list[str] | None = None
    prefill_time: list[Seconds] | None = None
    draft_time: list[Seconds] | None = None
    draft_bytes: list[Count] | None = None  # of weights that were read meanwhile
    verify_time: list[Seconds] | None = None
    wait_time: list[Seconds] | None = None
    drafted: list[list[Count]] | None = None
    accepted: list[list[Count]] | None = None
    nodes: list[list[Positive]] | None = None  # rows that each pass scored, the prefill's one among them
    proposed: list[Count] | None = None  # drafted tokens, those included that no pass has judged
    prepared: list[Count] | None = None  # PEARL with branches: outcomes of passes that had a window before they came,
    hits: list[Count] | None = None  # those among them that did come,
    misses: list[Count] | None = None  # others that came and needed a window,
    hidden_time: list[Seconds] | None = None  # for which the windows of hits had been drafted,
    prepare_time: list[Seconds] | None = None  # and all windows of branches
    margins: list[list[Number]] | None = None
    told_drafted: list[Count] | None = None  # tokens that a server says it has drafted, whose passes are not known,
    told_accepted: list[Count] | None = None  # and those of them that were accepted
    read_bandwidth: Rate | None = None  # bytes per second that were read from memory just before, out of all times
    depths: list[list[Count]] | None = None  # of each judged token of chains, pass by pass: see judge/acceptance.py
    pass_time: list[list[Seconds]] | None = None  # of each pass, the prefill first, to 10 microseconds

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("'turns' is empty")
        if self.any_failed:
            return  # what a failed turn left behind is not data, so it need not be consistent
        self._check_lengths()
        self._check_parts()
        if self.token_ids is not None:
            self._check_ledger(self.token_ids)

    def failed(self, turn: int) -> bool:
        """Whether this turn raised in one of Spec-Bench's scripts. Ours never write a failed question as an answer."""
        return self.token_ids is None and self.turns[turn] == FAILED_TURN

    @property
    def any_failed(self) -> bool:
        """Whether at least one turn failed."""
        return self.token_ids is None and FAILED_TURN in self.turns

    def too_long(self, turn: int) -> bool:
        """Whether the prompt of this turn does not fit the target's context, so that it has no tokens."""
        if self.finish is None or self.any_failed:
            return False
        return self.finish[turn] == FULL and self.new_tokens[turn] == 0

    @property
    def never_fits(self) -> bool:
        """Whether that is so of every turn."""
        return all(self.too_long(turn) for turn in range(len(self.turns)))

    @property
    def usable(self) -> bool:
        """Whether no turn failed, and one has an answer."""
        return not self.any_failed and not self.never_fits

    @property
    def tells_passes(self) -> bool:
        """Whether it is recorded which pass decided which tokens: of a server's answers it is not."""
        return bool(self.accept_lengths) or any(self.decoding_steps or [1])

    def _check_lengths(self) -> None:
        for key in PER_TURN:
            value = getattr(self, key)
            if value is not None and len(value) != len(self.turns):
                raise ValueError(f"'{key}' must have one entry for each of the {len(self.turns)} turns")

    def _check_parts(self) -> None:
        """No part is more than its whole."""
        if self.prefill_time is not None and not all(map(le, self.prefill_time, self.wall_time)):
            raise ValueError("'prefill_time' is longer than the 'wall_time' that includes it")
        self._check_nodes()
        self._check_depths()
        self._check_pass_time()
        if self.accepted is None or self.drafted is None:
            return
        for accepted, drafted in zip(self.accepted, self.drafted, strict=True):
            if len(accepted) != len(drafted) or not all(map(le, accepted, drafted)):
                raise ValueError("'accepted' must have one entry for each of 'drafted', and none may be more than it")

    def _check_nodes(self) -> None:
        if self.nodes is None:
            return
        if self.decoding_steps is None or [len(turn) for turn in self.nodes] != self.decoding_steps:
            raise ValueError("'nodes' must have one entry for each of the 'decoding_steps'")
        if self.drafted is not None:
            judged = zip(chain(*self.drafted), chain(*self.nodes), strict=False)
            if [len(turn) for turn in self.drafted] != self.decoding_steps or not all(d <= n for d, n in judged):
                raise ValueError("'drafted' must have one entry for each of 'nodes', and none may be more than it")

    def _check_depths(self) -> None:
        if self.depths is not None and [len(turn) for turn in self.depths] != [sum(d) for d in self.drafted or []]:
            raise ValueError("'depths' must have one entry for each judged token of 'drafted'")

    def _check_pass_time(self) -> None:
        if self.pass_time is None:
            return
        if [len(turn) for turn in self.pass_time] != self.decoding_steps:
            raise ValueError("'pass_time' must have one entry for each of the 'decoding_steps'")
        for turn, wall in zip(self.pass_time, self.wall_time, strict=True):
            if sum(turn) > wall + ROUNDED * (len(turn) + 1):
                raise ValueError("'pass_time' sums to more than the 'wall_time' that includes it")

    def _check_ledger(self, token_ids: list[list[int]]) -> None:
        if [len(tokens) for tokens in token_ids] != self.new_tokens:
            raise ValueError("'new_tokens' does not count 'token_ids'")
        if not self.tells_passes:
            return
        if sum(self.accept_lengths) != sum(self.new_tokens):
            raise ValueError(
                f"'accept_lengths' sums to {sum(self.accept_lengths)}, not to {sum(self.new_tokens)} tokens"
            )
        steps = self.decoding_steps or []
        if len(steps) != len(self.turns) or min(steps) < 0 or sum(steps) != len(self.accept_lengths):
            raise ValueError("'accept_lengths' must have one entry for each of the 'decoding_steps'")


NOT_PER_TURN = ("turns", "index", "accept_lengths", "decoding_steps", "read_bandwidth")
PER_TURN = [f.name for f in fields(Choice) if f.name not in NOT_PER_TURN]


@dataclass(frozen=True)
class Answer:
    """One question's answers, one `Choice` per repeat."""

    question_id: QuestionId
    category: str
    model_id: str
    choices: list[Choice]
    answer_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    tstamp: Number = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if isinstance(self.question_id, bool) or not isinstance(self.question_id, int | str):
            raise ValueError("'question_id' must be a number or a text")
        if isinstance(self.question_id, int) and abs(self.question_id) > LARGEST_ID:
            raise ValueError(f"'question_id' must be at most {LARGEST_ID}")
        if not self.choices:
            raise ValueError("'choices' is empty")
        if len({choice.index for choice in self.choices}) != len(self.choices):
            raise ValueError("two choices have the same 'index'")

    def to_line(self) -> bytes:
        """The answer as one line of JSON, keys in Spec-Bench's order, unknown ones left out."""
        record = {key: getattr(self, key) for key in ("question_id", "category", "answer_id", "model_id")}
        record["choices"] = [{k: v for k, v in asdict(choice).items() if v is not None} for choice in self.choices]
        record["tstamp"] = self.tstamp
        return to_line(record)


def read_answers(path: str | Path, keep: Callable[[Answer], Answer] | None = None) -> dict[QuestionId, Answer]:
    """The answers of a file by question id, in the file's order. A torn last line, as a crash leaves it, is left out.

    `keep`: gives what is kept of each as soon as it is read.
    Raises UserError for a file that cannot be read, holds no answers, or has a broken line or a question twice.
    """
    path = uncompressed(path)
    answers, _ = parse_answers(path, read_file(path), keep)
    if not answers:
        raise UserError(f"{path} holds no answers: it is empty; run the method first, or name another file")
    return answers


def parse_answers(
    path: Path, data: bytes, keep: Callable[[Answer], Answer] | None = None
) -> tuple[dict[QuestionId, Answer], int]:
    """The answers in an answer file's bytes, and the size in bytes of its whole lines: without a last one that is torn.

    Raises UserError for any other line that is broken, or a question answered twice."""
    with _no_collection():
        return _parse(path, data, keep)


@cache
def _adapter() -> "TypeAdapter[Answer]":
    """It checks an answer line and makes it an Answer."""
    from pydantic import TypeAdapter

    return TypeAdapter(Answer)


def parse_answer(line: bytes, place: str) -> Answer:
    """The answer of a line of any answer file. `place`: where it stands, for the UserError if it is none."""
    from pydantic import ValidationError
    from pydantic_core import from_json

    from evaluation.answers.schema import sentence

    try:
        return _adapter().validate_json(line, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    if wrong[0]["type"] == "json_invalid":
        raise UserError(f"{place} is not valid JSON ({wrong[0]['ctx']['error']}); remove that line")
    if any(detail["type"] == "missing" for detail in wrong):
        translated = json.dumps(_translated(from_json(line))).encode()
        try:
            return _adapter().validate_json(translated, strict=True)
        except ValidationError as error:
            wrong = error.errors(include_url=False)
    raise UserError(f"{place}: {sentence(wrong, 'answer file')}; correct or remove that line")


def _translated(record: Any) -> Any:
    """A line of the scripts of REST or Medusa in Spec-Bench's keys: these have no categories; REST's accept lengths
    have a key of their own, and Medusa's are not there. Ours, which hold token ids, are left as they are."""
    choices = record.get("choices") if isinstance(record, dict) else None
    if not isinstance(choices, list) or not all(isinstance(c, dict) and "token_ids" not in c for c in choices):
        return record
    lengths = [{"accept_lengths": choice.get("accept_lengths:", [])} | choice for choice in choices]
    return {"category": UNCATEGORIZED} | record | {"choices": lengths}


def _parse(path: Path, data: bytes, keep: Callable[[Answer], Answer] | None) -> tuple[dict[QuestionId, Answer], int]:
    from evaluation.answers.schema import torn

    answers: dict[QuestionId, Answer] = {}
    seen: set[str] = set()
    end = len(data.rstrip())
    size = 0
    for number, line in enumerate(BytesIO(data), start=1):  # line by line: a large file is not held twice
        if line.strip():
            if size + len(line) >= end and torn(line.strip()):
                return answers, size
            place = f"{path}, line {number}"
            answer = parse_answer(line, place)
            if str(answer.question_id) in seen:
                raise UserError(f"{place}: question {answer.question_id!r} is answered a second time; keep one of them")
            seen.add(str(answer.question_id))
            answers[answer.question_id] = keep(answer) if keep else answer
        size += len(line)
    return answers, size


@contextmanager
def _no_collection() -> Iterator[None]:
    """Many objects are made and none is garbage: looking for some again and again would double the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
