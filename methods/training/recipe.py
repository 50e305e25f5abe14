"""What a draft is trained with: the options of train_draft.py, TOML recipes and the learning rate's course."""

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from methods.errors import UserError, nearest


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what and how. Tokens count positions with a loss; durations are in seconds."""

    target: str = "smollm2-135m"
    answers: tuple[str, ...] = ()
    layers: str = "spread-12"
    exits: tuple[int, ...] = (4, 8, 12)
    objective: str = "soft"
    targets: str = "distill"
    vocabulary: int = 12288
    kept: int = 32
    most_answers: int = 0
    tokens: int = 4_000_000
    epochs: float = 0.0
    learning_rate: float = 6e-4
    schedule: str = "wsd"
    warmup: float = 0.01
    batch_tokens: int = 2048
    micro_tokens: int = 2048
    length: int = 768
    held_out: float = 0.025
    validation_answers: int = 64
    chunk: int = 512
    seed: int = 0
    precision: str = "bf16"
    validate_every: int = 100_000
    save_every: float = 300.0


HELP = {
    "target": "pair, model folder, GGUF file or hub id of the target",
    "answers": "files of the target's answers (distill.py)",
    "layers": "layers of the target: first-K, spread-K or a list like 0,1,5,29",
    "exits": "numbers of layers after which the draft can stop; the last is all of them",
    "objective": "soft: mean of the losses of all exits (Sorted Fine-Tuning); sft: the last exit's alone",
    "targets": "distill: the target's probabilities; tokens: the answers' own tokens",
    "vocabulary": "tokens that the head knows, the most frequent ones; 0: all",
    "kept": "the target's most probable tokens that are cached per position",
    "most_answers": "train on so many of the answers; 0: all",
    "tokens": "length of the whole run",
    "epochs": "length of the whole run in passes over the answers, in place of --tokens",
    "learning_rate": "its peak",
    "schedule": "wsd: constant, in the last third linear to zero; cosine: to zero",
    "warmup": "share of the run",
    "batch_tokens": "tokens of one optimiser step",
    "micro_tokens": "tokens of one forward pass, padding included",
    "length": "tokens at which a prompt with its answer is cut",
    "held_out": "share of the prompts that is never trained on",
    "validation_answers": "held-out answers looked at in each validation",
    "chunk": "answers whose cached probabilities are in memory at a time",
    "seed": "of the split and of the order of the data",
    "precision": "of matrix products; weights and optimiser are fp32",
    "validate_every": "tokens between validations",
    "save_every": "seconds between checkpoints",
}
CHOICES = {
    "objective": ("soft", "sft"),
    "targets": ("distill", "tokens"),
    "schedule": ("wsd", "cosine"),
    "precision": ("bf16", "no"),
}
# what a run may be continued with; everything else shapes its weights or its data
CHANGEABLE = {
    "target",
    "answers",
    "most_answers",
    "tokens",
    "epochs",
    "learning_rate",
    "schedule",
    "warmup",
    "validate_every",
    "save_every",
}


def learning_rate(recipe: Recipe, done: float) -> float:
    """At the share `done` (0 to 1) of the run."""
    if done < recipe.warmup:
        return recipe.learning_rate * max(done / recipe.warmup, 0.01)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))
    return recipe.learning_rate * min(1.0, 3 * (1 - done))


def read_recipe(path: Path | None, given: dict[str, Any]) -> Recipe:
    """The defaults, changed by the TOML file at `path`, changed by the options in `given`."""
    values: dict[str, Any] = {}
    if path:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise UserError(f"expected a recipe in TOML at {path}, found an error: {error}") from None
    known = {field.name: field.default for field in fields(Recipe)}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{path}: unknown key '{name}'{nearest(name, known)}")
        wanted = (
            list
            if isinstance(known[name], tuple)
            else (int, float)
            if isinstance(known[name], float)
            else type(known[name])
        )
        if not isinstance(value, wanted) or value not in CHOICES.get(name, (value,)):
            raise UserError(f"{path}: {name} = {value!r} does not fit; it is {HELP[name]}")
    values |= given
    settings: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    return Recipe(**settings)
