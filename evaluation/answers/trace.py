"""Trace files: what each rank did and when, in Chrome's trace event format, for chrome://tracing or ui.perfetto.dev."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.answers.files import read_file, uncompressed
from evaluation.answers.kinds import QuestionId
from methods.base import Generation
from methods.errors import UserError, writing

RANKS = ("target", "draft")
DRAFTING = ("draft", "prepare")  # what the draft's rank does
MICRO = 1e-6
Turn = tuple[Any, int]  # question, turn


class TraceWriter:
    """The spans of all answers of a launch, one process per rank, one thread per method; times in microseconds of the
    monotonic clock of their rank's node."""

    def __init__(self, path: Path, replica: int = 0, launch: str = "") -> None:
        self.path, self.replica, self.launch = path, replica, launch
        self.events: list[dict[str, Any]] = []
        self._threads: dict[str, int] = {}
        self._named: set[tuple[str, str]] = set()

    def add(self, method: str, question_id: QuestionId, turn: int, answer: Generation) -> None:
        """Enter one answer of this replica."""
        about = {"question": question_id, "turn": turn}
        for span in answer.spans:
            times = {"ts": span.begin * 1e6, "dur": span.seconds * 1e6}
            event = {"name": span.work, "ph": "X", **times, **self._place(span.rank, method)}
            depth = {"depth": span.depth} if span.depth else {}
            self.events.append(event | {"args": about | {"round": span.round} | depth})

    def _place(self, role: str, method: str) -> dict[str, int]:
        """Its process and thread, which are named when they are first used."""
        thread = self._threads.setdefault(method, len(self._threads))
        place = {"pid": self.replica * len(RANKS) + RANKS.index(role), "tid": thread}
        if (role, method) not in self._named:
            self._named.add((role, method))
            names = {"process_name": f"replica {self.replica}, {role}", "thread_name": method}
            self.events += [{"name": key, "ph": "M", **place, "args": {"name": name}} for key, name in names.items()]
        return place

    def collect(self, gather: Callable[[list[Any]], list[Any]], writes: bool) -> None:
        """Gather the spans of all replicas; the rank that `writes` puts them down. All ranks must call it."""
        self.events = gather(self.events)
        if writes:
            self.write()

    def write(self) -> None:
        """Write the file. Raises UserError where that is not possible."""
        about = {"launch": self.launch} if self.launch else {}
        trace = {"traceEvents": self.events, "displayTimeUnit": "ms", "otherData": about}
        with writing(self.path, "--trace"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(trace))


@dataclass(frozen=True)
class TracedSpan:
    """What a rank did from `begin` to `end`, in seconds. `round`: the number of the target pass within the answer."""

    rank: str  # one of RANKS
    work: str  # "draft", "prepare", "verify" or "wait"
    begin: float
    end: float
    round: int | None = None  # which older traces do not tell

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Trace:
    """A trace file: the spans of each method's answers, in the order in which they were entered. `launch`: the id of
    the launch that wrote it, where it tells."""

    path: Path
    answers: dict[str, dict[Turn, list[TracedSpan]]]
    launch: str | None = None


def read_trace(path: str | Path) -> Trace:
    """Raises UserError where it cannot be read, or is no trace of a run."""
    from evaluation.answers.schema import parse_trace

    path = Path(path)
    try:
        trace = parse_trace(read_file(uncompressed(path)))
        answers = _answers(trace["traceEvents"])
    except ValueError as error:
        raise UserError(f"{path} is not a trace as a run with --trace writes it ({error}); name such a file") from None
    if not answers:
        raise UserError(f"{path} holds no spans; name the trace of a run that answered a question")
    return Trace(path, answers, trace.get("otherData", {}).get("launch"))


def _answers(events: list[dict[str, Any]]) -> dict[str, dict[Turn, list[TracedSpan]]]:
    """The spans by method and turn. Raises ValueError for one of a rank or method that has no name."""
    ranks = {e["pid"]: e["args"]["name"].rpartition(" ")[2] for e in events if e["name"] == "process_name"}
    methods = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    answers: dict[str, dict[Turn, list[TracedSpan]]] = {}
    for number, event in enumerate(events):
        if event["ph"] != "X":
            continue
        rank, method = ranks.get(event["pid"]), methods.get((event["pid"], event["tid"]))
        if rank not in RANKS or method is None:
            raise ValueError(f"traceEvents[{number}] is of a rank or a method that the file does not name")
        if (rank == "draft" and event["name"] not in DRAFTING) or (rank == "target" and event["name"] == "prepare"):
            raise ValueError(f"traceEvents[{number}] has the {rank}'s rank {event['name']}, which is the other's work")
        begin, seconds = event["ts"] * MICRO, event["dur"] * MICRO
        turn = event["args"]["question"], event["args"]["turn"]
        spans = answers.setdefault(method, {}).setdefault(turn, [])
        spans.append(TracedSpan(rank, event["name"], begin, begin + seconds, event["args"].get("round")))
    return answers
