"""Whether an EAGLE head is read as it was trained: python scripts/check_head.py PAIR KIND [--draft HEAD].

Published files are known to be wrong about the layers that a head reads, the base of its rotary embedding and its
residual: the output stays exact, only drafts are kept less often. So the head drafts behind a few of the target's own
answers, read in each of these ways. Exit status: 0 the files' way is as good as any, 1 another is better.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.arguments import count, word
from methods.errors import CommandParser, command_line

KINDS = ("eagle", "eagle3")


def main() -> int:
    args = _parser().parse_args()
    import torch
    from rich.console import Console
    from rich.table import Table

    from evaluation.launch.benchmarks import load_questions
    from evaluation.launch.prompts import Prompter
    from evaluation.launch.ranks import choose_device
    from methods import get_method
    from methods.build import check_weights
    from methods.drafters.eagle.files import EAGLE, EAGLE3
    from methods.drafters.eagle.self_check import DEPTHS, compare, told, warning
    from methods.models import Models
    from methods.pairs import find_pair

    pair = find_pair(args.pair)
    models = Models(
        pair.target, args.draft or pair.drafts.get(args.kind), pair.dtype, [torch.device(choose_device("auto"))]
    )
    check_weights(get_method(args.kind).check, models)
    prompter = Prompter(models.target_checkpoint.tokenizer, pair.template, "mini_bench")
    questions = load_questions("mini_bench", None, args.questions).questions
    prompts = [prompter.encode(question.turns[:1], []) for question in questions]
    found = compare(models, EAGLE3 if args.kind == "eagle3" else EAGLE, prompts, args.max_new_tokens)
    table = Table("read with", *(f"kept at {depth}" for depth in range(1, DEPTHS + 1)), "accept length")
    for one in found:
        table.add_row(told(one.reading), *(f"{share:.2f}" for share in one.acceptances), f"{one.accept_length:.2f}")
    console = Console(highlight=False)
    console.print(table)
    advice = warning(found)
    console.print(f"warning: {advice}" if advice else "no other way to read it is clearly better", soft_wrap=True)
    return int(advice is not None)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", metavar="PAIR", help="a pair, or a target as --target takes it")
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help="eagle or eagle3")
    parser.add_argument("--draft", metavar="HEAD", type=word, help="the head, instead of the pair's")
    parser.add_argument("--questions", metavar="N", type=count, default=6, help="of mini_bench (default 6)")
    parser.add_argument("--max-new-tokens", metavar="N", type=count, default=48, help="of each answer (default 48)")
    return parser


if __name__ == "__main__":
    command_line(main)
