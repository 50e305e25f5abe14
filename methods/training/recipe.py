"""What a draft is trained with: the options of train.py, TOML recipes and the learning rate's course."""

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from methods.errors import UserError, nearest

Kind = TypeVar("Kind", bound="Recipe")


@dataclass(frozen=True)
class Recipe:
    """What any draft is trained on, and how. Tokens count positions that the draft reads; durations are in seconds."""

    target: str = "smollm2-135m"
    answers: tuple[str, ...] = ()
    vocabulary: int = 12288
    kept: int = 32
    most_answers: int = 0
    tokens: int = 4_000_000
    epochs: float = 0.0
    learning_rate: float = 6e-4
    schedule: str = "wsd"
    warmup: float = 0.01
    clip: float = 1.0
    clip_by: str = "norm"
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


@dataclass(frozen=True)
class SortedRecipe(Recipe):
    """Layers of the target with sorted exits (SD2)."""

    layers: str = "spread-12"
    exits: tuple[int, ...] = (4, 8, 12)
    objective: str = "soft"
    targets: str = "distill"


@dataclass(frozen=True)
class HeadRecipe(Recipe):
    """A head that reads the target's features."""

    vocabulary: int = 8192
    batch_tokens: int = 1024
    micro_tokens: int = 1024
    chunk: int = 64
    start: str = ""
    features: str = ""
    engine_dtype: str = "bfloat16"
    decay: float = 0.8
    patience: int = 0


@dataclass(frozen=True)
class MedusaRecipe(HeadRecipe):
    """Residual blocks, a token each, that know nothing of each other (Medusa-1)."""

    learning_rate: float = 1e-3
    heads: int = 4


@dataclass(frozen=True)
class HydraRecipe(HeadRecipe):
    """Medusa's, each of which reads the tokens before its own (Hydra); with a layer before them (Hydra++)."""

    learning_rate: float = 1e-3
    heads: int = 4
    depth: int = 1
    arch: str = "prefix-mlp"


@dataclass(frozen=True)
class EagleRecipe(HeadRecipe):
    """A layer that predicts the target's next feature (EAGLE-1, and EAGLE-2's trees)."""

    unrolls: int = 1
    noise: float = 0.2
    feature_weight: float = 1.0
    token_weight: float = 0.1


@dataclass(frozen=True)
class Eagle3Recipe(HeadRecipe):
    """A layer that reads three of the target's, trained as it drafts (EAGLE-3)."""

    unrolls: int = 7
    rope_theta: float = 10000.0


RECIPES: dict[str, type[Recipe]] = {
    "sorted": SortedRecipe,
    "medusa": MedusaRecipe,
    "hydra": HydraRecipe,
    "eagle": EagleRecipe,
    "eagle3": Eagle3Recipe,
}
HELP = {
    "target": "pair, model folder, GGUF file or hub id of the target",
    "answers": "files of the target's answers (distill.py)",
    "layers": "layers of the target: first-K, spread-K or a list like 0,1,5,29",
    "exits": "numbers of layers after which the draft can stop; the last is all of them",
    "objective": "soft: mean of the losses of all exits (Sorted Fine-Tuning); sft: the last exit's alone",
    "targets": "distill: the target's probabilities; tokens: the answers' own tokens",
    "vocabulary": "tokens that the draft's head knows, the most frequent ones; 0: all",
    "kept": "the target's most probable tokens that a position is trained on",
    "most_answers": "train on so many of the answers; 0: all",
    "tokens": "length of the whole run",
    "epochs": "length of the whole run in passes over the answers, in place of --tokens",
    "learning_rate": "its peak",
    "schedule": "wsd: constant, in the last third linear to zero; cosine or linear: to zero; constant",
    "warmup": "share of the run",
    "clip": "of gradients",
    "clip_by": "norm: of all gradients together; value: of each number",
    "batch_tokens": "tokens of one optimiser step",
    "micro_tokens": "tokens of one forward pass, padding included",
    "length": "tokens at which a prompt with its answer is cut",
    "held_out": "share of the prompts that is never trained on",
    "validation_answers": "held-out answers looked at in each validation",
    "chunk": "answers that are in memory at a time with what the target says of them",
    "seed": "of the split, of the order of the data and of new weights",
    "precision": "of matrix products; weights and optimiser are fp32",
    "validate_every": "tokens between validations",
    "save_every": "seconds between checkpoints",
    "start": "folder of a head of the same kind and shape to go on from (default: new weights)",
    "features": "folder of the target's features, which runs can share (default: the run's own); none: keep none",
    "engine_dtype": "in which the target computes its features",
    "decay": "weight of each drafted token's loss, over that of the one before",
    "patience": "end after so many validations in a row without a longer accept length; 0: never",
    "heads": "tokens that are drafted",
    "depth": "blocks of a head, of which all but the first are one",
    "arch": "mlp: Hydra; prefix-mlp: Hydra++",
    "unrolls": "tokens drafted in training, each from what was predicted for the one before",
    "noise": "width of the noise on the target's features, for answers of 512 tokens; more for shorter ones",
    "feature_weight": "of the distance to the target's next feature",
    "token_weight": "of the cross entropy to the target's next token",
    "rope_theta": "base of the rotary position embedding, written into config.json",
}
CHOICES = {
    "objective": ("soft", "sft"),
    "targets": ("distill", "tokens"),
    "schedule": ("wsd", "cosine", "linear", "constant"),
    "clip_by": ("norm", "value"),
    "precision": ("bf16", "no"),
    "engine_dtype": ("bfloat16", "float16", "float32"),
    "arch": ("mlp", "prefix-mlp"),
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
    "features",
    "unrolls",
    "patience",
    "validate_every",
    "save_every",
}


def learning_rate(recipe: Recipe, done: float) -> float:
    """At the share `done` (0 to 1) of the run."""
    if done < recipe.warmup:
        return recipe.learning_rate * max(done / recipe.warmup, 0.01)
    since = (done - recipe.warmup) / (1 - recipe.warmup)
    shares = {"cosine": 0.5 * (1 + math.cos(math.pi * since)), "linear": 1 - since, "wsd": min(1.0, 3 * (1 - done))}
    return recipe.learning_rate * shares.get(recipe.schedule, 1.0)


def read_recipe(kind: type[Kind], path: Path | None, given: dict[str, Any]) -> Kind:
    """The defaults of a kind of draft, changed by the TOML file at `path`, changed by the options in `given`."""
    known = {field.name: field.default for field in fields(kind)}
    values = _read_toml(path, known) if path else {}
    values |= given
    settings: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    return kind(**settings)


def _read_toml(path: Path, known: dict[str, Any]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"expected a recipe in TOML at {path}, found an error: {error}") from None
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{path}: unknown key '{name}'{nearest(name, known)}")
        kind = type(known[name])
        wanted = {tuple: (list,), float: (int, float)}.get(kind, (kind,))
        if not isinstance(value, wanted) or value not in CHOICES.get(name, (value,)):
            raise UserError(f"{path}: {name} = {value!r} does not fit; it is {HELP[name]}")
    return values
