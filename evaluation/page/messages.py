"""What the server and the measured processes tell each other over a pipe: ids, numbers and spans, no text of a model's.

Legend: T prompt tokens, N nodes of a tree.
"""

from dataclasses import dataclass, field

from evaluation.launch.config import RunConfig
from methods.base import Generation


@dataclass(frozen=True)
class Job:
    """To all ranks of a pool: let the methods `lanes`, which `config` holds, answer a prompt, one after the other.
    warm_up: prompts for methods that have not run yet; `seed`: of sampling."""

    config: RunConfig
    lanes: tuple[str, ...]
    prompt_T: list[int]
    warm_up: list[list[int]]
    eos_ids: frozenset[int]
    seed: int


@dataclass(frozen=True)
class Stop:
    """To the first rank: end the answer in work and the job."""


@dataclass(frozen=True)
class Devices:
    """From the first rank, once: what each rank of its replica computes on, the target's first."""

    names: list[list[str]]
    threads: int


@dataclass(frozen=True)
class Phase:
    """What begins now for a lane: "load", "warm-up", "prefill", or "decode"."""

    lane: int
    name: str


Span = tuple[str, str, float, float, int]  # rank, work, begin and end in seconds since the answer began, tokens


@dataclass(frozen=True)
class Pass:
    """One target pass. `end`: seconds since the answer began. `tokens`: what it added to the answer. tree_N and
    parents_N: what was judged, the pending token first (parents_N is empty for a chain); path: its kept nodes."""

    end: float
    tokens: list[int]
    drafted: int
    accepted: int
    nodes: int
    spans: list[Span]
    tree_N: list[int] = field(default_factory=list)
    parents_N: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Passes:
    """Some passes of a lane, as they come."""

    lane: int
    passes: list[Pass]


@dataclass(frozen=True)
class Answered:
    """A lane is complete, or stopped. `settled`: what its method has chosen by itself."""

    lane: int
    answer: Generation
    settled: dict[str, int | str]


@dataclass(frozen=True)
class Chances:
    """The target's probability of each token of a lane's answer, found after the clock had stopped."""

    lane: int
    p: list[float]


@dataclass(frozen=True)
class Refused:
    """A lane cannot run: a mistake of the user's, in a sentence."""

    lane: int
    sentence: str


@dataclass(frozen=True)
class Finished:
    """The job is over; the next may come. `stopped`: as asked for."""

    stopped: bool


FromRank = Devices | Phase | Passes | Answered | Chances | Refused | Finished
