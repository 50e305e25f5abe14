"""Random checkpoints that are small enough to go through all that a method can do: a target, and what a row of the
table names as `tiny` for each kind of weights. They are written as folders and loaded as any other pair."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.int8 import EMBEDDING
from methods.engine.trained_draft import FORMAT
from methods.engine.weights import SAFETENSORS, expected_shapes

CONFIG = {
    "model_type": "llama",
    "vocab_size": 3,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
SPREAD = 0.6  # of the weights: large enough for distributions that are neither flat nor certain


def write_target(folder: Path) -> Path:
    """A model of three tokens."""
    return save(folder, random_tensors(expected_shapes(ModelConfig.from_dict(CONFIG)), 0), CONFIG)


def write_draft(folder: Path, target: Path) -> Path:
    """A model of the target's sizes that can be left after each layer, and so serves as any draft model. It shares the
    target's embedding, as drafts with exits do."""
    config = config_of(target)
    exits = list(range(1, config["num_hidden_layers"] + 1))
    shapes = expected_shapes(ModelConfig.from_dict(config))
    own = {name: shape for name, shape in shapes.items() if name != EMBEDDING}
    table = {"draft": {"format": FORMAT, "target": target.name, "exits": exits}}
    return save(folder, random_tensors(own, 1), config | table)


def config_of(target: Path) -> dict[str, Any]:
    """The target's config.json: a head takes its sizes from it."""
    config: dict[str, Any] = json.loads((target / "config.json").read_text(encoding="utf-8"))
    return config


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Matrices of random numbers; vectors, which are scales of norms, of ones."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape) if len(shape) == 1 else SPREAD * torch.randn(shape, generator=random)
        for name, shape in shapes.items()
    }


def save(folder: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], name: str = SAFETENSORS) -> Path:
    """A checkpoint, which is a file of tensors of that name and a config.json."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
