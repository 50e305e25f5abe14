"""A session loads the models, prompts and methods of a launch once, and answers questions with them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any
from uuid import uuid4

from evaluation.answers.header import Server as ServerKeys
from evaluation.answers.record import Answer, Choice
from evaluation.answers.trace import TraceWriter
from evaluation.launch.benchmarks import Benchmark, Question
from evaluation.launch.config import RunConfig
from evaluation.launch.prompts import Prompter, decode, eos_ids
from evaluation.launch.provenance import Probe
from evaluation.launch.ranks import Ranks, Share, all_devices
from methods import MethodSpec, get_method
from methods.base import Generation, Limits, Method, Reference, generate
from methods.build import build_chain_drafter, build_method
from methods.engine.link import Link
from methods.engine.sampling import Sampling, seed_of
from methods.engine.team import Rest, Team
from methods.models import Models
from methods.pearl.draft import serve, warm_up
from methods.pearl.target import Pearl
from methods.peers.server import Server

WARM_UP_TOKENS = 64
WARM_UP = (
    "Write a Python function that returns the sum of the squares of a list of numbers.",
    "Tom has 12 apples, gives away a third of them and buys 5 more. How many has he now? Explain each step.",
    "Explain in a few sentences why the sky is blue, then repeat your first sentence word for word.",
)
MARGIN = 256  # rows beyond the longest conversation: answers read back as text may take a few more tokens


@dataclass
class Session:
    """Every rank has a session. The target's rank decodes; the draft's rank serves it over the `link` between the two.
    Of a target that is split the first rank decodes, and the others of its `team` follow."""

    config: RunConfig
    benchmark: Benchmark
    ranks: Ranks
    share: Share
    link: Link | None = None
    team: Team | None = None
    trace: TraceWriter | None = None

    @cached_property
    def models(self) -> Models:
        c = self.config
        models = Models(c.pair.target, None, c.dtype, self.share.devices, drafts=c.pair.drafts)
        models.frequent, models.keep_prompts = c.pair.frequent, c.read_once
        replica = self.ranks.replica
        models.servers = {name: urls[replica % len(urls)] for name, urls in c.servers.items()}
        models.link, models.team, models.drafts_only = self.link, self.team, self.ranks.drafts
        models.max_length = self._longest(models) + MARGIN
        return models

    def models_of(self, spec: MethodSpec) -> Models:
        """Return the models with the method's draft, which is loaded once for all methods that have the same."""
        return self.models.with_draft(self.config.draft_of(spec) if spec.weights else None)

    def _longest(self, models: Models) -> int:
        """Most tokens that a conversation can take: its turns, and an answer of the longest kind to each."""
        prompter = Prompter(models.target_checkpoint.tokenizer, self.config.template, self.benchmark.name)
        texts = [question.turns for question in self.benchmark.questions]
        return max(len(prompter.encode(t, [""] * (len(t) - 1))) + len(t) * self.config.max_new_tokens for t in texts)

    @cached_property
    def prompter(self) -> Prompter:
        return Prompter(self.models.target_checkpoint.tokenizer, self.config.template, self.benchmark.name)

    @cached_property
    def limits(self) -> Limits:
        checkpoint = self.models.target_checkpoint
        ids = eos_ids(checkpoint.tokenizer, checkpoint.eos_token_ids, self.config.template)
        return Limits(frozenset(ids), self.config.max_new_tokens)

    @cached_property
    def methods(self) -> dict[str, Method | Reference]:
        c = self.config
        return {spec.name: build_method(spec, self.models_of(spec), c.options_of(spec)) for spec in c.specs}

    def serve(self) -> None:
        """The draft's rank: draft for the target's rank until it has no more questions."""
        c = self.config
        if self.link is None:
            raise ValueError("expected a link to the target's rank, got none")
        specs = [spec for spec in c.specs if spec.loop == "pearl"]
        drafters = {spec.name: build_chain_drafter(spec, self.models_of(spec), c.options_of(spec)) for spec in specs}
        for spec in specs:
            warm_up(drafters[spec.name], self.models_of(spec))
        serve(self.link, drafters)

    def follow(self) -> None:
        """A rank that has a part of the target: compute what the leading rank orders, until that rests or has no more
        questions."""
        self.models.follower.follow()

    def rest(self) -> None:
        """The leading rank: let the others of its team do something else."""
        if self.team is not None and self.ranks.leads:
            self.team.tell(Rest())

    def meet(self) -> None:
        """The target's rank: load the methods, and wait until the draft's rank has loaded its drafters too."""
        for method in self.methods.values():
            if isinstance(method, Pearl):
                method.meet(method.link.receive("its drafter", None))

    def close(self) -> None:
        """Part from the other ranks of the replica. All must call it, also where they had nothing to answer."""
        for other in (self.link, self.team):
            if other is not None:
                other.close()

    def place(self, name: str) -> AbstractContextManager[None]:
        """The devices on which a method runs: this rank's, or those of the whole replica."""
        return all_devices(self.share) if get_method(name).all_devices else nullcontext()

    def warm_up(self, names: Iterable[str] | None = None) -> None:
        """Let the methods, or those named, answer questions that are not measured: kernels, caches and allocators
        settle."""
        limits = Limits(self.limits.eos_ids, min(WARM_UP_TOKENS, self.limits.max_new_tokens))
        for text in WARM_UP:
            prompt = self.prompter.encode([text], [])
            for name in self.methods if names is None else names:
                with self.place(name):
                    generate(self.methods[name], prompt, self._sampling("warm-up", 0, 0), limits)

    def taps(self) -> dict[str, list[int]]:
        """The target's features that the drafters read, of methods whose drafters do."""
        ours = {name: method.target.taps for name, method in self.methods.items() if not isinstance(method, Reference)}
        return {name: list(taps) for name, taps in ours.items() if taps}

    def settled(self) -> dict[str, dict[str, int | str]]:
        """Return what methods have chosen by themselves in the warm-up."""
        ours = {name: method.settled() for name, method in self.methods.items() if not isinstance(method, Reference)}
        return {name: settled for name, settled in ours.items() if settled}

    def _sampling(self, question_id: object, turn: int, repeat: int) -> Sampling:
        c = self.config
        return Sampling(c.temperature, c.top_k, c.top_p, seed_of(c.seed, question_id, turn, repeat))

    def choice(self, name: str, question: Question, repeat: int) -> Choice:
        """Let one method answer all turns of a question; each turn sees the method's own earlier answers."""
        turns: list[Generation] = []
        texts: list[str] = []
        bandwidth = self.probe.read() if self.probe else None  # before any clock runs
        for turn in range(len(question.turns)):
            prompt = self.prompter.encode(question.turns[: turn + 1], texts)
            if self.config.read_once and len(prompt) <= self.models.target.max_length:  # else nothing reads it
                self.models.target.prefill(prompt)
            sampling = self._sampling(question.question_id, turn, repeat)
            with self.place(name):
                turns.append(generate(self.methods[name], prompt, sampling, self.limits))
            if self.trace is not None:
                self.trace.add(name, question.question_id, turn, turns[-1])
            texts.append(decode(self.models.target_checkpoint.tokenizer, turns[-1].token_ids))
        return replace(to_choice(turns, texts, repeat), read_bandwidth=bandwidth)

    @cached_property
    def probe(self) -> Probe | None:
        """What a shared machine's memory gives changes by the minute; a GPU's does not."""
        return Probe() if self.share.devices[0].type == "cpu" else None

    def answer(self, name: str, question: Question, choices: list[Choice]) -> Answer:
        return Answer(question.question_id, question.category, f"{self.config.pair.name}-{name}", choices)

    def server(self, spec: MethodSpec) -> ServerKeys | None:
        """What a run header says of the server that a row asks; None where it asks none."""
        method = self.methods[spec.name] if spec.served else None
        if not isinstance(method, Server):
            return None
        told = method.conditions
        return ServerKeys(url=told["url"], model=told["model"], asked=told["asked"], tokens=told["tokens"])

    @cached_property
    def launch(self) -> str:
        """An id that all headers and the trace of the launch share."""
        return uuid4().hex


def to_choice(turns: list[Generation], texts: list[str], repeat: int) -> Choice:
    """One line's choice from the generations of its turns. Another library's loop does not tell what its passes do."""
    margins, depths = [turn.margins or [] for turn in turns], [turn.depths for turn in turns]
    told = any(turn.spans for turn in turns) or all(len(turn.accept_lengths) <= 1 for turn in turns)
    told = told and all(turn.tells_passes for turn in turns)
    drafts = [turn.told for turn in turns if turn.told is not None]
    counted = len(drafts) == len(turns)
    return Choice(
        turns=texts,
        new_tokens=[len(turn.token_ids) for turn in turns],
        wall_time=[turn.wall_time for turn in turns],
        accept_lengths=[length for turn in turns for length in turn.accept_lengths],
        index=repeat,
        decoding_steps=[len(turn.accept_lengths) for turn in turns],
        token_ids=[turn.token_ids for turn in turns],
        finish=[turn.finish for turn in turns],
        prefill_time=[turn.prefill_time for turn in turns],
        draft_time=_seconds(turns, "draft"),
        draft_bytes=[turn.draft_bytes for turn in turns] if any(turn.draft_bytes for turn in turns) else None,
        verify_time=_seconds(turns, "verify"),
        wait_time=_seconds(turns, "wait"),
        drafted=[turn.drafted for turn in turns] if told else None,
        accepted=[turn.accepted for turn in turns] if told else None,
        nodes=[turn.nodes for turn in turns] if told else None,
        proposed=[turn.proposed for turn in turns] if told else None,
        told_drafted=[drafted for drafted, _ in drafts] if counted else None,
        told_accepted=[accepted for _, accepted in drafts] if counted else None,
        margins=margins if any(margins) else None,
        depths=depths if any(map(any, depths)) else None,
        pass_time=pass_times(turns),
        **(_branches(turns) if any(turn.branches for turn in turns) else {}),
    )


def pass_times(turns: list[Generation]) -> list[list[float]] | None:
    """Seconds of each pass of each turn, rounded so that their sum stays right; None where the loop does not tell."""
    if any(len(turn.ends) != len(turn.accept_lengths) for turn in turns):
        return None
    rounded = [[round(end, 5) for end in (0.0, *turn.ends)] for turn in turns]
    return [[round(end - begin, 5) for begin, end in pairwise(ends)] for ends in rounded]


def _branches(turns: list[Generation]) -> dict[str, Any]:
    """What became of the branches of each turn."""
    return {
        "prepared": [sum(one.prepared for one in turn.branches) for turn in turns],
        "hits": [sum(one.hit is True for one in turn.branches) for turn in turns],
        "misses": [sum(one.hit is False for one in turn.branches) for turn in turns],
        "hidden_time": [sum(one.hidden for one in turn.branches) for turn in turns],
        "prepare_time": _seconds(turns, "prepare"),
    }


def _seconds(turns: list[Generation], work: str) -> list[float] | None:
    """Seconds of each turn on one kind of work; None where the method does not tell what it does when."""
    return [turn.seconds(work) for turn in turns] if any(turn.spans for turn in turns) else None
