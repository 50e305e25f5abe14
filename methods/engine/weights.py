"""The tensors of a model's folder: which of its files hold them, and whether they are what its config.json asks for.

Nothing is executed: pickles are read through PyTorch's weights-only reader.
"""

import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.int8 import SCALE
from methods.engine.schema import Schema, checked, enough_memory, is_out_of_memory, read_table
from methods.errors import UserError, one_line, shown

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
PATTERNS = ("*.safetensors", "pytorch_model*.bin")
PICKLES = (".bin", ".pt")
REALS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAMED = 5  # tensors, or files, named in a sentence
CONSTANTS = "rotary_emb.inv_freq"  # tensors that older files carry, and that no model is made of
TOKENS = "lm_head.tokens"  # of a head over part of the vocabulary: the token of each row

Shapes = Mapping[str, tuple[int, ...]]  # of tensors by name


class IndexTable(Schema):
    """An index of shards: the file of each tensor."""

    weight_map: dict[str, str] = Field(min_length=1)


class Weights(Mapping[str, Tensor]):
    """Tensors of a folder by name, each read when asked for. safetensors, else PyTorch's weights-only files."""

    def __init__(self, folder: Path, file: str | None = None) -> None:
        """`file`: the only one that is read; None: whichever hold a model."""
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        if file is not None:
            self._file_of = self._unambiguous([folder / file])
            return
        index = next((p for name in (SAFETENSORS, PICKLE) if (p := _index(folder, name)).is_file()), None)
        single = next((p for name in (SAFETENSORS, PICKLE) if (p := folder / name).is_file()), None)
        if index is not None and (index.name.startswith(SAFETENSORS) or single is None or single.name == PICKLE):
            self._file_of = self._indexed(index)
        else:
            self._file_of = self._unambiguous([single] if single else _files(folder))
        tell_ignored(folder, set(self._file_of.values()))

    def _indexed(self, index: Path) -> dict[str, Path]:
        """The files as the index has them, each tensor where it says."""
        named = checked(IndexTable, read_table(index), index).weight_map
        held: dict[str, set[str]] = {}
        for file in sorted(set(named.values())):
            path = index.parent / file
            if Path(file).name != file or not path.is_file():
                raise UserError(f"{index} names the file {shown(file)}, which is not beside it; fetch the model again")
            held[file] = set(self._names(path))
        lacking = [name for name, file in named.items() if name not in held[file]]
        if lacking:
            what = f"{listed(lacking)} in {named[lacking[0]]}"
            raise UserError(f"{index} expects {what}, which does not hold it; fetch the model again")
        return {name: index.parent / file for name, file in named.items()}

    def _unambiguous(self, files: list[Path]) -> dict[str, Path]:
        """The tensors of all the files, which must not have any in common."""
        file_of: dict[str, Path] = {}
        for path in files:
            names = self._names(path)
            twice = next((name for name in names if name in file_of), None)
            if twice is not None:
                both = f"{file_of[twice].name} and {path.name}"
                raise UserError(
                    f"expected each tensor of {path.parent} once, got {twice} in {both}; remove one of them"
                )
            file_of |= dict.fromkeys(names, path)
        return file_of

    def _names(self, path: Path) -> list[str]:
        if path.suffix in PICKLES:
            self._pickled[path] = read_pickle(path)
            return list(self._pickled[path])
        from safetensors import SafetensorError, safe_open

        try:
            with enough_memory(f"to read {path}"), safe_open(path, "pt") as file:
                return list(file.keys())
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"cannot read weights from {path}: {one_line(error)}; fetch it again") from None

    def __getitem__(self, name: str) -> Tensor:
        path = self._file_of[name]
        if path in self._pickled:
            return self._pickled[path][name]
        from safetensors import SafetensorError, safe_open

        try:
            with enough_memory(f"to read {path}"), safe_open(path, "pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:  # its dtype may be unknown
            raise UserError(f"cannot read {shown(name)} from {path}: {one_line(error)}; fetch it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _index(folder: Path, name: str) -> Path:
    return folder / f"{name}{INDEX}"


def _files(folder: Path) -> list[Path]:
    """Weights under names of their own, of one format."""
    files = next((found for pattern in PATTERNS if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise UserError(f"expected *.safetensors or pytorch_model*.bin in {folder}, found neither")
    return files


def tell_ignored(folder: Path, used: set[Path]) -> None:
    """A line about the weights that lie beside those that are read."""
    beside = [path.name for pattern in PATTERNS for path in sorted(folder.glob(pattern)) if path not in used]
    if beside:
        tell(f"note: weights are read from {listed(sorted(p.name for p in used))} in {folder}, not {listed(beside)}")


@cache
def tell(line: str) -> None:
    """Each line once: a folder may be read as a target and as a draft."""
    print(line, file=sys.stderr)


def listed(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(name if name.isprintable() else shown(name) for name in names[:NAMED]) + more


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A file of torch.save, of today's format or of that before 2020, which cannot be mapped into memory."""
    try:
        with warnings.catch_warnings(action="ignore"):  # they advise on how the file was made
            read = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # a broken file makes the unpickler raise anything; its advice is to trust the file
        if is_out_of_memory(error):
            raise UserError(f"there is not enough memory to read {path}; free some, or lift the limit") from None
        raise UserError(
            f"expected {path} to be weights that torch.save wrote, tensors by name and nothing else, got a file that "
            "is torn or holds more; fetch it again, or convert it to safetensors where you trust it"
        ) from None
    if not isinstance(read, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in read.items()):
        raise UserError(f"expected {path} to hold tensors by name, got {type(read).__name__} of other things")
    return read


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
        return shapes | {"lm_head.weight": (head_rows, config.width), TOKENS: (head_rows,)}
    return shapes if config.tied else shapes | {"lm_head.weight": (config.vocab_size, config.width)}


def check_weights(
    config: ModelConfig, weights: Mapping[str, Tensor], source: str, head_rows: int | None = None, int8: bool = False
) -> None:
    """The weights are those of a model of this configuration. `int8`: matrices may be stored so."""
    optional = {"lm_head.weight": (config.vocab_size, config.width)} if config.tied else {}
    shapes = expected_shapes(config, head_rows)
    check_tensors(weights, shapes, optional, source, "its config.json does not fit", int8)


def check_tensors(
    weights: Mapping[str, Tensor], needed: Shapes, optional: Shapes, source: str, advice: str, int8: bool
) -> None:
    """Every needed tensor is there in its shape, of real numbers, an optional one too where it is, and nothing else,
    but constants that older files carry. `int8`: matrices may be stored so, beside their scales. `advice`: where names
    do not fit."""
    missing = [name for name in needed if name not in weights]
    known = {*needed, *optional}
    unexpected = [name for name in weights if name not in known and not name.endswith(CONSTANTS)]
    for found, names in (("misses", missing), ("has unexpected", unexpected)):
        if names:
            raise UserError(f"{source} {found} weights: {listed(names)}; {advice}")
    there = {name: shape for name, shape in {**needed, **optional}.items() if name in weights}
    for name, shape in there.items():
        _check_tensor(name, weights[name], shape, source, int8)
    if int8:
        check_scales(weights, [name for name in there if weights[name].dtype == torch.int8], source)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], source: str, int8: bool) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(f"{source}: expected {name} of shape {shape}, got {tuple(tensor.shape)}")
    scaled = int8 and tensor.dtype == torch.int8 and len(shape) == 2
    if tensor.layout != torch.strided or not (scaled or tensor.dtype in REALS or name == TOKENS):
        kinds = "float32, bfloat16 or float16" + ", or int8 for matrices" * int8
        raise UserError(f"{source}: expected {name} in {kinds}, got {kind_of(tensor)}")


def check_scales(weights: Mapping[str, Tensor], matrices: Iterable[str], source: str) -> None:
    """Each matrix in int8 has a scale for each row, and those that are multiplied as one are stored alike."""
    for name in matrices:
        scale, rows = weights[name + SCALE], len(weights[name])
        if scale.dtype not in REALS or tuple(scale.shape) != (rows,):
            got = f"{kind_of(scale)} {tuple(scale.shape)}"
            raise UserError(f"{source}: expected {name}{SCALE} to be {rows} real numbers, got {got}; export it again")
        for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            part = next((part for part in parts if f".{part}." in name), None)
            others = [name.replace(f".{part}.", f".{other}.") for other in parts] if part else []
            if any(weights[other].dtype != torch.int8 for other in others):
                raise UserError(f"{source}: expected {listed(others)} all in int8, or none; export it again")


def kind_of(tensor: Tensor) -> str:
    """Such as "int32", or "a sparse tensor"."""
    return str(tensor.dtype).removeprefix("torch.") if tensor.layout == torch.strided else "a sparse tensor"
