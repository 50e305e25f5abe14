"""A trained head as a folder, in the published format of its kind, but for what keeps it small: matrices NAME are int8
with float32 scales per row in NAME.scale, the target's embedding and head are not repeated, and `lm_head.tokens` has
the target's token of each logit."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from methods.engine.int8 import SCALE, Int8
from methods.engine.weights import TOKENS
from methods.errors import UserError
from methods.training.heads.base import Head
from methods.training.heads.eagle import EagleHead
from methods.training.heads.eagle3 import Eagle3Head
from methods.training.heads.hydra import HydraHead
from methods.training.heads.kinds import new_head
from methods.training.heads.medusa import MedusaHead
from methods.training.heads.target import HeadTarget
from methods.training.recipe import HeadRecipe

FILES = {
    MedusaHead: "medusa_lm_head.safetensors",
    HydraHead: "hydra_lm_head.safetensors",
    EagleHead: "model.safetensors",
    Eagle3Head: "model.safetensors",
}


def export_head(kind: type[HeadRecipe], run: Path, folder: Path, target: str | None, pair: str | None) -> None:
    """Write the best weights of `run`; `target` where it lies elsewhere than while training."""
    path = next((path for name in ("best.pt", "checkpoint.pt") if (path := run / name).is_file()), None)
    if path is None:
        raise UserError(f"expected a checkpoint in {run}, found none: train first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    recipe, name = kind(**state["recipe"]), target or state["recipe"]["target"]
    found = HeadTarget.find(name)
    head = new_head(recipe, found, state["draft"]["tokens_N"])
    head.load_state_dict(state["draft"])
    size = write_head(folder, head, head_config(head, found.checkpoint.raw_config, pair or name))
    print(f"{folder}: {size / 1e6:.1f} MB after {state['progress']['tokens']} tokens")


def head_config(head: Head, target: dict[str, Any], name: str) -> dict[str, Any]:
    """Medusa's and Hydra's say what they are; EAGLE's are those of a Llama of one layer."""
    if isinstance(head, (MedusaHead, HydraHead)):
        return head.config() | {"base_model_name_or_path": name}
    shape = {key: value for key, value in target.items() if not key.startswith("_")}
    theta = (target.get("rope_parameters") or target).get("rope_theta", 10000.0)
    one = {"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": False, "rope_theta": theta}
    return shape | one | head.config() | {"base_model_name_or_path": name}


def write_head(folder: Path, head: Head, config: dict[str, Any]) -> int:
    """The size of its weights, in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILES[type(head)]
    save_file(head_tensors(head), path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return path.stat().st_size


def head_tensors(head: Head) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in head.tensors().items():
        if tensor.dim() == 2:
            int8 = Int8.of(tensor.detach())
            tensors |= {name: int8.values_OI, name + SCALE: int8.scales_O}
        else:
            tensors[name] = tensor.detach()
    if not isinstance(head, Eagle3Head) and len(head.tokens_N) < len(head.embedding_VD):
        tensors[TOKENS] = head.tokens_N.to(torch.int32)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
