"""Which tokens a target says most often: python scripts/frequent_tokens.py ANSWERS... --out FILE.safetensors.

Counted in the target's own answers (scripts/distill.py), those of prompts alone last. A pair names the file by
`frequent`, and its drafts int4-K and int8-K then have an LM head over the first K tokens.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.arguments import count
from methods.errors import CommandParser, command_line, writing


def main() -> int:
    args = _parser().parse_args()
    import torch
    from safetensors.torch import save

    from methods.engine.weights import TOKENS
    from methods.training.data import ranked_tokens, read_answers

    ranked = ranked_tokens(read_answers(args.answers, args.length))[: args.tokens]
    with writing(args.out, "--out"):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(save({TOKENS: torch.tensor(ranked, dtype=torch.int32)}))
    print(f"{len(ranked)} tokens in {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("answers", metavar="ANSWERS", nargs="+", type=Path, help="files that scripts/distill.py has written")
    add("--out", metavar="FILE", type=Path, required=True, help="where to write the tokens, a .safetensors file")
    add("--tokens", metavar="N", type=count, default=24000, help="most tokens (default %(default)d)")
    add("--length", metavar="N", type=count, default=2048, help="tokens of prompt and answer that count (%(default)d)")
    return parser


if __name__ == "__main__":
    command_line(main)
