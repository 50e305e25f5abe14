"""Writes answer files and their run headers: whole lines or none, by one process at a time."""

import fcntl
import os
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, Self

from evaluation.answers.files import compressed, header_path, read_file, told
from evaluation.answers.header import (
    Failure,
    RunHeader,
    Settled,
    as_it_reads,
    read_header,
    settled_together,
    write_header,
)
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import Answer, parse_answers
from methods.errors import UserError


class AnswerFile:
    """The answers of one run of one method, open for adding by one process: each line is there whole or not at all."""

    def __init__(
        self, path: Path, file: FileIO, header: RunHeader, commit: str | None, done: set[QuestionId], size: int
    ) -> None:
        self.path = path
        self.header = header
        self._commit = commit  # of the code that runs now
        self.done = done  # the questions that have an answer
        self._file = file
        self._size = size  # bytes of whole lines

    @classmethod
    def open(cls, path: str | Path, header: RunHeader) -> Self:
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
            commit = header.git_commit
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
        named = str(self.header.git_commit).split(", ")
        if self._commit and self._commit not in named:
            self.note("git_commit", ", ".join([*named, self._commit]))

    def note(self, key: str, value: Any) -> None:
        """Put something that was found out during the run into the header."""
        self.header = replace(self.header, **{key: value})
        write_header(self.path, self.header)

    def settle(self, settled: Settled) -> None:
        """Note what the method has chosen by itself, beside what it had chosen for the answers that are here."""
        before = self.header.settled if self.done else None
        self.note("settled", settled_together(before, settled))

    def take_over(self, answers: list[Answer], header: RunHeader) -> None:
        """Add the answers of another file, and what was found out and what has failed while they were made."""
        if header.taps:
            self.note("taps", header.taps)
        if answers and header.settled:
            self.settle(header.settled)
        for answer in answers:
            if answer.question_id not in self.done:
                self.append(answer)
        for failure in header.failures:
            self.fail(failure["question_id"], failure["error"])

    def fail(self, question_id: QuestionId, error: str) -> None:
        """Record in the header that a question could not be answered; it is tried again when the run is continued."""
        self._set_failures([*self._failures_without(question_id), {"question_id": question_id, "error": error}])

    @property
    def failures(self) -> list[Failure]:
        """The questions that failed and have no answer yet, each with its error."""
        return self.header.failures

    def finish(self) -> None:
        """Close the file and let others write it. May be called twice."""
        self._file.close()  # this also drops the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def _failures_without(self, question_id: QuestionId) -> list[Failure]:
        return [failure for failure in self.failures if failure["question_id"] != question_id]

    def _set_failures(self, failures: list[Failure]) -> None:
        if failures != self.failures:
            self.note("failures", failures)


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


def _settle_header(path: Path, header: RunHeader, answers: dict[QuestionId, Answer]) -> RunHeader:
    """The header that holds from now on, on disk too: the old one where it says the same, or answers depend on it."""
    header = as_it_reads(header)
    old = read_header(path)
    if answers and old is None:
        raise UserError(f"{path} holds answers but has no run header {header_path(path).name}; choose another --output")
    if old is not None:
        differences = old.differences(header)
        if answers and differences:
            named = ", ".join(told(f"{key}={was}, now {now}") for key, (was, now) in differences.items())
            raise UserError(f"{path} was made with {named}; choose another --output or delete that file")
        header = header if differences else old
    header = replace(header, failures=[f for f in header.failures if f["question_id"] not in answers])
    if header != old:
        write_header(path, header)
    return header
