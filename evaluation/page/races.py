"""Races: one at a time, a prompt goes to the measured processes, and what they say to the browser."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evaluation.judge.wording import counted
from evaluation.launch.benchmarks import load_questions
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.prompts import Prompter, eos_ids
from evaluation.launch.ranks import patience
from evaluation.launch.worker import WARM_UP
from evaluation.page.asked import Race
from evaluation.page.lanes import Json, Lane
from evaluation.page.messages import (
    Answered,
    Chances,
    Devices,
    Finished,
    FromRank,
    Job,
    Passes,
    Phase,
    Refused,
    Stop,
)
from evaluation.page.pool import Pool
from methods import get_method
from methods.engine.loader import Checkpoint, find_checkpoint
from methods.errors import UserError

HEEDED = 1 / 3  # of the ranks' patience: for a stop to be heeded between two passes, before they are made to end
BUSY = "expected no other race, but one is running; stop it, or wait for its end"
DIGITS = 5  # of probabilities
PAGE = "page"  # the benchmark of a prompt of the user's own


@dataclass
class Races:
    """`conditions`: the command line of a run, without its methods: the pair, its precision, devices."""

    conditions: list[str]
    pools: dict[int, Pool] = field(default_factory=dict)
    running: Pool | None = None
    unwanted: bool = False  # the race that runs, as its user has said
    begun: int = 0  # races
    devices: dict[int, str] = field(default_factory=dict)

    @cached_property
    def config(self) -> RunConfig:
        return parse(["autoregressive", *self.conditions])

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return find_checkpoint(self.config.pair.target)

    @cached_property
    def tokenizer(self) -> Any:
        return self.checkpoint.tokenizer

    @cached_property
    def warm_up(self) -> list[list[int]]:
        return [Prompter(self.tokenizer, self.config.template, PAGE).encode([WARM_UP[0]], [])]

    def configure(self, asked: Race) -> RunConfig:
        """The run that is asked for. Raises UserError where there can be none."""
        for name in asked.methods:
            if "," in name or get_method(name).draft is not None:
                raise UserError(f"expected a method with options of its own, got {name[:80]}: a draft is the pair's")
        typed = [",".join(asked.methods), *self.conditions, "--alone"]
        for flag, value in (("max-new-tokens", asked.max_new_tokens), ("temperature", asked.temperature)):
            typed += [f"--{flag}", str(value)]
        return parse(typed)

    def prompt(self, asked: Race) -> list[int]:
        """Its ids. Raises UserError for a question that is not there, or an empty prompt."""
        benchmark, turns = PAGE, [asked.prompt]
        if asked.benchmark is not None:
            benchmark = asked.benchmark
            questions = load_questions(benchmark).questions
            turns = next((q.turns[:1] for q in questions if q.question_id == asked.question), [])
            if not turns:
                raise UserError(f"{benchmark} has no question {str(asked.question)[:40]!r}; choose one of its own")
        if not turns[0].strip():
            raise UserError("expected a prompt, got an empty text; write one, or choose a question")
        return Prompter(self.tokenizer, self.config.template, benchmark).encode(turns, [])

    def job(self, asked: Race, config: RunConfig) -> Job:
        eos = eos_ids(self.tokenizer, self.checkpoint.eos_token_ids, config.template)
        lanes = tuple(dict.fromkeys(asked.methods))
        return Job(config, lanes, self.prompt(asked), self.warm_up, frozenset(eos), asked.seed)

    def pool(self, config: RunConfig) -> Pool:
        """The ranks that the methods need, those of an earlier race where they live."""
        pool = self.pools.get(config.ranks)
        if pool is None or not pool.alive:
            pool = self.pools[config.ranks] = Pool(config)
        return pool

    async def race(self, asked: Race) -> AsyncIterator[Json]:
        """What happens, as it does. A reader who goes away ends the race."""
        config = self.configure(asked)
        if self.running is not None:
            raise UserError(BUSY)
        return self._race(asked, config)

    async def _race(self, asked: Race, config: RunConfig) -> AsyncIterator[Json]:
        """The same, from the moment that somebody reads: who has gone before that leaves nothing behind."""
        if self.running is not None:
            yield {"type": "end", "stopped": False, "error": BUSY}
            return
        self.running = pool = self.pool(config)
        self.unwanted, self.begun = False, self.begun + 1
        over, told_devices = True, False  # until the processes have the job
        try:
            yield {"type": "race", "lanes": [about(name) for name in dict.fromkeys(asked.methods)]}
            job = await asyncio.to_thread(self.job, asked, config)
            pool.send(job)
            over = False
            if self.unwanted:  # a stop that came before the job was lost
                pool.send(Stop())
            lanes = [Lane(get_method(name).loop, self.tokenizer) for name in job.lanes]
            yield {"type": "prompt", "tokens": len(job.prompt_T)}
            while not over:
                message = await pool.receive()
                over = message is None or isinstance(message, Finished)
                if isinstance(message, Devices):
                    self.devices[pool.size] = devices_words(message)
                    continue
                if not told_devices and pool.size in self.devices:
                    yield {"type": "devices", "text": self.devices[pool.size]}
                    told_devices = True
                yield told(message, pool, lanes)
        except UserError as error:
            yield {"type": "end", "stopped": False, "error": str(error)}
        finally:
            if over:
                self.running = None
            else:
                _keep(asyncio.create_task(self._give_up(pool)))

    async def _give_up(self, pool: Pool) -> None:
        """Nobody reads any more: end the race, and be ready for another."""
        self.stop()
        message: FromRank | None = Phase(0, "")
        while message is not None and not isinstance(message, Finished):
            message = await pool.receive()
        self.running = None

    def stop(self) -> None:
        """End the race that runs, if any: between two passes, else with its processes."""
        if (pool := self.running) is not None:
            self.unwanted = True
            with suppress(OSError):
                pool.send(Stop())
            _keep(asyncio.create_task(self._insist(pool, self.begun)))

    async def _insist(self, pool: Pool, race: int) -> None:
        """End the processes where that race still runs after a while: by then another one may have begun."""
        await asyncio.sleep(HEEDED * patience())
        if self.running is pool and self.begun == race:
            pool.end()

    async def close(self) -> None:
        """End all processes."""
        for pool in self.pools.values():
            await pool.closed()


_tasks: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """The loop holds tasks weakly."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def devices_words(message: Devices) -> str:
    """On what each rank computes, in words."""
    target, *draft = (" + ".join(names) for names in message.names)
    return f"target on {target}, {counted(message.threads, 'thread')}" + "".join(f", draft on {name}" for name in draft)


def about(name: str) -> Json:
    """What a lane's head tells of its method."""
    spec = get_method(name)
    return {"name": name, "about": spec.about, "loop": spec.loop}


def told(message: FromRank | None, pool: Pool, lanes: list[Lane]) -> Json:
    """A message as the browser has it."""
    match message:
        case None:
            return {"type": "end", "stopped": not pool.ending.sentence, "error": pool.ending.sentence}
        case Phase(lane, name):
            return {"type": "phase", "lane": lane, "name": name}
        case Passes(lane, passes):
            return {"type": "passes", "lane": lane, "passes": lanes[lane].add(passes)}
        case Answered(lane, answer, settled):
            times = {"wall": round(answer.wall_time, 6), "prefill": round(answer.prefill_time, 6)}
            return {"type": "answer", "lane": lane, "finish": answer.finish, "settled": settled, **times}
        case Chances(lane, p):
            return {"type": "chances", "lane": lane, "p": [round(each, DIGITS) for each in p]}
        case Refused(lane, sentence):
            return {"type": "refused", "lane": lane, "error": sentence}
        case Finished(stopped):
            return {"type": "end", "stopped": stopped, "error": ""}
    raise ValueError(f"expected a message of a race, got {message}")
