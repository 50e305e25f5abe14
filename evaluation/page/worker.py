"""The measured processes: they keep models and methods from job to job, and hand ids and spans over as they come.

They do no text, no JSON and no HTTP. Passes are handed over some at a time, for whoever takes them needs a core too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection

import torch

from evaluation.launch.benchmarks import Benchmark
from evaluation.launch.config import RunConfig
from evaluation.launch.ranks import choose_device, join_ranks, open_link, take_share
from evaluation.launch.worker import WARM_UP_TOKENS, Session
from evaluation.page.messages import (
    Answered,
    Chances,
    Devices,
    Finished,
    FromRank,
    Job,
    Pass,
    Passes,
    Phase,
    Refused,
    Span,
)
from methods import get_method
from methods.base import STOPPED, Generation, Limits, Method, Reference, Step, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters.base import ChainDrafter
from methods.engine.decoder import Decoder
from methods.engine.link import Link
from methods.engine.sampling import Sampling, probabilities
from methods.engine.socket_link import SocketLink
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.pearl.draft import serve, warm_up
from methods.pearl.messages import Ready
from methods.pearl.target import Pearl

LONGEST = 4096  # tokens of a prompt and its answer
NO_QUESTIONS = Benchmark("page", [], "")
EVERY = 0.12  # seconds between two times that passes are handed over
PART = 32  # positions whose probabilities are found at once


class Stopped(Exception):
    """The user wants no more of the job."""


@dataclass
class Stage(Session):
    """A session whose methods come with the jobs and stay, as its models do."""

    built: dict[str, Method | Reference] = field(default_factory=dict)
    drafters: dict[str, ChainDrafter] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)  # methods that know their drafter on the other rank

    def _longest(self, models: Models) -> int:
        return LONGEST

    def method(self, name: str) -> Method | Reference:
        """The leading rank's part of it."""
        if name not in self.built:
            spec = get_method(name)
            self.built[name] = build_method(spec, self.models_of(spec), self.config.options_of(spec))
        return self.built[name]

    def drafter(self, name: str) -> ChainDrafter:
        """The drafting rank's part of it."""
        if name not in self.drafters:
            spec = get_method(name)
            models = self.models_of(spec)
            self.drafters[name] = build_chain_drafter(spec, models, self.config.options_of(spec))
            warm_up(self.drafters[name], models)
        return self.drafters[name]


def work(config: RunConfig, pipe: Connection) -> int:
    """Be a rank: do the jobs that come through the pipe until the server closes it. `config`: of the first one."""
    ranks = join_ranks(config.ranks)
    share = take_share(ranks, choose_device(config.device), config.threads, config.draft_gpus)
    stage = Stage(config, NO_QUESTIONS, ranks, share, open_link(ranks))
    if ranks.leads:
        pipe.send(Devices(share.names_of, share.threads))
    while (job := _next(pipe)) is not None:
        stage.config = job.config
        if ranks.leads:
            _Lead(stage, job, pipe).run()
        else:
            _draft(stage, job)
    return 0


def _next(pipe: Connection) -> Job | None:
    """The next job, after what was to stop one that had ended."""
    try:
        while not isinstance(message := pipe.recv(), Job):
            pass
    except EOFError:
        return None
    return message


def _pearls(job: Job) -> list[str]:
    return [name for name in job.lanes if get_method(name).loop == "pearl"]


def _draft(stage: Stage, job: Job) -> None:
    """The drafting rank's part of a job."""
    link = _link(stage)
    serve(link, {name: stage.drafter(name) for name in _pearls(job)})
    link.reopen()


def _link(stage: Stage) -> SocketLink:
    if not isinstance(stage.link, SocketLink):
        raise ValueError("expected a link to the other rank, got none")
    return stage.link


class _Lead:
    """The leading rank's part of a job."""

    def __init__(self, stage: Stage, job: Job, pipe: Connection) -> None:
        self.stage, self.job, self.pipe = stage, job, pipe
        config = job.config
        self.sampling = Sampling(config.temperature, config.top_k, config.top_p, job.seed)
        self.ready: dict[str, Ready] = {}  # of drafters on the other rank
        self.found: dict[tuple[int, ...], list[float]] = {}  # answers, and their tokens' probabilities

    def say(self, message: FromRank) -> None:
        self.pipe.send(message)

    def run(self) -> None:
        """All lanes in turn, then part from the drafting rank until the next job."""
        stopped = False
        try:
            for lane, name in enumerate(self.job.lanes):
                self._lane(lane, name)
        except Stopped:
            stopped = True
        if _pearls(self.job):
            link = _link(self.stage)
            link.close()
            link.reopen()
        self.say(Finished(stopped))

    def _lane(self, lane: int, name: str) -> None:
        self._begin(lane, "load")
        fresh = name not in self.stage.built
        try:
            method = self.stage.method(name)
        except UserError as error:
            self.say(Refused(lane, str(error)))
            return
        if isinstance(method, Pearl):
            self._meet(name, method, method.link)
        if fresh:
            self._begin(lane, "warm-up")
            self._warm_up(name, method)
        self._begin(lane, "prefill")
        answer = self._answer(lane, name, method)
        settled = {} if isinstance(method, Reference) else method.settled()
        self.say(Answered(lane, answer, settled))
        if answer.finish == STOPPED:
            raise Stopped
        self.say(Chances(lane, self._chances(answer)))

    def _begin(self, lane: int, phase: str) -> None:
        self._look()
        self.say(Phase(lane, phase))

    def _look(self) -> None:
        """Raises Stopped if the server has said so: nothing else comes while a job is done."""
        if self.pipe.poll():
            self.pipe.recv()
            raise Stopped

    def _meet(self, name: str, method: Pearl, link: Link) -> None:
        """The other rank tells of all its drafters when it has loaded them."""
        for pearl in _pearls(self.job) if not self.ready else ():
            self.ready[pearl] = link.receive("its drafter", None)
        if name not in self.stage.met:
            method.meet(self.ready[name])
            self.stage.met.add(name)

    def _warm_up(self, name: str, method: Method | Reference) -> None:
        """Kernels, caches and allocators settle, and methods that choose their options by themselves begin to."""
        limits = Limits(self.job.eos_ids, WARM_UP_TOKENS)
        with self.stage.place(name):
            for prompt in self.job.warm_up:
                if generate(method, prompt, Sampling(), limits, self._go_on).finish == STOPPED:
                    raise Stopped

    def _go_on(self, answer: Generation, step: Step) -> bool:
        return not self.pipe.poll()

    def _answer(self, lane: int, name: str, method: Method | Reference) -> Generation:
        watch = Watch(self.pipe, lane)
        limits = Limits(self.job.eos_ids, self.job.config.max_new_tokens)
        with self.stage.place(name):
            answer = generate(method, self.job.prompt_T, self.sampling, limits, watch)
        watch.passes += unwatched(answer)[watch.seen :]
        watch.hand_over()
        return answer

    def _chances(self, answer: Generation) -> list[float]:
        """What the target thinks of each token, found once for equal answers."""
        key = tuple(answer.token_ids)
        if key not in self.found:
            sampling = Sampling(1.0) if self.sampling.greedy else self.sampling
            self.found[key] = chances(self.stage.models.target, self.job.prompt_T, answer.token_ids, sampling)
        return self.found[key]


class Watch:
    """It is told of each pass, and hands over what has come now and then."""

    def __init__(self, pipe: Connection, lane: int) -> None:
        self.pipe, self.lane = pipe, lane
        self.passes: list[Pass] = []
        self.seen, self.handed = 0, 0.0
        self.begin: float | None = None  # of the answer, by the clock of the spans

    def __call__(self, answer: Generation, step: Step) -> bool:
        now = time.perf_counter()
        if self.begin is None:
            self.begin = now - answer.ends[-1]
            self.pipe.send(Phase(self.lane, "decode"))
        self.passes.append(_pass(answer, step, self.begin))
        self.seen += 1
        if now - self.handed < EVERY:
            return True
        self.handed = now
        self.hand_over()
        return not self.pipe.poll()

    def hand_over(self) -> None:
        if self.passes:
            self.pipe.send(Passes(self.lane, self.passes))
            self.passes = []


def _pass(answer: Generation, step: Step, begin: float) -> Pass:
    tokens = answer.token_ids[-answer.accept_lengths[-1] :]
    spans: list[Span] = [(s.rank, s.work, s.begin - begin, s.end - begin, s.tokens) for s in step.spans]
    judged = Pass(answer.ends[-1], tokens, step.drafted, step.accepted, step.nodes, spans)
    if step.tree is None:
        return judged
    count = step.tree.drafted + 1
    parents = [] if step.tree.is_chain else list(step.tree.parents[:count])
    return replace(judged, tree_N=list(step.tree.tokens[:count]), parents_N=parents, path=list(step.path_A))


def unwatched(answer: Generation) -> list[Pass]:
    """The passes of an answer as it tells them itself, of a loop that cannot be watched."""
    if len(answer.ends) != len(answer.accept_lengths):
        return []
    found, place = [], 0
    for end, length, drafted, accepted, nodes in zip(
        answer.ends, answer.accept_lengths, answer.drafted, answer.accepted, answer.nodes, strict=True
    ):
        found.append(Pass(end, answer.token_ids[place : place + length], drafted, accepted, nodes, []))
        place += length
    return found


@torch.inference_mode()
def chances(decoder: Decoder, prompt_T: Sequence[int], tokens: Sequence[int], sampling: Sampling) -> list[float]:
    """The target's probability of each token of an answer, given all before it. The decoder is left with these."""
    if not tokens:
        return []
    p = partial(probabilities, sampling=sampling)
    found = [float(p(decoder.prefill(prompt_T).logits_NV)[0, tokens[0]])]
    for begin in range(0, len(tokens) - 1, PART):
        part = list(tokens[begin : min(begin + PART, len(tokens) - 1)])
        logits_NV = decoder.score(TokenTree.chain(part)).logits_NV
        decoder.commit(range(len(part)))
        following = torch.tensor(tokens[begin + 1 : begin + 1 + len(part)], device=logits_NV.device)
        found += p(logits_NV).gather(-1, following[:, None])[:, 0].tolist()
    return found
