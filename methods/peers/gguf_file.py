"""A checkpoint's weights as a GGUF file, for llama.cpp: in the run's own precision, the same bits as our engine has.

The file lies in the user's cache and is written once. It has no vocabulary: whoever reads it is given token ids.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from methods.engine.config import ModelConfig, Rope
from methods.engine.loader import DTYPES, Checkpoint
from methods.engine.private import danger_in
from methods.engine.weights import expected_shapes
from methods.errors import UserError, one_line
from methods.paths import cache_dir

FORMAT = 1  # of what is written here; another one is written anew
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
KINDS = {
    "float32": gguf.GGMLQuantizationType.F32,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "float16": gguf.GGMLQuantizationType.F16,
}
Describe = Callable[[gguf.GGUFWriter, ModelConfig], None]


def gguf_of(checkpoint: Checkpoint, dtype: str) -> Path:
    """The file of a checkpoint in a dtype, which is written when it is first asked for. Raises UserError where it
    cannot be."""
    path = cache_dir() / "gguf" / f"{checkpoint.folder.name}-{dtype}-{_digest(checkpoint)}.gguf"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                write(partial, checkpoint, dtype)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the weights for llama.cpp to {path}: {one_line(error)}; set PEARL_BENCH_CACHE to a folder "
            "of your own with room for them"
        ) from None
    if danger := danger_in(path):
        raise UserError(f"weights for llama.cpp are not to be trusted: {danger}; remove them, or set PEARL_BENCH_CACHE")
    return path


def _digest(checkpoint: Checkpoint) -> str:
    """Another one for other weights: by their files' sizes and times, for to read them all takes long."""
    files = sorted(path for path in checkpoint.folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json"))
    known = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([FORMAT, str(checkpoint.folder), known]).encode()).hexdigest()[:16]


def no_vocabulary(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Nothing but how many tokens there are."""
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)


def write(path: Path, checkpoint: Checkpoint, dtype: str, describe: Describe = no_vocabulary) -> None:
    """Write the file; `describe` adds the vocabulary."""
    config = checkpoint.config
    architecture = ARCHITECTURES[config.family]
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, config)
    describe(writer, config)
    model = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(model, config.layers)
    for name in expected_shapes(config):
        weights = _arranged(name, checkpoint.weights[name], config)
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place is not None, f"{name} has no name in GGUF"
        _add(writer, place, weights, dtype)
    if config.rope.kind == "llama3":
        writer.add_tensor("rope_freqs.weight", _stretched(config.rope, config.head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    if config.rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)


def _arranged(name: str, weights: Tensor, config: ModelConfig) -> Tensor:
    """Where llama.cpp rotates neighbours and not halves, the rows of q and k in that order."""
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2], 0)
    if ARCHITECTURES[config.family] != "llama" or not heads:
        return weights
    halves = weights.reshape(heads, 2, config.head_dim // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _add(writer: gguf.GGUFWriter, name: str, weights: Tensor, dtype: str) -> None:
    """Matrices in the dtype, vectors as the same numbers in fp32, as llama.cpp wants them."""
    rounded = weights.to(DTYPES[dtype]).contiguous()
    if rounded.dim() == 1:
        writer.add_tensor(name, rounded.float().numpy())
    else:
        writer.add_tensor(name, rounded.view(torch.uint8).numpy(), raw_dtype=KINDS[dtype])


def _stretched(rope: Rope, head_dim: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """By what Llama 3.1's rule divides each frequency: long waves by the factor, short ones by 1, between them a
    blend."""
    waves = 2 * torch.pi * rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = rope.original_length / waves
    share = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 / ((1 - share) / rope.factor + share)).float().numpy()
