"""A launch has one answer file per method, which one process writes and all replicas contribute to.

A single replica writes `<method>.jsonl` as it goes. Several write `parts/<method>.<replica>.jsonl`, and rank 0 puts the
parts together at the end, and at the start those that an interrupted launch left.
"""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Self

from evaluation.answers.files import answers_of, header_path, read_file
from evaluation.answers.header import RunHeader
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import Answer, parse_answers
from evaluation.answers.writer import AnswerFile
from evaluation.launch.ranks import Ranks, gather


class Store:
    """The answer files of one launch. `files` maps a method to the file that this process appends to (leaders only)."""

    def __init__(self, folder: Path, headers: dict[str, RunHeader], ranks: Ranks) -> None:
        self.folder, self.headers, self.ranks = folder, headers, ranks
        self.files: dict[str, AnswerFile] = {}
        self._main: dict[str, AnswerFile] = {}  # rank 0: the methods' own files
        self._finished: dict[str, set[QuestionId]] = {}

    def __enter__(self) -> Self:
        if self.ranks.rank == 0:
            self._main = {
                name: AnswerFile.open(answers_of(self.folder, name), self.headers[name]) for name in self.headers
            }
        if self.ranks.replicas == 1:
            self.files = self._main
        else:
            self._merge()
        self._finished = gather(self.ranks, [{name: set(file.done) for name, file in self._main.items()}])[0]
        if self.ranks.replicas > 1 and self.ranks.leads:
            self.files = {name: AnswerFile.open(self._part(name), self.headers[name]) for name in self.headers}
        return self

    def __exit__(self, *exception: object) -> None:
        for file in [*self.files.values(), *self._main.values()]:
            file.finish()

    def _part(self, name: str) -> Path:
        return answers_of(self.folder / "parts", f"{name}.{self.ranks.replica}")

    def missing(self, question_id: QuestionId) -> list[str]:
        """Return the methods that had no answer to the question when the launch began."""
        return [name for name, finished in self._finished.items() if question_id not in finished]

    def collect(self) -> None:
        """With several replicas: put the parts together in the methods' own files. All ranks must call it."""
        if self.ranks.replicas > 1:
            for file in self.files.values():
                file.finish()
            self._merge()

    def _merge(self) -> None:
        """Rank 0 takes over all parts, wherever they lie; then their replicas remove them."""
        parts = {name: self._part(name) for name in self.headers if self.ranks.leads and self._part(name).exists()}
        found = [(name, *read_part(path, self.headers[name])) for name, path in parts.items()]
        for name, answers, header in gather(self.ranks, found):
            if self.ranks.rank == 0:
                self._main[name].take_over(answers, header)
        gather(self.ranks, [None])  # nobody removes a part before it is written
        for path in parts.values():
            path.unlink()
            header_path(path).unlink(missing_ok=True)
        with suppress(OSError):  # the last one out finds the folder empty; there may be none
            (self.folder / "parts").rmdir()

    def failures(self) -> Counter[str]:
        """Count the failed questions of each method, as rank 0 knows them."""
        return Counter({name: len(file.failures) for name, file in self._main.items() if file.failures})


def read_part(path: Path, header: RunHeader) -> tuple[list[Answer], RunHeader]:
    """The answers in a replica's part, and its header. Raises UserError where it was made under other conditions, by a
    launch that was interrupted."""
    with AnswerFile.open(path, header) as part:
        answers, _ = parse_answers(path, read_file(path))
        return list(answers.values()), part.header
