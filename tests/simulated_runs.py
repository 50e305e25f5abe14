"""Results folders for the tests of figures and reports: answers whose rounds follow PEARL's rules with made-up times.

The answers, their files and the trace are put together by the runner's own code.
"""

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.answers.record import Answer
from evaluation.answers.trace import TraceWriter
from evaluation.launch.worker import to_choice
from methods.base import Generation, Limits, Span, Step
from tests.answer_files import header, write

PREFILL = 0.03
SIX = ("writing", "math", "translation", "summarization", "qa", "math_reasoning", "rag")  # Spec-Bench's, MT-bench's two


@dataclass(frozen=True)
class Simulated:
    """A method's run: its options decide the rounds. Times are seconds of a draft token and of a target pass."""

    method: str
    options: Mapping[str, Any]
    alpha: float = 0.75
    draft: float = 0.004
    verify: float = 0.02
    window: int | None = None  # the true one, where the option is a word
    lossless: bool = True
    features: bool = False  # whether its drafter reads any, so that its tokens have depths

    @property
    def gamma(self) -> int:
        gamma = self.window or self.options.get("gamma", 0)
        return gamma if isinstance(gamma, int) else 4

    @property
    def ranks(self) -> int:
        return 2 if "without" in self.options else 1


def steps(run: Simulated, draws: random.Random, now: float) -> Iterator[Step]:
    """The rounds of an answer."""

    def accepted(judged: int) -> int:
        return next((n for n in range(judged) if draws.random() >= run.alpha), judged)

    if run.method.startswith("autoregressive") or not run.options:
        while True:
            yield Step([1], spans=[Span("target", "verify", now, now := now + run.verify)])
    tail: list[int] = []  # the depths of what is drafted and not judged
    while True:
        spans, size = [], run.gamma * run.draft
        without = run.options.get("without", "both")
        if not tail and without in ("pre-verify", "both"):
            rank = "draft" if run.ranks == 2 else "target"
            spans.append(Span(rank, "draft", now, now + size, run.gamma))  # type: ignore[arg-type]
            spans += [Span("target", "wait", now, now + size)] * (run.ranks - 1)
            tail, now = [*range(1, run.gamma + 1)], now + size
        beside = not tail or without in ("nothing", "pre-verify")
        passed = now + run.verify
        if beside:
            ready = max(passed, now + size)
            spans += [Span("draft", "draft", now, now + size, run.gamma), Span("target", "wait", passed, ready)]
        spans.append(Span("target", "verify", now, passed))
        fresh = [*range(len(tail) + 1, len(tail) + 1 + run.gamma * beside)]
        judged, depths = len(tail) + beside, tail + fresh[:1]
        kept = accepted(judged)
        now = max(passed, now + size * beside)
        last = "verify" if run.ranks == 2 else "draft"
        spans.append(Span("target", last, now, now := now + 0.0005))  # type: ignore[arg-type]
        whole = kept == judged and beside
        told = depths if run.features else [0] * judged
        yield Step([1] * (kept + (not whole)), judged, kept, 1 + judged, spans, depths=told)
        tail = fresh[1:] if whole else []


def generation(run: Simulated, seed: str, tokens: int, speed: float = 1.0) -> Generation:
    """An answer of that many tokens."""
    draws = random.Random(zlib.crc32(f"{run.method}{dict(run.options)}{seed}".encode()))
    limits = Limits(frozenset(), tokens)
    answer = Generation(prefill_time=PREFILL)
    answer.add(Step([1]), limits)
    rounds = steps(run, draws, 1000.0)
    while not answer.finish:
        answer.add(next(rounds), limits)
    answer.token_ids = list(range(tokens))  # the same for all methods
    end = max(span.end for span in answer.spans if span.rank == "target")
    answer.wall_time = PREFILL + (end - 1000.0) * speed
    return answer


def write_runs(
    folder: Path,
    runs: Sequence[Simulated],
    trace: Path | None = None,
    questions: int = 14,
    categories: Sequence[str] = SIX,
    **changes: Any,
) -> Path:
    """A results folder with the runs and a baseline, one launch. `changes` go into all headers."""
    names = ["autoregressive", *(run.method for run in runs)]
    about = {"methods": names, "git_commit": "0123456789" * 4, "questions": questions} | changes
    traced = TraceWriter(trace) if trace else None
    place = folder / str(about.get("benchmark", "mini_bench")) / str(about.get("pair", "tiny"))
    for run in (Simulated("autoregressive", {}, verify=runs[0].verify if runs else 0.02), *runs):
        answers = []
        for q in range(questions):
            answer = generation(run, f"question {q}", 60 + 5 * (q % 7), 1 + 0.02 * (q % 5) * (run.ranks - 1))
            choice = to_choice([answer], ["words"], 0)
            answers.append(Answer(q, categories[q % len(categories)], f"tiny-{run.method}", [choice]))
            if traced:
                traced.add(run.method, q, 0, answer)
        drafted = {"source": "tiny/draft"} if run.options and run.method != "pld" else None
        settled = {"settled": {"gamma": run.window}} if run.options.get("gamma") == "auto" and run.window else {}
        own = (
            settled
            | {"options": dict(run.options), "draft": drafted, "lossless": run.lossless, "ranks": run.ranks}
            | about
        )
        write(place / f"{run.method}.jsonl", answers, header(run.method, **own))
    if traced:
        traced.write()
    return folder


SPS = Simulated("sps", {"gamma": 5})
PEARL = Simulated("pearl", {"gamma": "auto", "without": "nothing"}, window=5)
