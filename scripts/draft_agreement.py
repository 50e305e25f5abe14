"""How often the target in few bits says what it says itself: python scripts/draft_agreement.py [PAIR].

A target whose weights were in 4 bits once, as those of a GGUF file may have been, loses nothing in 4 bits. So it is
asked twice: as it is, and with a random part of half a step of that grid added to each weight of its layers, so that
they lie on no grid, as those of a model that was trained and kept in bf16. Each draft reads the target's own greedy
answers and says the next token of each place.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.arguments import count, word
from methods.errors import CommandParser, command_line
from methods.pairs import Pair, find_pair


def main() -> int:
    args = _parser().parse_args()
    from rich.console import Console
    from rich.table import Table

    pair = find_pair(args.pair)
    args.frequent = pair.frequent if args.head == "counted" else None
    table = Table("the target's weights", *args.drafts.split(","), "tokens")
    with tempfile.TemporaryDirectory() as folder:
        for label, target in (("as they are", pair.target), ("off the grid", _off_the_grid(pair.target, folder))):
            shares, tokens = _agreements(pair, target, args)
            table.add_row(label, *(f"{share:.1%}" for share in shares), str(tokens))
    Console(highlight=False).print(table)
    return 0


def _off_the_grid(target: str, folder: str) -> str:
    """The target in a folder, each weight of its layers moved by up to half a step of its group's grid."""
    import torch
    from safetensors.torch import save_file

    from methods.engine.int4 import GROUP, Int4
    from methods.engine.loader import find_checkpoint
    from methods.engine.weights import INDEX, SAFETENSORS

    checkpoint, generator = find_checkpoint(target), torch.Generator().manual_seed(0)
    weights = dict(checkpoint.weights)
    for name, weight in weights.items():
        if weight.dim() > 1 and ".layers." in name and weight.shape[1] % GROUP == 0:
            steps_OI = Int4.of(weight).steps_OG.float().repeat_interleave(GROUP, 1)
            weights[name] = weight + (torch.rand(weight.shape, generator=generator) - 0.5) * steps_OI
    for path in checkpoint.folder.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(INDEX):
            shutil.copy(path, folder)
    save_file(weights, Path(folder) / SAFETENSORS)
    return folder


def _agreements(pair: Pair, target: str, args: argparse.Namespace) -> tuple[list[float], int]:
    """Each draft's share of the target's own tokens, and how many these are."""
    import torch

    from evaluation.launch.benchmarks import load_questions
    from evaluation.launch.prompts import Prompter
    from methods import BASELINE, get_method
    from methods.base import Limits, generate
    from methods.build import build_method
    from methods.drafters.draft_model import draft_model
    from methods.engine.decoder import Decoder
    from methods.engine.sampling import Sampling
    from methods.engine.tree import TokenTree
    from methods.models import Models

    models = Models(target, None, pair.dtype, [torch.device("cpu")], max_length=1024, frequent=args.frequent)
    prompter = Prompter(models.target_checkpoint.tokenizer, pair.template, "humaneval")
    own = build_method(get_method(BASELINE), models, {})
    limits = Limits(frozenset(models.target_checkpoint.eos_token_ids), args.max_new_tokens)
    questions = load_questions("humaneval", None, args.questions).questions
    prompts = [prompter.encode(question.turns, []) for question in questions]
    answers = [generate(own, prompt, Sampling(), limits).token_ids for prompt in prompts]
    tokens, shares = sum(map(len, answers)), []
    for source in args.drafts.split(","):
        draft, same = Decoder(draft_model(models.with_draft(source)), models.max_length), 0
        for prompt, answer in zip(prompts, answers, strict=True):
            first_1V = draft.prefill(prompt).logits_NV
            logits_NV = torch.cat((first_1V, draft.score(TokenTree.chain(answer)).logits_NV[:-1]))
            known_R = draft.model.tokens_R
            said_N = logits_NV.argmax(1) if known_R is None else known_R[logits_NV.argmax(1)]
            same += int((said_N == torch.tensor(answer)).sum())
        shares.append(same / tokens)
    return shares, tokens


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", metavar="PAIR", nargs="?", default="smollm2-135m", help="a pair, or a target")
    parser.add_argument("--drafts", metavar="NAMES", type=word, default="int8,int4", help="(default int8,int4)")
    parser.add_argument(
        "--head",
        choices=("counted", "lowest"),
        default="counted",
        help="of drafts NAME-K: the pair's most frequent tokens (default), or those of the lowest numbers",
    )
    parser.add_argument("--questions", metavar="N", type=count, default=20, help="of HumanEval (default 20)")
    parser.add_argument("--max-new-tokens", metavar="N", type=count, default=64, help="of an answer (default 64)")
    return parser


if __name__ == "__main__":
    command_line(main)
