"""Tiny random EAGLE heads, in the published formats, for what must go through all that a method can do."""

from pathlib import Path
from typing import Any

import torch

from methods.tiny import config_of, random_tensors, save


def write_eagle(folder: Path, target: Path) -> Path:
    """An EAGLE-1 head."""
    config = config_of(target)
    width = config["hidden_size"]
    shapes = {"fc.weight": (width, 2 * width), "fc.bias": (width,), **_layer("layers.0.", config, width)}
    return save(folder, random_tensors(shapes, 3), _config(config))


def write_eagle3(folder: Path, target: Path) -> Path:
    """An EAGLE-3 head that knows every token but the second, and reads three of even two layers."""
    config = config_of(target)
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    norms = ("hidden_norm", "input_layernorm")
    shapes = {"fc.weight": (width, 3 * width), "norm.weight": (width,), "lm_head.weight": (vocabulary - 1, width)}
    shapes |= {**_layer("midlayer.", config, 2 * width), **{f"midlayer.{norm}.weight": (width,) for norm in norms}}
    known = torch.arange(vocabulary) != 1
    tokens = {"d2t": known.nonzero().flatten() - torch.arange(vocabulary - 1), "t2d": known}
    layers = config["num_hidden_layers"]
    taps = {"draft_vocab_size": vocabulary - 1, "eagle_aux_hidden_state_layer_ids": [2, layers, layers - 1]}
    return save(folder, random_tensors(shapes, 4) | tokens, _config(config) | taps)


def _layer(name: str, config: dict[str, Any], inputs: int) -> dict[str, tuple[int, ...]]:
    width, mlp = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[heads] * config["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, inputs),
        "self_attn.k_proj.weight": (kv, inputs),
        "self_attn.v_proj.weight": (kv, inputs),
        "self_attn.o_proj.weight": (width, q),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
        "mlp.down_proj.weight": (width, mlp),
        "post_attention_layernorm.weight": (width,),
    }
    return {name + part: shape for part, shape in shapes.items()}


def _config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"num_hidden_layers": 1, "rope_theta": 10000.0}
