"""Train a draft from chosen layers of its target on the target's own answers, with sorted exits (SD2).

    python scripts/train_draft.py --target smollm2-135m --answers answers.jsonl.gz --out runs/draft
    python scripts/train_draft.py --out runs/draft --export data/drafts/smollm2-135m

Started again with the same options, a run goes on from its last checkpoint; SIGTERM makes it write one and stop. In
OUT: checkpoint.pt, log.jsonl (tokens seen, loss, agreement with the target per exit), table.md, curve.png, and teacher/
with the target's probabilities. `accelerate launch` runs it on several devices.
"""

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.errors import CommandParser, UserError, command_line
from methods.training.recipe import CHOICES, HELP, Recipe, read_recipe


def parse() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write the last checkpoint as a draft, train nothing"
    )
    parser.add_argument("--pair", help="name of the target written into the export (default: --target of the run)")
    parser.add_argument("--config", type=Path, help="recipe in TOML: the options below, with _ for -")
    for field in fields(Recipe):
        many = isinstance(field.default, tuple)
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=int if field.name == "exits" else str if many else type(field.default),
            nargs="+" if many else None,
            default=argparse.SUPPRESS,
            choices=CHOICES.get(field.name),
            help=f"{HELP[field.name]} (default: {field.default})",
        )
    return parser.parse_args()


def main() -> int:
    given = vars(parse())
    out, export, pair, config = (given.pop(name) for name in ("out", "export", "pair", "config"))
    if export:
        from methods.training.export import export_run

        export_run(out, export, given.get("target"), pair)
        return 0
    recipe = read_recipe(config, given)
    if not recipe.answers:
        raise UserError("expected --answers FILE...: the target's own answers; write them with scripts/distill.py")
    from methods.training.target_model import load_target
    from methods.training.trainer import Trainer

    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, load_target(recipe.target), out)
    signal.signal(signal.SIGTERM, trainer.stop)
    trainer.train()
    return 0


if __name__ == "__main__":
    command_line(main)
