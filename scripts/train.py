"""Train a draft of a frozen target on the target's own answers.

    python scripts/train.py eagle3 --target smollm2-135m --answers answers.jsonl.gz --out runs/eagle3
    python scripts/train.py eagle3 --out runs/eagle3 --export drafts/eagle3

KIND: sorted (layers of the target with exits, SD2), medusa, hydra, eagle (EAGLE-1 and 2) or eagle3; `KIND --help` tells
its options. Started again with the same options, a run goes on from its last checkpoint; SIGTERM makes it write one and
stop. In OUT: checkpoint.pt, log.jsonl (tokens seen, loss, and how often the target agrees, on answers to prompts that
are not trained on), table.md, curve.png, and what the target says: teacher/ (sorted) or features/ (heads).
`accelerate launch` runs it on several devices.
"""

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.errors import CommandParser, UserError, command_line, writing
from methods.training.recipe import CHOICES, HELP, RECIPES, HeadRecipe, Recipe, SortedRecipe, read_recipe


def parse() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, recipe in RECIPES.items():
        _add_options(kinds.add_parser(kind, help=recipe.__doc__, description=recipe.__doc__), recipe)
    return parser.parse_args()


def _add_options(parser: argparse.ArgumentParser, recipe: type[Recipe]) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write what was trained as a draft, train nothing")
    parser.add_argument("--pair", help="name of the target written into the export (default: --target of the run)")
    parser.add_argument("--config", type=Path, help="recipe in TOML: the options below, with _ for -")
    for field in fields(recipe):
        many = isinstance(field.default, tuple)
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=int if field.name == "exits" else str if many else type(field.default),
            nargs="+" if many else None,
            default=argparse.SUPPRESS,
            choices=CHOICES.get(field.name),
            help=f"{HELP[field.name]} (default: {field.default})",
        )


def main() -> int:
    given = vars(parse())
    kind, out, export, pair, config = (given.pop(name) for name in ("kind", "out", "export", "pair", "config"))
    recipe = read_recipe(RECIPES[kind], config, given)
    if export:
        _export(recipe, out, export, given.get("target"), pair)
        return 0
    if not recipe.answers:
        raise UserError("expected --answers FILE...: the target's own answers; write them with scripts/distill.py")
    _train(recipe, out)
    return 0


def _export(recipe: Recipe, out: Path, folder: Path, target: str | None, pair: str | None) -> None:
    from methods.training.export import export_run
    from methods.training.heads.export import export_head

    if isinstance(recipe, HeadRecipe):
        export_head(type(recipe), out, folder, target, pair)
    else:
        export_run(out, folder, target, pair)


def _train(recipe: Recipe, out: Path) -> None:
    trainer: Any
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, SortedRecipe):
        from methods.training.sorted_trainer import SortedTrainer
        from methods.training.target_model import load_target

        trainer = SortedTrainer(recipe, load_target(recipe.target), out)
    elif isinstance(recipe, HeadRecipe):
        from methods.training.heads.target import HeadTarget
        from methods.training.heads.trainer import HeadTrainer

        trainer = HeadTrainer(recipe, HeadTarget.find(recipe.target), out)
    signal.signal(signal.SIGTERM, trainer.stop)
    trainer.train()


if __name__ == "__main__":
    command_line(main)
