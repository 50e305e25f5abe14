"""Whether a method is lossless on a pair: `python evaluation/lossless.py METHOD PAIR`, exit status 0 only if it is.

Greedy answers must be the baseline's, token for token. Sampled ones must have the target's distribution: exactly, on a
tiny model whose random choices are all gone through; by a test of many samples on the real one; and by a check of every
decision of a run against the acceptance rule.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from evaluation.launch.arguments import count
from evaluation.launch.config import RunConfig, add_conditions, configure
from evaluation.launch.measure import check, spoken
from evaluation.launch.processes import launched
from evaluation.show.tables import terminal
from methods import get_method
from methods.errors import UserError, command_line

if TYPE_CHECKING:
    from evaluation.proof.checks import Check

# What `run.py` can be told beyond this command's options.
FIXED = {"repeats": 1, "replicas": 1, "trace": None, "alone": True, "output": None}


def main() -> int:
    args = _parser().parse_args()
    config = _config(args)
    check(config)
    from evaluation.proof.checks import Sizes, all_checks

    sizes = Sizes(args.prompts, args.shift, args.power)
    console = spoken(0)
    checks = []
    with tempfile.TemporaryDirectory(prefix="pearl-bench-") as folder:
        for found in all_checks(config, sizes, Path(folder)):
            console.print(f"{found.name}: {found.outcome}", soft_wrap=True)
            checks.append(found)
    if config.json:
        print(json.dumps(document(config, checks), indent=2))
    else:
        show(config, checks)
    return int(not all(found.passed for found in checks))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lossless.py",
        usage="%(prog)s METHOD PAIR [options]   (%(prog)s METHOD --target MODEL [--draft MODEL] [options])",
        description="Whether a method's output is the target's own. Unless told otherwise, on 10 questions of "
        "mini_bench. Exit status: 0 it is, 1 it is not, 2 unusable input.",
    )
    add = parser.add_argument
    add("methods", metavar="METHOD", help="the method")
    add_conditions(parser)
    add("--prompts", metavar="N", type=count, default=3, help="prompts whose answers are sampled (default 3)")
    add(
        "--shift",
        metavar="X",
        type=_share,
        default=0.15,
        help="a total variation that the samples must show (default %(default)g; half of it takes 4 times as many)",
    )
    add(
        "--power",
        metavar="X",
        type=_share,
        default=0.9,
        help="how probably they must show it (default %(default)g)",
    )
    add("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(benchmark="mini_bench", limit=10, max_new_tokens=64, temperature=1.0, **FIXED)
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def _config(args: argparse.Namespace) -> RunConfig:
    """What is checked. Raises UserError for what cannot be."""
    if launched():
        raise UserError("lossless.py starts the ranks that a method needs by itself: call it without a launcher")
    config = configure(args)
    if "," in args.methods:
        raise UserError(f"expected one method, got {args.methods}; call lossless.py for each of them")
    if not get_method(args.methods).lossless:
        raise UserError(
            f"{args.methods} is another library's loop and not claimed to be lossless; choose a method of ours"
        )
    if config.temperature == 0:
        raise UserError("expected a temperature above 0 for the checks of sampling, got 0; greedy is checked anyway")
    return config


def document(config: RunConfig, checks: "list[Check]") -> dict[str, Any]:
    """The result for programs: what was checked, under which conditions, and each check."""
    from evaluation.launch.provenance import environment

    return {
        "method": config.methods[-1],
        "options": config.options_of(config.specs[-1]),
        "pair": config.pair.name,
        "lossless": all(found.passed for found in checks),
        "checks": [
            {"name": c.name, "passed": c.passed, "compared": c.compared, "outcome": c.outcome} | c.figures
            for c in checks
        ],
        "target": config.pair.target,
        "draft": config.draft_of(config.specs[-1]),
        "dtype": config.dtype,
        "benchmark": config.benchmark,
        "sampling": {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p},
        "seed": config.seed,
        **environment(),
    }


def show(config: RunConfig, checks: "list[Check]") -> None:
    """The table, where a failure shows, and the verdict in a sentence."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("check", "compared", "outcome", ""):
        table.add_column(column, no_wrap=column in ("check", ""))
    for found in checks:
        table.add_row(found.name, found.compared, found.outcome, _word(found.passed))
    output = terminal()
    output.print(table)
    for found in checks:
        if found.detail:
            output.print(f"{found.name}:\n{found.detail}", markup=False, soft_wrap=True)
    output.print(verdict(config, checks), soft_wrap=True)


def _word(passed: bool) -> Text:
    return Text("pass", "green") if passed else Text("FAIL", "bold red")


def verdict(config: RunConfig, checks: "list[Check]") -> Text:
    """One sentence."""
    name, pair = config.methods[-1], config.pair.name
    failed = [found.name for found in checks if not found.passed]
    if not failed:
        return Text(f"{name} is lossless on {pair}: it passed all {len(checks)} checks.", "bold green")
    return Text(f"{name} is NOT lossless on {pair}: it failed {' and '.join(failed)}.", "bold red")


if __name__ == "__main__":
    command_line(main)
