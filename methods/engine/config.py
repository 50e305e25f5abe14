"""Shape of a model, read from a Hugging Face `config.json`. Llama, Mistral, Qwen2 and Qwen3 families."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from methods.engine.schema import Schema, checked
from methods.errors import UserError, shown

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
MOST_LAYERS = 1 << 12
Size = Annotated[int, Field(gt=0, le=1 << 24)]  # more is a mistake: names and caches are made by these numbers
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    def from_dict(cls, raw: dict[str, Any], source: object = "config.json") -> "ModelConfig":
        """Read the dictionary of a `config.json`, which `source` names. Raises UserError for what the engine cannot run
        faithfully, and for values of a wrong type or out of range."""
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"expected a model of the families {', '.join(FAMILIES)}, got model_type {shown(family)}")
        if raw.get("hidden_act", "silu") != "silu" or raw.get("mlp_bias"):
            raise UserError(f"expected a SwiGLU MLP without bias, got hidden_act {shown(raw.get('hidden_act'))}")
        if raw.get("attention_bias") and family != "qwen2":
            raise UserError(f"attention_bias is supported for qwen2 only, not for {family}")
        table = checked(ConfigTable, raw, source)
        table.check_heads(source)
        return cls(
            family=family,
            vocab_size=table.vocab_size,
            width=table.hidden_size,
            layers=table.num_hidden_layers,
            heads=table.num_attention_heads,
            kv_heads=table.num_key_value_heads or table.num_attention_heads,
            head_dim=table.head_dim or table.hidden_size // table.num_attention_heads,
            mlp_width=table.intermediate_size,
            norm_eps=table.rms_norm_eps,
            max_length=table.context,
            rope=_rope(table, source),
            tied=table.tie_word_embeddings,
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        )


class RopeTable(Schema):
    """Both spellings of RoPE's scaling in one. What a kind of scaling needs is looked for when the kind is known."""

    rope_theta: Positive | None = None
    rope_type: str | None = None
    type: str | None = None


class LinearTable(Schema):
    """Positions divided by a factor."""

    factor: Positive


class Llama3Table(Schema):
    """Llama 3.1's wavelength rule."""

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Size


class ConfigTable(Schema):
    """The keys of a `config.json` that are read, with Transformers' defaults."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: int = Field(gt=0, le=MOST_LAYERS)
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: Size = 2048
    sliding_window: Size | None = None
    use_sliding_window: bool | None = None
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def check_heads(self, source: object) -> None:
        """The heads must share the width, groups of them a key, and pairs of coordinates a rotation."""
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            wrong = f"hidden_size to be a multiple of its {heads} num_attention_heads, got {self.hidden_size}"
        elif kv_heads and heads % kv_heads:
            wrong = f"num_attention_heads to be a multiple of its {kv_heads} num_key_value_heads, got {heads}"
        elif (self.head_dim or self.hidden_size // heads) % 2:
            wrong = f"an even head_dim, got {self.head_dim or self.hidden_size // heads}"
        else:
            return
        raise UserError(f"expected {wrong} in {source}; correct it or fetch it again")

    @property
    def context(self) -> int:
        """Its length in tokens: shorter where a sliding window would begin to matter, since it is not computed."""
        used = self.model_type == "mistral" if self.use_sliding_window is None else self.use_sliding_window
        if self.sliding_window is None or not used:
            return self.max_position_embeddings
        return min(self.max_position_embeddings, self.sliding_window)


def _rope(config: ConfigTable, source: object) -> Rope:
    """Both spellings: `rope_theta` + `rope_scaling`, and the later single table `rope_parameters`."""
    merged = {**(config.rope_scaling or {}), **(config.rope_parameters or {})}
    where = f"the RoPE scaling of {source}"
    table = checked(RopeTable, merged, where)
    theta = table.rope_theta or config.rope_theta or 10000.0
    kind = table.rope_type or table.type or "default"
    if kind not in ("default", "linear", "llama3") or any(isinstance(value, dict) for value in merged.values()):
        raise UserError(
            f"expected rope scaling default, linear or llama3, got {shown(kind if kind != 'default' else merged)}: "
            "this model cannot be run faithfully"
        )
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, factor=checked(LinearTable, merged, where).factor)
    llama3 = checked(Llama3Table, merged, where)
    low, high = llama3.low_freq_factor, llama3.high_freq_factor
    if high <= low:
        raise UserError(f"expected high_freq_factor in {where} to be above low_freq_factor {low}, got {high}")
    return Rope(theta, kind, llama3.factor, low, high, llama3.original_max_position_embeddings)
