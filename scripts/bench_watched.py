"""Does watching slow an answer down? Watched and unwatched answers in turn, as the page's processes give them.

    python scripts/bench_watched.py [PAIR] [--method METHOD] [--rounds N] [--tokens N] [--threads N]

Prints the time of a watched answer over that of an unwatched one: the median over pairs of neighbours, which share the
machine's mood, with the middle half. Passes are handed to another process, which makes text and JSON of them as the
server does.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.config import parse
from evaluation.launch.ranks import choose_device, join_ranks, take_share
from evaluation.launch.worker import WARM_UP
from evaluation.page.lanes import Lane
from evaluation.page.messages import Passes
from evaluation.page.worker import NO_QUESTIONS, Stage, Watch
from methods import get_method
from methods.base import Limits, generate
from methods.engine.loader import find_checkpoint
from methods.engine.sampling import Sampling
from methods.errors import CommandParser, UserError, command_line


def read(pipe: Connection, source: str, loop: str) -> None:
    """What the server does with passes, in a process of its own."""
    lane = Lane(loop, find_checkpoint(source).tokenizer)
    while (message := pipe.recv()) is not None:
        if isinstance(message, Passes):
            json.dumps(lane.add(message.passes))


def main() -> int:
    options = _parser().parse_args()
    spec = get_method(options.method)
    if spec.ranks > 1 or spec.loop == "peer":
        raise UserError(f"expected a method of one rank that can be watched, got {spec.name}; take sps")
    config = parse([options.method, options.pair, "--alone", "--threads", str(options.threads)])
    ranks = join_ranks(1)
    stage = Stage(config, NO_QUESTIONS, ranks, take_share(ranks, choose_device(config.device), config.threads))
    ours, theirs = multiprocessing.Pipe()
    reader = multiprocessing.get_context("spawn").Process(target=read, args=(theirs, config.pair.target, spec.loop))
    reader.start()
    ratios = measured(stage, options, ours)
    ours.send(None)
    reader.join()
    low, _, high = statistics.quantiles(ratios, n=4)
    half = f"middle half {low:.4f} to {high:.4f}, {len(ratios)} pairs"
    print(f"watched / unwatched: {statistics.median(ratios):.4f} ({half})")
    return 0


def measured(stage: Stage, options: argparse.Namespace, pipe: Connection) -> list[float]:
    """The ratio of each pair of neighbours, in an order that turns round."""
    method = stage.method(options.method)
    tokenizer = stage.models.target_checkpoint.tokenizer
    prompt = tokenizer(WARM_UP[0])["input_ids"]
    limits = Limits(frozenset(), options.tokens)

    def answer(watched: bool) -> float:
        watch = Watch(pipe, 0) if watched else None
        seconds = generate(method, prompt, Sampling(), limits, watch).wall_time
        if watch is not None:
            watch.hand_over()
        return seconds

    for watched in (True, False):
        answer(watched)
    ratios = []
    for number in range(options.rounds):
        order = (True, False) if number % 2 else (False, True)
        seconds: dict[bool, float] = {watched: answer(watched) for watched in order}
        ratios.append(seconds[True] / seconds[False])
    return ratios


def _parser() -> Any:
    parser = CommandParser(description="The time of watched answers over that of unwatched ones.")
    parser.add_argument("pair", nargs="?", default="smollm2-135m")
    parser.add_argument("--method", default="sps")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    command_line(main)
