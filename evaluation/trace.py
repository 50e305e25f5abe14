"""What each rank did and when, in Chrome's trace event format, for chrome://tracing or ui.perfetto.dev."""

import json
from pathlib import Path
from typing import Any

from evaluation.records import QuestionId
from methods.base import Generation
from methods.errors import UserError

THREADS = {"target": 0, "draft": 1}


class Trace:
    """The spans of all answers of a launch, one process per method, one thread per rank; times in microseconds of the
    monotonic clock of their rank's node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self._processes: dict[str, int] = {}
        self.write()  # where it cannot be written, the user learns so before the run

    def add(self, method: str, question_id: QuestionId, turn: int, answer: Generation) -> None:
        """Enter one answer."""
        if method not in self._processes:
            self._name(method)
        about = {"question": question_id, "turn": turn}
        for span in answer.spans:
            place = {"pid": self._processes[method], "tid": THREADS[span.rank]}
            times = {"ts": span.begin * 1e6, "dur": span.seconds * 1e6}
            self.events.append({"name": span.work, "ph": "X", **times, **place, "args": about})

    def _name(self, method: str) -> None:
        process = self._processes[method] = len(self._processes)
        self.events.append({"name": "process_name", "ph": "M", "pid": process, "args": {"name": method}})
        for rank, thread in THREADS.items():
            about = {"pid": process, "tid": thread, "args": {"name": f"{rank} rank"}}
            self.events.append({"name": "thread_name", "ph": "M", **about})

    def write(self) -> None:
        """Write the file. Raises UserError where that is not possible."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"traceEvents": self.events, "displayTimeUnit": "ms"}))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; choose another --trace") from None
