"""Shape of a model, read from a Hugging Face `config.json`. Llama, Mistral, Qwen2 and Qwen3 families."""

from dataclasses import dataclass
from typing import Any

from methods.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021): base, and how positions beyond the trained length are scaled.

    `kind` is "default", "linear" (positions divided by `factor`) or "llama3" (Llama 3.1's wavelength rule)."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """What `Transformer` must know of a model. Widths in units of model coordinates, lengths in tokens."""

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    max_length: int
    rope: Rope
    tied: bool
    qkv_bias: bool
    qk_norm: bool

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Read the dictionary of a `config.json`. Raises UserError for what the engine cannot run faithfully."""
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"expected a model of the families {', '.join(FAMILIES)}, got model_type {family!r}")
        if raw.get("hidden_act", "silu") != "silu" or raw.get("mlp_bias"):
            raise UserError(f"expected a SwiGLU MLP without bias, got hidden_act {raw.get('hidden_act')!r}")
        heads = raw["num_attention_heads"]
        qkv_bias = bool(raw.get("attention_bias", False)) if family != "qwen2" else True
        if qkv_bias and family != "qwen2":
            raise UserError(f"attention_bias is supported for qwen2 only, not for {family}")
        return cls(
            family=family,
            vocab_size=raw["vocab_size"],
            width=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            mlp_width=raw["intermediate_size"],
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            max_length=_max_length(raw),
            rope=_rope(raw),
            tied=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=qkv_bias,
            qk_norm=family == "qwen3",
        )


def _max_length(raw: dict[str, Any]) -> int:
    """Context length in tokens: shorter where a sliding window would begin to matter, since it is not computed."""
    longest = int(raw.get("max_position_embeddings", 2048))
    window = raw.get("sliding_window")
    used = raw.get("use_sliding_window", raw["model_type"] == "mistral")
    if window is None or not used:
        return longest
    return min(longest, int(window))


def _rope(raw: dict[str, Any]) -> Rope:
    """Both spellings: `rope_theta` + `rope_scaling`, and the later single table `rope_parameters`."""
    table = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(table.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = table.get("rope_type") or table.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, factor=float(table["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            factor=float(table["factor"]),
            low_freq_factor=float(table["low_freq_factor"]),
            high_freq_factor=float(table["high_freq_factor"]),
            original_length=int(table["original_max_position_embeddings"]),
        )
    raise UserError(
        f"expected rope scaling default, linear or llama3, got {kind!r}: this model cannot be run faithfully"
    )
