"""Random heads for a tiny target, one of each kind, stored as others publish them or as heads trained here are."""

from pathlib import Path

import torch
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.int8 import EMBEDDING, SCALE, Int8
from methods.engine.weights import TOKENS, expected_shapes
from methods.tiny import config_of, random_tensors, save

HEADS, BLOCKS = 3, 2


def write_medusa(folder: Path, target: Path) -> Path:
    """Medusa heads that have the target's LM head, for three quarters of its tokens, in int8."""
    config = config_of(target)
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    blocks = [f"{i}.{block}.linear" for i in range(HEADS) for block in range(BLOCKS)]
    random = random_tensors({f"{name}.weight": (width, width) for name in blocks}, 3)
    stored: dict[str, Tensor] = {f"{name}.bias": torch.zeros(width) for name in blocks}
    for name, tensor in random.items():
        int8 = Int8.of(tensor)
        stored |= {name: int8.values_OI, name + SCALE: int8.scales_O}
    stored[TOKENS] = torch.tensor([token for token in range(vocabulary) if token % 4 != 3])
    return save(folder, stored, {"medusa_num_heads": 2}, "medusa_lm_head.safetensors")  # which is wrong


def write_hydra(folder: Path, target: Path) -> Path:
    """Hydra++ heads with LM heads of their own."""
    config = config_of(target)
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    layer = expected_shapes(ModelConfig.from_dict(config | {"num_hidden_layers": 1, "tie_word_embeddings": True}))
    prefix = "prefix_embeding_layer."
    shapes = {prefix + name.removeprefix("model."): shape for name, shape in layer.items() if name != EMBEDDING}
    for i in range(HEADS):
        matrices = {f"hydra_mlp.{i}.1.{part}": (width, (i + 2) * width) for part in ("linear", "res_connection")}
        matrices |= {f"hydra_mlp.{i}.3.linear": (width, width), f"hydra_lm_head.{i}.1": (vocabulary, width)}
        shapes |= {f"{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in matrices.items()}
    return save(folder, random_tensors(shapes, 4), {"hydra_head_arch": "prefix-mlp"}, "hydra_lm_head.safetensors")
