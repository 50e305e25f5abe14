"""How fast the engine is on this machine: against Transformers, against the memory floor, and by rows per pass.

    python scripts/bench_engine.py [PAIR] [--threads N] [--dtype TYPE] [--draft MODEL] [--rounds N] [--json]

Everything is interleaved in one run and given as medians, since absolute times on a shared machine drift:
- ratios of whole methods: decoding time of the same prompts, prefill apart, paired by round;
- time of one pass by its rows (a chain of N nodes), and the floor: weight bytes / read bandwidth;
- a profile: where the time of one pass goes;
- what a draft token costs at each exit of the pair's draft, against its own floor, and c: target pass / draft token.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from evaluation.launch.benchmarks import load_questions
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.provenance import read_bandwidth
from evaluation.launch.worker import Session
from methods import get_method
from methods.base import Limits, generate
from methods.drafters.draft_model import draft_model
from methods.drafters.language_model import ModelDrafter
from methods.drafters.sd2.chain import exits_here
from methods.drafters.sd2.exits import StagedDecoder
from methods.engine.decoder import Decoder, Scores
from methods.engine.sampling import Sampling
from methods.engine.trained_draft import is_trained_draft
from methods.engine.tree import TokenTree
from methods.engine.verify import verify
from methods.errors import CommandParser, command_line
from methods.models import Models
from methods.pairs import Pair, get_pair
from methods.target import Outcome

COMPARED = {  # ours, theirs; the better, the higher the ratio
    "autoregressive / hf-generate": ("autoregressive", "hf-generate"),
    "pld / hf-pld": ("pld", "hf-pld"),
    "sps / hf-assisted": ("sps", "hf-assisted"),
}
ROWS = (1, 2, 4, 8, 16, 32, 60)
CACHED = 250  # tokens before the measured passes
DRAFTED = 4  # tokens per measured draft


def method_seconds(session: Session, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Seconds per new token of every method, one entry per round; a round is one question, the methods in turn."""
    limits = Limits(frozenset(), tokens)  # no EOS: everybody does the same work
    seconds: dict[str, list[float]] = {name: [] for name in session.methods}
    for index, question in enumerate(session.benchmark.questions[:rounds]):
        prompt = session.prompter.encode(question.turns[:1], [])
        for name in sorted(seconds, reverse=index % 2 == 1):
            answer = generate(session.methods[name], prompt, Sampling(), limits)
            decoded = len(answer.token_ids) - 1
            seconds[name].append((answer.wall_time - answer.prefill_time) / decoded)
    return seconds


def pass_seconds(decoder: Decoder, rounds: int) -> dict[int, float]:
    """Median seconds of a pass over a chain of N nodes, N interleaved, each after a pass of one node."""
    trees = {rows: TokenTree.chain([1 + i % 50 for i in range(rows)]) for rows in ROWS}
    decoder.prefill([1 + i % 200 for i in range(CACHED)])
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(rounds):
        for rows, tree in trees.items():
            decoder.score(trees[1])  # what lies in the processor's caches must not depend on the pass before
            times[rows].append(timed(lambda tree=tree: decoder.score(tree)))  # type: ignore[misc]
    return {rows: median(values) for rows, values in times.items()}


def profile(decoder: Decoder, rounds: int) -> dict[str, float]:
    """Median seconds of the parts of one autoregressive pass."""
    tree = TokenTree.chain([1])
    decoder.prefill([1 + i % 200 for i in range(CACHED)])
    hidden = torch.zeros(1, decoder.model.config.width, dtype=decoder.model.dtype)
    logits = decoder.score(tree).logits_NV
    greedy = Sampling()
    parts: dict[str, Callable[[], Any]] = {
        "whole pass": lambda: decoder.score(tree),
        "head and final norm": lambda: decoder.model.logits(hidden),
        "choice of the token": lambda: verify(tree, logits, greedy, greedy.generator("verify")),
        "tree": lambda: TokenTree.chain([1]).visible_NN,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, part in parts.items():
                times[name].append(timed(part))
    found = {name: median(values) for name, values in times.items()}
    found["layers, embedding, rotation"] = found["whole pass"] - found["head and final norm"]
    return found


def draft_seconds(models: Models, rounds: int) -> dict[int, float]:
    """Median seconds of a draft token by the layers of the draft it takes, interleaved, each after a target pass."""
    exits = exits_here(models) if is_trained_draft(models.draft_checkpoint) else (draft_model(models).config.layers,)
    prompt, tree = [1 + i % 200 for i in range(CACHED)], TokenTree.chain([1])
    drafters = {}
    for exit in exits:
        drafters[exit] = ModelDrafter(StagedDecoder(draft_model(models), [exit], 0.0, 2 * CACHED), models.vocabulary)
    times: dict[int, list[float]] = {exit: [] for exit in exits}
    models.target.prefill(prompt)
    for _ in range(rounds):
        for exit, drafter in drafters.items():
            drafter.begin(prompt, Sampling(), None)
            drafter.settle(Outcome([1], [0]))
            drafter.draft(1)
            models.target.score(tree)
            times[exit].append(timed(lambda drafter=drafter: drafter.draft(DRAFTED)) / DRAFTED)  # type: ignore[misc]
    return {exit: median(values) for exit, values in times.items()}


def timed(action: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    result = action()
    if isinstance(result, Scores):  # of a target on several GPUs they are on the last
        result.wait()
    elif isinstance(result, torch.Tensor) and result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - begin


def measure(config: RunConfig, rounds: int, tokens: int) -> dict[str, Any]:
    from evaluation.launch.ranks import choose_device, join_ranks, take_share

    device = choose_device(config.device)
    ranks = join_ranks(1)
    share = take_share(ranks, device, config.threads)
    session = Session(config, load_questions(config.benchmark, None, rounds), ranks, share)
    session.warm_up()
    seconds = method_seconds(session, rounds, tokens)
    target = session.models.target
    passes = pass_seconds(target, 5 * rounds)
    bandwidth = read_bandwidth(share.threads, share.devices[0])
    floor = target.model.weight_bytes / bandwidth
    own = median(seconds["autoregressive"])
    models = session.models_of(get_method("sps"))
    draft = draft_seconds(models, rounds)
    draft_floor = {exit: draft_model(models).bytes_up_to(exit) / bandwidth for exit in draft}
    return {
        "pair": config.pair.name,
        "dtype": config.dtype,
        "threads": share.threads,
        "row_invariant": target.row_invariant,
        "read_bandwidth": bandwidth,
        "floor_ms": floor * 1e3,
        "method_ms_per_token": {name: median(values) * 1e3 for name, values in seconds.items()},
        "speed_ratios": {
            name: median(theirs / ours for ours, theirs in zip(seconds[a], seconds[b], strict=True))
            for name, (a, b) in COMPARED.items()
            if a in seconds and b in seconds
        },
        "autoregressive_over_floor": own / floor,
        "pass_ms": {rows: value * 1e3 for rows, value in passes.items()},
        "rows_8_over_1": passes[8] / passes[1],
        "draft": models.draft_source,
        "draft_token_ms": {exit: value * 1e3 for exit, value in draft.items()},
        "draft_token_over_floor": {exit: value / draft_floor[exit] for exit, value in draft.items()},
        "c": {exit: passes[1] / value for exit, value in draft.items()},
        "profile_ms": {name: value * 1e3 for name, value in profile(target, 5 * rounds).items()},
    }


def compared(pair: Pair, draft: str | None) -> dict[str, tuple[str, str]]:
    """What can be compared: Transformers cannot run a draft with exits."""
    trained = is_trained_draft(Models(pair.target, draft, pair.dtype, []).draft_checkpoint)
    return {name: both for name, both in COMPARED.items() if not (trained and "hf-assisted" in both)}


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    title = f"{result['pair']}, {result['dtype']}, {result['threads']} threads"
    table = Table("figure", "value", title=title, title_justify="left")
    for name, ratio in result["speed_ratios"].items():
        table.add_row(f"speed of {name}", f"{ratio:.2f}")
    table.add_row("autoregressive time / floor", f"{result['autoregressive_over_floor']:.2f}")
    table.add_row("pass of 8 rows / pass of 1 row", f"{result['rows_8_over_1']:.2f}")
    table.add_row("floor, ms per token", f"{result['floor_ms']:.2f}")
    for name, value in result["method_ms_per_token"].items():
        table.add_row(f"{name}, ms per token", f"{value:.2f}")
    for rows, value in result["pass_ms"].items():
        table.add_row(f"pass of {rows} rows, ms", f"{value:.2f}")
    for layers, value in result["draft_token_ms"].items():
        over, c = result["draft_token_over_floor"][layers], result["c"][layers]
        table.add_row(f"draft token of {layers} layers, ms", f"{value:.2f} ({over:.2f} x floor, c {c:.2f})")
    for name, value in result["profile_ms"].items():
        table.add_row(f"profile: {name}, ms", f"{value:.3f}")
    console.print(table)


def main() -> int:
    parser = CommandParser(description="How fast the engine is here, against Transformers and the floor.")
    parser.add_argument("pair", nargs="?", default="smollm2-135m")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--draft", help="draft model for sps and hf-assisted (default: the pair's, with exits where it has one)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="questions, and a fifth of the timed passes")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per answer")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pair = get_pair(args.pair)
    draft = args.draft or pair.drafts.get("sorted") or pair.drafts.get("model")
    arguments = [
        ",".join(dict.fromkeys(name for both in compared(pair, draft).values() for name in both)),
        args.pair,
        "--threads",
        args.threads,
        "--dtype",
        args.dtype,
        "--max-new-tokens",
        str(args.tokens),
    ]
    arguments += ["--benchmark", "humaneval", *(["--draft", draft] if draft else [])]
    result = measure(parse(arguments), args.rounds, args.tokens)
    if args.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    command_line(main)
