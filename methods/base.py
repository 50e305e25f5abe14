"""What a method is, and the only decoding loop.

`generate` alone knows the clock, the EOS ids and the limits, and keeps the one token ledger: every new token is
credited to the target pass that decided it, the first to the prefill. So an autoregressive answer of n tokens has n
passes of accept length 1, and for every method sum(accept lengths) == new tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch

from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Target

STOPPED = "stopped"  # the `finish` of an answer whose watcher wanted no more


@dataclass(frozen=True)
class Limits:
    """When to stop: at any of `eos_ids`, or after `max_new_tokens` tokens."""

    eos_ids: frozenset[int]
    max_new_tokens: int

    def cut(self, tokens: Sequence[int], before: int) -> tuple[list[int], str]:
        """What an answer keeps of the next tokens, behind `before` others, and why it ends: "eos", "length", or ""
        where it goes on."""
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in self.eos_ids:
                return kept, "eos"
            if before + len(kept) == self.max_new_tokens:
                return kept, "length"
        return kept, ""


class Span(NamedTuple):
    """What a rank did from `begin` to `end`, in seconds of the monotonic clock. "wait": the target had nothing to do
    until a draft came; "prepare": the draft went on behind what may come instead of its drafts. `tokens`: how many were
    drafted, the first of them so far behind the last true feature (`depth`; 0: of a drafter that reads none). `round`:
    the number of the pass within the answer, after the prefill, which `Generation.spans` knows. `read`: bytes of
    weights that drafting has read meanwhile, where the loop tells."""

    rank: Literal["target", "draft"]
    work: Literal["draft", "prepare", "verify", "wait"]
    begin: float
    end: float
    tokens: int = 0
    round: int = 0
    depth: int = 0
    read: int = 0

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Branches(NamedTuple):
    """Of a pass of PEARL with branches. `prepared`: outcomes that had a window; `hit`: whether the one that came was
    among them (None: all drafts were kept, so that none was needed); `hidden`: seconds for which the window was drafted
    that the pass began with because it had been prepared."""

    prepared: int
    hit: bool | None
    hidden: float


class Step(NamedTuple):
    """One target pass. `tokens`: what it decided, kept drafts first, then the target's own token.

    `drafted` and `accepted`: how many draft tokens were judged, and how many of them kept. `nodes`: rows that the pass
    scored. `margins`: top-1 minus top-2 target logit behind each token, where the engine is not row-invariant.
    `depths`: of each judged token of a chain, as `ChainDrafter.depths` tells; none of a tree. `branches`: where the
    draft prepares some. `tree` and `path_A`: what was judged, and its nodes that were kept and scored, for who watches;
    None where nothing can be drafted."""

    tokens: list[int]
    drafted: int = 0
    accepted: int = 0
    nodes: int = 1
    spans: Sequence[Span] = ()
    margins: list[float] | None = None
    depths: Sequence[int] = ()
    branches: Branches | None = None
    tree: TokenTree | None = None
    path_A: Sequence[int] = ()


class Method(Protocol):
    """A decoding method. Batch 1; one prompt after the other. To be inherited from."""

    target: Target

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        """Prefill. Returns the first token, which is pending: decided, not yet in the target's cache."""
        ...

    def step(self) -> Step:
        """One target pass; needs `target.room` >= 1."""
        ...

    def finish(self) -> None:
        """The answer is complete. Most methods need not know."""
        return

    def settled(self) -> dict[str, int | str]:
        """Options that the method has chosen by itself, for the run header."""
        return {}


@runtime_checkable
class Reference(Protocol):
    """Another library's own decoding loop, measured beside ours on the same prompts and stop rules."""

    def generate(self, prompt_T: Sequence[int], sampling: Sampling, limits: Limits) -> "Generation": ...


@dataclass
class Generation:
    """One answer to one prompt. Per pass: accept_lengths, drafted, accepted, nodes, spans_of, ends (the prefill is the
    first pass; ends, in seconds from the beginning of the answer, are all unknown of some loops). Per judged token of
    all passes: depths, of chains alone. `branches`: of the passes that have some. Another engine may tell no passes, so
    that its lists are empty, but how many tokens it drafted and kept (`told`).

    `finish` is "eos", "length", "context" or STOPPED; times in seconds, wall_time includes prefill_time."""

    token_ids: list[int] = field(default_factory=list)
    accept_lengths: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    margins: list[float] | None = None
    finish: str = ""
    wall_time: float = 0.0
    prefill_time: float = 0.0
    spans_of: list[Sequence[Span]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    branches: list[Branches] = field(default_factory=list)
    told: tuple[int, int] | None = None

    def add(self, step: Step, limits: Limits, end: float | None = None) -> None:
        """Enter a pass into the ledger, cut after the first EOS and at the limit. `end`: when it ended, if known."""
        kept, self.finish = limits.cut(step.tokens, len(self.token_ids))
        self.token_ids += kept
        self.spans_of.append(step.spans)
        self.ends += [] if end is None else [end]
        self.accept_lengths.append(len(kept))
        self.drafted.append(step.drafted)
        self.accepted.append(step.accepted)
        self.nodes.append(step.nodes)
        self.depths += step.depths
        self.branches += [step.branches] if step.branches else []
        if step.margins is not None:
            self.margins = (self.margins or []) + step.margins[: len(kept)]

    @property
    def spans(self) -> list[Span]:
        """Of all passes, in order, each with the number of its pass."""
        return [span._replace(round=number) for number, spans in enumerate(self.spans_of) for span in spans]

    def seconds(self, work: str) -> float:
        """Time spent on "draft", "prepare", "verify" or "wait". Two ranks draft and verify at the same time."""
        return sum(span.seconds for span in self.spans if span.work == work)

    @property
    def tells_passes(self) -> bool:
        """Whether it is known which pass decided which tokens."""
        return bool(self.accept_lengths) or not self.token_ids

    @property
    def draft_bytes(self) -> int:
        """Weights that were read while drafting, in bytes; 0 where the loop does not tell."""
        return sum(span.read for spans in self.spans_of for span in spans)

    @property
    def proposed(self) -> int:
        """Tokens that were drafted, those included that no pass has judged, without those of branches."""
        return sum(span.tokens for span in self.spans if span.work == "draft")


Watch = Callable[[Generation, Step], bool]  # called after each pass, within the clock; False ends the answer


@torch.inference_mode()
def generate(
    method: Method | Reference, prompt_T: Sequence[int], sampling: Sampling, limits: Limits, watch: Watch | None = None
) -> Generation:
    """Answer one prompt. Prompts longer than the context give no token and finish "context". Another library's loop
    cannot be watched."""
    if isinstance(method, Reference):
        return method.generate(prompt_T, sampling, limits)
    answer = Generation()
    if len(prompt_T) > method.target.max_length:
        answer.finish = "context"
        return answer
    begin = time.perf_counter()
    step = Step([method.start(prompt_T, sampling)])
    answer.prefill_time = time.perf_counter() - begin
    answer.add(step, limits, answer.prefill_time)
    while _goes_on(answer, step, method.target, watch):
        step = method.step()
        answer.add(step, limits, time.perf_counter() - begin)
    answer.wall_time = answer.ends[-1]
    method.finish()
    if sum(answer.accept_lengths) != len(answer.token_ids):
        raise AssertionError(f"the ledger is off: {answer.accept_lengths} for {len(answer.token_ids)} tokens")
    return answer


def _goes_on(answer: Generation, step: Step, target: Target, watch: Watch | None) -> bool:
    """Whether there is another pass after this one; if not, the answer is told why."""
    wanted = watch is None or watch(answer, step)
    if not answer.finish:
        answer.finish = STOPPED if not wanted else "context" if target.room < 1 else ""
    return not answer.finish
