"""What attention costs a pass on this CPU: by the native operators, which sum keys in fp32 in the order of their
positions, beside PyTorch's, which sum them in fp64, with the same linear layers.

    python scripts/bench_attention.py [PAIR] [--threads N] [--dtype TYPE] [--rounds N] [--json]

Passes of 1 and of 8 rows behind contexts of several lengths, all interleaved in one run and given as medians. What a
pass takes longer behind many tokens than behind few is attention's alone: the rest of PyTorch's layers is launched
operation by operation, which costs the same behind any.
"""

import copy
import json
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from methods.engine.backends.pytorch import TorchStack
from methods.engine.decoder import Decoder
from methods.engine.loader import find_checkpoint
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree
from methods.errors import CommandParser, UserError, command_line
from methods.pairs import find_pair

ROWS = (1, 8)
CONTEXTS = (16, 160, 2048)  # tokens before a pass; the first stands for none
SUMS = {"native": "in order, fp32", "torch": "fp64"}


def both(model: Transformer) -> dict[str, Transformer]:
    """The model by each kind of operators, with one set of weights."""
    if model.stack.operators != "native":
        raise UserError("expected the native operators to run this model here, found none: there is nothing to compare")
    other = copy.copy(model)
    other.stack = TorchStack(model.config, model.layers, model.dtype, model.devices)
    return {"native": model, "torch": other}


def measured(models: Mapping[str, Transformer], contexts: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Median milliseconds of a pass by operators, rows and tokens before it."""
    decoders = {}
    for name, model in models.items():
        for context in contexts:
            decoders[name, context] = Decoder(model, context + max(ROWS))
            decoders[name, context].prefill([1 + 7 * i % 90 for i in range(context)])
    trees = {rows: TokenTree.chain([1 + i for i in range(rows)]) for rows in ROWS}
    times: dict[tuple[str, int, int], list[float]] = {(*key, rows): [] for key in decoders for rows in ROWS}
    for round_ in range(rounds + 1):
        for name, context, rows in sorted(times, reverse=round_ % 2 == 1):
            begin = time.perf_counter()
            decoders[name, context].score(trees[rows])
            times[name, context, rows].append(time.perf_counter() - begin)
    found = {key: 1e3 * median(values[1:]) for key, values in times.items()}
    return {name: {n: {c: found[name, c, n] for c in contexts} for n in ROWS} for name in models}


def show(ms: dict[str, Any], contexts: tuple[int, ...], title: str) -> None:
    table = Table(
        "rows", "tokens before", *SUMS.values(), "ratio", *(f"attention, {how}" for how in SUMS.values()), title=title
    )
    for rows in ROWS:
        for context in contexts:
            ours, theirs = (ms[name][rows][context] for name in SUMS)
            more = [f"{ms[name][rows][context] - ms[name][rows][contexts[0]]:+.2f}" for name in SUMS]
            table.add_row(str(rows), str(context), f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}", *more)
    Console(highlight=False).print(table)


def main() -> int:
    parser = CommandParser(description="What attention costs a pass on this CPU, in order and in fp64.")
    parser.add_argument("pair", nargs="?", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = find_checkpoint(find_pair(args.pair).target).transformer(args.dtype, [torch.device("cpu")])
    longest = model.config.max_length - max(ROWS)
    contexts = tuple(context for context in CONTEXTS if context <= longest)
    ms = measured(both(model), contexts, args.rounds)
    if args.json:
        print(json.dumps({"pair": args.pair, "dtype": args.dtype, "threads": args.threads, "ms": ms}))
    else:
        show(ms, contexts, f"{args.pair}, {args.dtype}, {args.threads} threads, ms per pass")
    return 0


if __name__ == "__main__":
    command_line(main)
