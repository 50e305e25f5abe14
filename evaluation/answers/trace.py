"""What each rank did and when, in Chrome's trace event format, for chrome://tracing or ui.perfetto.dev."""

import json
from pathlib import Path
from typing import Any

from evaluation.answers.record import QuestionId
from evaluation.launch.ranks import Ranks, gather
from methods.base import Generation
from methods.errors import UserError

ROLES = ("target", "draft")


class Trace:
    """The spans of all answers of a launch, one process per rank, one thread per method; times in microseconds of the
    monotonic clock of their rank's node."""

    def __init__(self, path: Path, replica: int = 0) -> None:
        self.path, self.replica = path, replica
        self.events: list[dict[str, Any]] = []
        self._threads: dict[str, int] = {}
        self._named: set[tuple[str, str]] = set()

    def add(self, method: str, question_id: QuestionId, turn: int, answer: Generation) -> None:
        """Enter one answer of this replica."""
        about = {"question": question_id, "turn": turn}
        for span in answer.spans:
            times = {"ts": span.begin * 1e6, "dur": span.seconds * 1e6}
            self.events.append({"name": span.work, "ph": "X", **times, **self._place(span.rank, method), "args": about})

    def _place(self, role: str, method: str) -> dict[str, int]:
        """Its process and thread, which are named when they are first used."""
        thread = self._threads.setdefault(method, len(self._threads))
        place = {"pid": self.replica * len(ROLES) + ROLES.index(role), "tid": thread}
        if (role, method) not in self._named:
            self._named.add((role, method))
            names = {"process_name": f"replica {self.replica}, {role}", "thread_name": method}
            self.events += [{"name": key, "ph": "M", **place, "args": {"name": name}} for key, name in names.items()]
        return place

    def collect(self, ranks: Ranks) -> None:
        """Gather the spans of all replicas and write them. All ranks must call it."""
        self.events = gather(ranks, self.events)
        if ranks.rank == 0:
            self.write()

    def write(self) -> None:
        """Write the file. Raises UserError where that is not possible."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"traceEvents": self.events, "displayTimeUnit": "ms"}))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; choose another --trace") from None
