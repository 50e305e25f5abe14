"""Whether a method is lossless on a pair: `python evaluation/lossless.py METHOD PAIR`, exit status 0 only if it is.

Greedy answers must be the baseline's, token for token. Sampled ones must have the target's distribution: exactly, on a
tiny model whose random choices are all gone through; by a test of many samples on the real one; and by a check of every
decision of a run against the acceptance rule.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.arguments import count, number
from evaluation.launch.config import add_conditions
from evaluation.launch.measure import check, spoken
from evaluation.proof.configuration import provable
from evaluation.show.losslessness import document, show
from methods.errors import CommandParser, command_line

# What `run.py` can be told beyond this command's options.
FIXED = {"repeats": 1, "replicas": 1, "trace": None, "alone": True, "output": None, "interleave": False}


def main() -> int:
    args = _parser().parse_args()
    config = provable(args)
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
    parser = CommandParser(
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
    add("--power", metavar="X", type=_share, default=0.9, help="how probably they must show it (default %(default)g)")
    add("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(benchmark="mini_bench", limit=10, max_new_tokens=64, temperature=1.0, servers={}, **FIXED)
    return parser


def _share(text: str) -> float:
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


if __name__ == "__main__":
    command_line(main)
