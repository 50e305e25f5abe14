"""A trained draft as a folder: int8 matrices with a scale per row, small enough to publish. Used by train.py.

model.safetensors holds the usual Llama names without the embedding (the target's is used); a matrix NAME is int8 with
float32 scales NAME.scale, weight = int8 * scale per row; norms are float32. A reduced head has `lm_head.tokens`, the
target's token id of each row. config.json is the draft's Llama configuration with a key "draft".
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from methods.engine.int8 import Int8
from methods.errors import UserError


def draft_tensors(state: dict[str, Tensor], vocabulary: int) -> dict[str, Tensor]:
    """A draft's state as the tensors of its file; `vocabulary` is the target's size."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "tokens_N":
            if len(tensor) < vocabulary:
                tensors["lm_head.tokens"] = tensor.to(torch.int32)
            continue
        public = "lm_head.weight" if name == "head" else f"model.{name}"
        if tensor.dim() == 2:
            int8 = Int8.of(tensor)
            tensors[public], tensors[f"{public}.scale"] = int8.values_OI, int8.scales_O
        else:
            tensors[public] = tensor.float()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def export_run(run: Path, folder: Path, target: str | None, pair: str | None) -> None:
    """Write the last checkpoint of `run`; `target` where it lies elsewhere than while training."""
    from methods.training.target_model import load_target

    path = run / "checkpoint.pt"
    if not path.is_file():
        raise UserError(f"expected a checkpoint at {path}, found none: train first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    recipe, name = state["recipe"], target or state["recipe"]["target"]
    write_draft(folder, state["draft"], draft_config(load_target(name).config, recipe, pair or name))
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 1e6:.1f} MB after {state['progress']['tokens']} tokens")


def draft_config(target_config: Any, recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """The target's configuration with the draft's depth and its own head."""
    from methods.training.sorted import chosen_layers

    layers = chosen_layers(recipe["layers"], target_config.num_hidden_layers)
    config = {key: value for key, value in target_config.to_dict().items() if not key.startswith("_")}
    about = {"target": name, "layers": layers, "exits": list(recipe["exits"]), "format": 1}
    return {**config, "num_hidden_layers": len(layers), "tie_word_embeddings": False, "draft": about}


def write_draft(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(draft_tensors(state, config["vocab_size"]), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
