"""A comparison may be measured several times: each launch in processes of its own, with headers of its own under one
run id, some time apart. Whole launches are done once; the one that was interrupted goes on where it stopped."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from rich.console import Console

from evaluation.answers.files import answers_of, read_file
from evaluation.answers.header import read_header
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import parse_answers
from evaluation.launch.config import RunConfig
from evaluation.launch.measure import start
from methods import MethodSpec


def start_launches(
    config: RunConfig, ids: Collection[QuestionId], job: Callable[[RunConfig], int], console: Console
) -> int:
    """Do `job` for each launch that is not done. Returns the exit status of the first that fails, else 0."""
    open_launches = [number for number in range(1, config.launches + 1) if not done(launch(config, number), ids)]
    for place, number in enumerate(open_launches):
        if place and config.pause:
            console.print(f"launch {number} of {config.launches} begins in {config.pause:g} s")
            time.sleep(config.pause)
        console.print(f"launch {number} of {config.launches}")
        if status := start(launch(config, number), job, fresh=True):
            return status
    return 0


def next_launch(config: RunConfig, ids: Collection[QuestionId]) -> RunConfig:
    """The first launch that is not done, or the last: an outer launcher's processes are there for one."""
    each = [launch(config, number) for number in range(1, config.launches + 1)]
    return next((one for one in each if not done(one, ids)), each[-1])


def launch(config: RunConfig, number: int) -> RunConfig:
    """One launch of them."""
    return replace(config, launch=number, trace=config.trace if number == 1 else None)


def done(config: RunConfig, ids: Collection[QuestionId]) -> bool:
    """Whether the launch has an answer to every question by every method, made as it is asked for now."""
    return all(_done(config, spec, set(ids)) for spec in config.specs)


def _done(config: RunConfig, spec: MethodSpec, ids: set[QuestionId]) -> bool:
    path = answers_of(config.folder, spec.name)
    header = read_header(path)
    if header is None or any(header[key] != value for key, value in _asked_for(config, spec).items()):
        return False  # where something is there, to go on with it is refused, naming what differs
    answers, _ = parse_answers(path, read_file(path))
    return ids <= set(answers)


def _asked_for(config: RunConfig, spec: MethodSpec) -> dict[str, Any]:
    """What the header of the method has, as far as the command line tells."""
    same = ("dtype", "sampling", "max_new_tokens", "seed", "template", "repeats")
    threads = {} if config.threads is None or spec.all_devices else {"threads": config.threads}
    options = {"options": config.options_of(spec), "methods": list(config.methods)}
    return {name: getattr(config, name) for name in same} | threads | options


def failures(config: RunConfig) -> Counter[str]:
    """Count the questions of each method that failed, in the launch in which most did."""
    found: Counter[str] = Counter()
    for name in config.methods:
        places = (answers_of(config.folder_of(number), name) for number in range(1, config.launches + 1))
        found[name] = max(len(header.failures) for header in map(read_header, places) if header)
    return +found
