"""Answer files and their run headers: what was generated, how long it took, under which conditions.

One answer file holds one line per question, in the format of Spec-Bench (Xia et al. 2024) with further keys inside each
choice; the run header `<method>.run.json` beside it holds the conditions. `evaluation/run.py` writes both through
`AnswerFile`; `speed.py` and `equal.py` read them, and read files written by Spec-Bench's own scripts, which have fewer
keys and no header.
"""

import fcntl
import gc
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO, FileIO
from operator import le
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Ge, Le

from evaluation.answers.header import (
    Header,
    compressed,
    header_differences,
    header_path,
    read_file,
    read_header,
    told,
    uncompressed,
    write_header,
)
from methods.errors import UserError

QuestionId = int | str
LARGEST_ID = 2**63 - 1
Count = Annotated[int, Ge(0), Le(2**40)]
Number = Annotated[float, Ge(-1e30), Le(1e30)]  # neither infinite nor NaN
Seconds = Annotated[float, Ge(0), Le(1e9)]

FAILED_TURN = "ERROR"  # what Spec-Bench writes for a turn that raised
UNCATEGORIZED = "no category"  # where a script writes none
FULL = "context"  # the `finish` of a turn that has come to the end of the context


@dataclass(frozen=True)
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
    verify_time: list[Seconds] | None = None
    wait_time: list[Seconds] | None = None
    drafted: list[list[Count]] | None = None
    accepted: list[list[Count]] | None = None
    proposed: list[Count] | None = None  # drafted tokens, those included that no pass has judged
    margins: list[list[Number]] | None = None

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

    def _check_lengths(self) -> None:
        for key in PER_TURN:
            value = getattr(self, key)
            if value is not None and len(value) != len(self.turns):
                raise ValueError(f"'{key}' must have one entry for each of the {len(self.turns)} turns")

    def _check_parts(self) -> None:
        """No part is more than its whole."""
        if self.prefill_time is not None and not all(map(le, self.prefill_time, self.wall_time)):
            raise ValueError("'prefill_time' is longer than the 'wall_time' that includes it")
        if self.accepted is None or self.drafted is None:
            return
        for accepted, drafted in zip(self.accepted, self.drafted, strict=True):
            if len(accepted) != len(drafted) or not all(map(le, accepted, drafted)):
                raise ValueError("'accepted' must have one entry for each of 'drafted', and none may be more than it")

    def _check_ledger(self, token_ids: list[list[int]]) -> None:
        if [len(tokens) for tokens in token_ids] != self.new_tokens:
            raise ValueError("'new_tokens' does not count 'token_ids'")
        if sum(self.accept_lengths) != sum(self.new_tokens):
            raise ValueError(
                f"'accept_lengths' sums to {sum(self.accept_lengths)}, not to {sum(self.new_tokens)} tokens"
            )
        steps = self.decoding_steps or []
        if len(steps) != len(self.turns) or min(steps) < 0 or sum(steps) != len(self.accept_lengths):
            raise ValueError("'accept_lengths' must have one entry for each of the 'decoding_steps'")


PER_TURN = [f.name for f in fields(Choice) if f.name not in ("turns", "index", "accept_lengths", "decoding_steps")]


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
        return json.dumps(record, allow_nan=False).encode() + b"\n"


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


class AnswerFile:
    """The answers of one run of one method, open for adding by one process: each line is there whole or not at all."""

    def __init__(
        self, path: Path, file: FileIO, header: Header, commit: str | None, done: set[QuestionId], size: int
    ) -> None:
        self.path = path
        self.header = header
        self._commit = commit  # of the code that runs now
        self.done = done  # the questions that have an answer
        self._file = file
        self._size = size  # bytes of whole lines

    @classmethod
    def open(cls, path: str | Path, header: Header) -> Self:
        """Create the file and its header, or continue one with the same header; a torn last line is dropped.

        Raises UserError if the file was made under other conditions (naming each), if another run holds it, if one of
        its lines is broken, or if the folder cannot be written.
        """
        path = Path(path)
        if not path.exists() and compressed(path).exists():
            raise UserError(f"{compressed(path)} is compressed; gunzip it to go on, or choose another --output")
        new = not path.exists()
        file = _open_locked(path)
        try:
            data = read_file(path)
            answers, size = parse_answers(path, data[: data.rfind(b"\n") + 1])
            commit = header.get("git_commit")
            header = _settle_header(path, header, answers)
            file.truncate(size)
        except BaseException:
            if new:
                path.unlink(missing_ok=True)
            file.close()
            raise
        return cls(path, file, header, commit, set(answers), size)

    def append(self, answer: Answer) -> None:
        """Add one answer and make sure it is on disk. On a full disk earlier answers stay intact; raises UserError."""
        if answer.question_id in self.done:
            raise ValueError(f"question {answer.question_id} already has an answer in {self.path}")
        line = answer.to_line()
        try:
            written = self._file.write(line)
            while written < len(line):  # a short write is the first sign of a full disk: the next one says so
                written += self._file.write(line[written:])
            os.fsync(self._file)
        except OSError as error:
            self._file.truncate(self._size)
            kept = f"its {len(self.done)} earlier answers are intact: make room and run again to continue"
            raise UserError(f"cannot write {self.path}: {error.strerror}; {kept}") from None
        self._size += len(line)
        self.done.add(answer.question_id)
        self._name_commit()
        self._set_failures(self._failures_without(answer.question_id))

    def _name_commit(self) -> None:
        """A file that a later version of the code continued names both commits."""
        named = str(self.header.get("git_commit")).split(", ")
        if self._commit and self._commit not in named:
            self.header["git_commit"] = ", ".join([*named, self._commit])
            write_header(self.path, self.header)

    def note(self, key: str, value: Any) -> None:
        """Put something that was found out during the run into the header."""
        self.header[key] = value
        write_header(self.path, self.header)

    def fail(self, question_id: QuestionId, error: str) -> None:
        """Record in the header that a question could not be answered; it is tried again when the run is continued."""
        self._set_failures([*self._failures_without(question_id), {"question_id": question_id, "error": error}])

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The questions that failed and have no answer yet, each with its error."""
        return self.header.get("failures", [])

    def finish(self) -> None:
        """Close the file and let others write it. May be called twice."""
        self._file.close()  # this also drops the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def _failures_without(self, question_id: QuestionId) -> list[dict[str, Any]]:
        return [failure for failure in self.failures if failure["question_id"] != question_id]

    def _set_failures(self, failures: list[dict[str, Any]]) -> None:
        if failures != self.failures:
            self.header["failures"] = failures
            write_header(self.path, self.header)


def parse_answers(
    path: Path, data: bytes, keep: Callable[[Answer], Answer] | None = None
) -> tuple[dict[QuestionId, Answer], int]:
    """The answers in an answer file's bytes, and the size in bytes of its whole lines: without a last one that is torn.

    Raises UserError for any other line that is broken, or a question answered twice."""
    with _no_collection():
        return _parse(path, data, keep)


def _parse(path: Path, data: bytes, keep: Callable[[Answer], Answer] | None) -> tuple[dict[QuestionId, Answer], int]:
    from evaluation.answers.schema import parse_answer, torn

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


def _open_locked(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another run is writing {path}; wait until it ends or choose another --output") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from None
    return file


def _settle_header(path: Path, header: Header, answers: dict[QuestionId, Answer]) -> Header:
    """The header that holds from now on, on disk too: the old one where it says the same, or answers depend on it."""
    header = json.loads(json.dumps(header, allow_nan=False))  # as it reads back: tuples are lists
    old = read_header(path)
    if answers and old is None:
        raise UserError(f"{path} holds answers but has no run header {header_path(path).name}; choose another --output")
    if old is not None:
        differences = header_differences(old, header)
        if answers and differences:
            named = ", ".join(told(f"{key}={was}, now {now}") for key, (was, now) in differences.items())
            raise UserError(f"{path} was made with {named}; choose another --output or delete that file")
        header = header if differences else old
    header = header | {"failures": [f for f in header.get("failures", []) if f["question_id"] not in answers]}
    if header != old:
        write_header(path, header)
    return header
