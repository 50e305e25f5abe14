"""EAGLE heads as they are published, read into `EagleHead`.

EAGLE-1 and 2 (SafeAILab): `fc` from embedding and state, `layers.0` without its first norm, the target's embedding and
LM head. EAGLE-3 (SafeAILab, SpecForge): `fc` from three taps, `midlayer` or `layers.0`, `norm`, `lm_head` over a draft
vocabulary, `d2t` from its rows to the target's tokens. speculators: the same, its configuration nested. What a head is,
and its sizes, are read off names and shapes.

Legend: D width of the head, E width of the embedding, F feature width of all taps, R rows of the LM head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods.drafters.eagle.head import EagleHead, Parts
from methods.drafters.head_files import HeadFiles, LmHead, check_target, lm_head_shapes, loaded, read_head
from methods.engine.config import FAMILIES, ModelConfig
from methods.engine.head import Head
from methods.engine.int8 import HEAD, SCALE, ScaledWeights
from methods.engine.loader import DTYPES
from methods.engine.transformer import FINAL, Layers
from methods.engine.weights import SAFETENSORS, TOKENS, Shapes
from methods.errors import UserError, shown
from methods.models import Models

FILES = (SAFETENSORS, "pytorch_model.bin")
EAGLE, EAGLE3 = "an EAGLE head", "an EAGLE-3 head"
EMBEDDING, NORM, BESIDE_NORM = "embed_tokens.weight", "norm.weight", "beside_norm.weight"
UNREAD = ("rotary_emb.inv_freq",)
SCRATCH = 1024  # rows behind the decided ones, for trees and chains that are not decided yet


@dataclass(frozen=True)
class Reading:
    """How a head is to be read where its files may be wrong about it: the base of its RoPE ("config", "target" or a
    number), layers by which its taps are shifted, and whether the normed state is the residual (None: as it says)."""

    rope: int | str = "config"
    shift: int = 0
    norm_before_residual: bool | None = None


AS_IT_SAYS = Reading()


def load(models: Models, kind: str, reading: Reading = AS_IT_SAYS) -> tuple[EagleHead, tuple[int, ...]]:
    """The pair's head of that kind (EAGLE or EAGLE3), and the taps that it reads."""
    key = f"{kind} {reading}"

    def made(files: HeadFiles) -> tuple[EagleHead, tuple[int, ...]]:
        return (_eagle3 if kind == EAGLE3 else _eagle)(files, models, reading)

    return loaded(models, key, lambda: read(models, kind), made)


def read(models: Models, kind: str) -> HeadFiles:
    """The files, with the names of `methods.engine.transformer.Layers`; checked but for their numbers."""
    if kind == EAGLE:
        files = read_head(models, kind, FILES, _eagle_name)
        files.check(*_eagle_shapes(files, models))
        return files
    files = _with_tokens(read_head(models, kind, FILES, _eagle3_name), models)
    files.check(*_eagle3_shapes(files, models))
    return files


def check_eagle(models: Models) -> None:
    """Refuse what is no EAGLE-1 head of this target, by names and shapes."""
    read(models, EAGLE)


def check_eagle3(models: Models) -> None:
    """Refuse what is no EAGLE-3 head of this target, by names and shapes."""
    _taps(read(models, EAGLE3), models, 0)


def _eagle_name(name: str) -> str | None:
    """The target's embedding, which the files repeat, is not read."""
    if name.endswith(UNREAD) or name == EMBEDDING:
        return None
    return f"model.{name}" if name.startswith("layers.") else name


def _eagle3_name(name: str) -> str | None:
    if name.endswith(UNREAD) or name.startswith("verifier_"):
        return None
    name = name.replace("midlayer.", "layers.0.")
    return f"model.{name}" if name.startswith("layers.") else name


# EAGLE-1 --------------------------------------------------------------------------------------------------------------


def _eagle_shapes(files: HeadFiles, models: Models) -> tuple[Shapes, Shapes]:
    width = _shape(files, "fc.weight")[0]
    check_target(files, width, None, models)
    needed, optional = lm_head_shapes(files, models)
    layers = _layer_shapes(files, width, width, first_norm=False)
    return {"fc.weight": (width, 2 * width), **layers, **needed}, {"fc.bias": (width,), **optional}


def _eagle(files: HeadFiles, models: Models, reading: Reading) -> tuple[EagleHead, tuple[int, ...]]:
    config = _config(files, files.config, models, reading)
    embedding_VE = models.embedding_VD.to(models.draft_device)
    parts = Parts(embedding_VE, files.linear(["fc"], models), False, LmHead.of(files, models), config.norm_eps)
    return EagleHead(parts, _layers(config, files.weights, models)), (FINAL,)


# EAGLE-3 --------------------------------------------------------------------------------------------------------------


def _with_tokens(files: HeadFiles, models: Models) -> HeadFiles:
    """The files with the target's token of each row of the LM head in place of `d2t`.

    d2t is meant to be the offset to a row's token; some have the token itself. `t2d` says which tokens there are."""
    weights = {n: files.weights[n] for n in [*files.weights, *_scales(files.weights)] if n not in ("d2t", "t2d")}
    rows, vocabulary = len(files.weights[HEAD]) if HEAD in files.weights else 0, models.vocabulary
    if "d2t" not in files.weights or rows == vocabulary:
        return replace(files, weights=ScaledWeights(weights))
    d2t, t2d = files.weights["d2t"].long().flatten(), files.weights.get("t2d")
    if t2d is not None and t2d.numel() != vocabulary:
        check_target(files, models.target_checkpoint.config.width, t2d.numel(), models)
    for tokens_R in (torch.arange(len(d2t)) + d2t, d2t) if len(d2t) else ():
        ascending = bool((tokens_R.diff() > 0).all()) and int(tokens_R[0]) >= 0 and int(tokens_R[-1]) < vocabulary
        if ascending and (t2d is None or torch.equal(tokens_R, t2d.nonzero().flatten())):
            return replace(files, weights=ScaledWeights(weights | {TOKENS: tokens_R}))
    raise UserError(
        f"expected d2t in {files.source} to lead from each row of its LM head to a token of this target (vocabulary "
        f"{vocabulary}), as its t2d has them; choose a head of this target, or fetch it again"
    )


def _eagle3_shapes(files: HeadFiles, models: Models) -> tuple[Shapes, Shapes]:
    config = models.target_checkpoint.config
    width, fed = _shape(files, "fc.weight")
    embedded = _shape(files, "model.layers.0.input_layernorm.weight")[0]
    rows = _shape(files, HEAD)[0]
    if fed % config.width:
        check_target(files, fed // 3, None, models)  # of the usual three taps
    if EMBEDDING not in files.weights:
        check_target(files, embedded, None, models)
    if TOKENS not in files.weights and rows != models.vocabulary:
        check_target(files, config.width, rows, models)
    layers = _layer_shapes(files, width, embedded + width, first_norm=True)
    layers |= {"model.layers.0.hidden_norm.weight": (width,), "model.layers.0.input_layernorm.weight": (embedded,)}
    own = {"fc.weight": (width, fed), NORM: (width,), HEAD: (rows, width)}
    tokens = {TOKENS: (rows,)} if TOKENS in files.weights else {}
    norms = {f"fc_norm.{i}.weight": (config.width,) for i in range(fed // config.width)}
    norms = norms if any(name.startswith("fc_norm.") for name in files.weights) else {}
    whole = {} if norms else {"input_norm.weight": (fed,)}
    return {**own, **layers, **tokens, **norms}, {EMBEDDING: (models.vocabulary, embedded), **whole}


def _eagle3(files: HeadFiles, models: Models, reading: Reading) -> tuple[EagleHead, tuple[int, ...]]:
    table, weights = files.config, files.weights
    taps = _taps(files, models, reading.shift)
    config = _config(files, table.get("transformer_layer_config", table), models, reading)
    normed = bool(table.get("norm_before_residual", False))
    normed = normed if reading.norm_before_residual is None else reading.norm_before_residual
    device, dtype = models.draft_device, DTYPES[models.dtype]

    def norm(name: str) -> Tensor:
        return weights[name].to(device, dtype)

    layer = "model.layers.0."
    renamed = {name: weights[name] for name in [*weights, *_scales(weights)] if name.startswith("model.layers.")}
    renamed[layer + BESIDE_NORM] = renamed.pop(f"{layer}input_layernorm.weight")
    stream = renamed.pop(f"{layer}hidden_norm.weight")
    if not normed:
        renamed[f"{layer}input_layernorm.weight"] = stream
    own = EMBEDDING in weights and (
        bool(table.get("embed_requires_grad")) or weights[EMBEDDING].shape[1] != models.target_checkpoint.config.width
    )
    parts = Parts(
        norm(EMBEDDING) if own else models.embedding_VD.to(device),
        files.linear(["fc"], models),
        True,
        LmHead.of(files, models),
        config.norm_eps,
        [norm(name) for name in weights if name.startswith(("input_norm.", "fc_norm."))],
        stream.to(device, dtype) if normed else None,
        norm(NORM),
        bool(table.get("norm_output", False)),
    )
    return EagleHead(parts, _layers(config, renamed, models)), taps


def _taps(files: HeadFiles, models: Models, shift: int) -> tuple[int, ...]:
    """The target's layers after which the head reads the residual stream.

    A configuration that names layers counts what goes into a layer from 2 on (EAGLE, speculators), or what comes out of
    one from 1 on (SpecForge); one that names none means what goes into layers 2, N / 2 and N - 3 of N."""
    layers = models.target_checkpoint.config.layers
    table = files.config
    inner = table.get("eagle_config")
    named = table.get("eagle_aux_hidden_state_layer_ids") or (
        inner.get("eagle_aux_hidden_state_layer_ids") if isinstance(inner, Mapping) else None
    )
    if named is None:
        named = [2, layers // 2, layers - 3]
    if not isinstance(named, list) or not all(type(layer) is int for layer in named):
        raise UserError(
            f"expected eagle_aux_hidden_state_layer_ids of {files.source} to be a list of layers, got {shown(named)}"
        )
    taps = tuple(layer - (named[0] != 1) + shift for layer in named)
    width = models.target_checkpoint.config.width
    count = _shape(files, "fc.weight")[1] // width
    if len(taps) != count or not all(0 <= tap < layers for tap in taps):
        raise UserError(
            f"expected {files.source} to read {count} of the {layers} layers of this target, by its fc.weight, got "
            f"{shown(named)}; choose a head of this target"
        )
    return taps


# both -----------------------------------------------------------------------------------------------------------------


def _shape(files: HeadFiles, name: str) -> tuple[int, int]:
    """Of a matrix, or of a vector with 1 behind it."""
    if name not in files.weights:
        raise UserError(f"{files.source} misses weights: {name}; fetch it again")
    shape = files.weights[name].shape
    if not 0 < len(shape) < 3:
        raise UserError(f"{files.source}: expected {name} to be a matrix or a vector, got shape {tuple(shape)}")
    return int(shape[0]), int(shape[1]) if len(shape) > 1 else 1


def _layer_shapes(files: HeadFiles, width: int, inputs: int, first_norm: bool) -> dict[str, tuple[int, ...]]:
    """Tensors of the layers; the first one reads `inputs` wide rows. Biases of q, k and v are all there or none is, and
    so are norms of q and k."""
    needed: dict[str, tuple[int, ...]] = {}
    for i in range(_count(files)):
        layer, read = f"model.layers.{i}.", inputs if i == 0 else width
        q, kv = (_shape(files, f"{layer}self_attn.{part}_proj.weight")[0] for part in "qk")
        mlp = _shape(files, f"{layer}mlp.gate_proj.weight")[0]
        rows = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
        needed |= {f"{layer}{name}.weight": (count, read) for name, count in rows.items()}
        biases = {f"{layer}{name}.bias": (count,) for name, count in rows.items()}
        needed |= biases if any(name in files.weights for name in biases) else {}
        needed |= {f"{layer}self_attn.o_proj.weight": (width, q), f"{layer}mlp.down_proj.weight": (width, mlp)}
        needed |= {f"{layer}mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        needed |= {f"{layer}post_attention_layernorm.weight": (width,)}
        if i or first_norm:
            needed |= {f"{layer}input_layernorm.weight": (width,)}
        norms = [f"{layer}self_attn.{part}_norm.weight" for part in "qk"]
        needed |= {name: _shape(files, name)[:1] for name in norms if any(n in files.weights for n in norms)}
    return needed


def _count(files: HeadFiles) -> int:
    """How many layers there are."""
    return 1 + max((int(name.split(".")[2]) for name in files.weights if name.startswith("model.layers.")), default=0)


def _config(files: HeadFiles, table: Any, models: Models, reading: Reading) -> ModelConfig:
    """The layers' configuration: what shapes say, and of the files' table the width of a head, the norm's epsilon and
    the RoPE."""
    target, weights = models.target_checkpoint.config, files.weights
    table = dict(table) if isinstance(table, Mapping) else {}
    width, layer = _shape(files, "fc.weight")[0], "model.layers.0."
    q, k = (_shape(files, f"{layer}self_attn.{part}_proj.weight")[0] for part in "qk")
    heads = table.get("num_attention_heads")
    guess = width // heads if type(heads) is int and heads > 0 and width % heads == 0 else target.head_dim
    head_dim = table.get("head_dim") if type(table.get("head_dim")) is int else guess
    head_dim = head_dim if head_dim and q % head_dim == 0 and k % head_dim == 0 else target.head_dim
    if q % head_dim or k % head_dim:
        raise UserError(f"{files.source}: expected q_proj of whole heads of {head_dim} rows, got {q} rows")
    family = table.get("model_type") if table.get("model_type") in FAMILIES else "llama"
    told = ("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters")
    raw = {
        **{key: table[key] for key in told if key in table},
        "model_type": family,
        "vocab_size": models.vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(files, f"{layer}mlp.gate_proj.weight")[0],
        "num_hidden_layers": _count(files),
        "num_attention_heads": q // head_dim,
        "num_key_value_heads": k // head_dim,
        "head_dim": head_dim,
    }
    config = ModelConfig.from_dict(raw, f"{files.source}/config.json")
    config = replace(config, qk_norm=f"{layer}self_attn.q_norm.weight" in weights)
    if reading.rope == "target":
        return replace(config, rope=target.rope)
    return config if reading.rope == "config" else replace(config, rope=replace(config.rope, theta=float(reading.rope)))


def _layers(config: ModelConfig, weights: Mapping[str, Tensor], models: Models) -> Head:
    layers = Layers(config, weights, DTYPES[models.dtype], [models.draft_device] * config.layers)
    longest = models.target_checkpoint.config.max_length
    return Head(layers, min(models.max_length or longest, longest) + SCRATCH)


def _scales(weights: Mapping[str, Tensor]) -> Sequence[str]:
    """Scales are found in a head's weights, but not listed."""
    return [name + SCALE for name in weights if weights[name].dtype == torch.int8]
