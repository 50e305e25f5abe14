"""The CPU operators of native.c: compiled by `build.py`, loaded by ctypes. Without a compiler, or with
PEARL_BENCH_NATIVE=0, models run on PyTorch's operators instead.

OpenMP comes from PyTorch: the file is compiled with -fopenmp but not linked with it, so its GOMP_* symbols resolve to
the library that PyTorch has loaded. One pool of threads then serves both, and `torch.set_num_threads` governs it.

Legend: N rows, I inputs, O outputs, D width, d head width.
"""

import ctypes
import os
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.engine import traffic
from methods.engine.backends.base import LayerParts, LinearLayer
from methods.engine.backends.build import FLAGS, build
from methods.engine.backends.huge_pages import in_huge_pages
from methods.engine.config import ModelConfig
from methods.engine.int4 import GROUP, Int4
from methods.engine.int8 import Int8
from methods.engine.tree import TokenTree

DTYPES = (torch.bfloat16, torch.float32)


class LinearArguments(ctypes.Structure):
    """`Linear` of native.c."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("inputs", ctypes.c_long),
        ("outputs", ctypes.c_long),
        ("int4", ctypes.c_long),
    ]


class LayerArguments(ctypes.Structure):
    """`Layer` of native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "beside_norm", "q_norm", "k_norm")),
        *((name, LinearArguments) for name in ("qkv", "out", "gate_up", "down")),
    ]


class PassArguments(ctypes.Structure):
    """`Pass` of native.c."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("threads", "bf16", "width", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_long) for name in ("mlp_width", "beside_width")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_long) for name in ("rows", "start", "known", "capacity")),
        *((name, ctypes.c_void_p) for name in ("parents", "cosines", "sines", "keys", "values", "beside")),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled operators, or None where they cannot be had; the reason is told once, as a warning."""
    if os.environ.get("PEARL_BENCH_NATIVE") == "0":
        return None
    try:
        return built(FLAGS)
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        warnings.warn(f"the native CPU operators are not available, slower ones are used: {detail}", stacklevel=2)
        return None


def built(flags: Sequence[str]) -> ctypes.CDLL:
    """The library of these flags. One that cannot be loaded is compiled again, once."""
    path = build(flags)
    try:
        return load(path)
    except (OSError, AttributeError):  # AttributeError: it lacks a function
        path.unlink(missing_ok=True)
        return load(build(flags))


def load(path: Path) -> ctypes.CDLL:
    """Open a built library. PyTorch normally makes its OpenMP library's symbols global; where not, this does."""
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        with open("/proc/self/maps") as maps:
            loaded = {line.split()[-1] for line in maps if "/libgomp" in line}
        for library_path in sorted(loaded, key=lambda name: "torch" not in name)[:1]:
            ctypes.CDLL(library_path, ctypes.RTLD_GLOBAL)
    lib = ctypes.CDLL(str(path))
    number, pointer = ctypes.c_long, ctypes.c_void_p
    lib.tile.restype = lib.group.restype = lib.run_layers.restype = lib.linear.restype = number
    lib.linear.argtypes = [pointer, number, number, number, pointer, pointer, number]
    lib.rms_norm.argtypes = [pointer, number, number, ctypes.c_double, number, pointer, pointer]
    lib.run_layers.argtypes = [pointer, pointer, number, number, pointer]
    lib.largest.argtypes = [pointer, number, number, number, pointer]
    lib.busy_until.argtypes = [ctypes.c_double]
    lib.likeliest.argtypes = [pointer, number, number, number, number, pointer, pointer]
    return lib


def runs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the native operators compute in this dtype on this device."""
    return device.type == "cpu" and dtype in DTYPES and library() is not None


def _lib() -> ctypes.CDLL:
    lib = library()
    assert lib is not None, "native operators used where runs() is false"
    return lib


def tile() -> int:
    """Outputs per packed tile of weights, cache rows per packed tile of keys."""
    return _lib().tile()


def pair(dtype: torch.dtype) -> int:
    """Inputs that lie side by side in a packed tile."""
    return _lib().group() if dtype == torch.int8 else 2 if dtype == torch.bfloat16 else 1


def pack_weight(weight_OI: Tensor) -> Tensor:
    """[tiles, I / pair, tile, pair], the last tile filled with zeros."""
    outputs, inputs = weight_OI.shape
    tiles, side = -(-outputs // tile()), pair(weight_OI.dtype)
    padded = torch.nn.functional.pad(weight_OI, (0, 0, 0, tiles * tile() - outputs))
    return padded.view(tiles, tile(), inputs // side, side).transpose(1, 2).contiguous()


def _packed(weight_OI: Tensor | Int8 | Int4) -> Tensor:
    if isinstance(weight_OI, Int4):
        return pack_int4(weight_OI)
    return pack_weight(weight_OI if isinstance(weight_OI, Tensor) else weight_OI.values_OI)


def pack_int4(weight_OI: Int4) -> Tensor:
    """Bytes, [tiles, groups, bytes of a group], as int4.h has them, the last tile filled with zeros."""
    outputs, inputs = weight_OI.shape
    tiles, groups = -(-outputs // tile()), inputs // GROUP

    def padded(numbers: Tensor) -> Tensor:
        return torch.nn.functional.pad(numbers, (0, 0, 0, tiles * tile() - outputs))

    def of_groups(numbers_OG: Tensor) -> Tensor:
        return padded(numbers_OG).view(tiles, tile(), groups).transpose(1, 2).contiguous().view(torch.uint8)

    halves = padded(weight_OI.values_OI).view(tiles, 2, tile() // 2, groups, GROUP // 4, 4)
    nibbles = (halves[:, 0] | halves[:, 1] << 4).permute(0, 2, 3, 1, 4).flatten(2)
    return torch.cat((of_groups(weight_OI.steps_OG), of_groups(weight_OI.minima_OG), nibbles), 2)


def takes(weight_OI: Tensor | Int8 | Int4) -> bool:
    """Whether a NativeLinear can have these weights: its inputs are read in steps."""
    step = 2 if isinstance(weight_OI, Tensor) else 4
    return runs(weight_OI.dtype, weight_OI.device) and weight_OI.shape[1] % step == 0


class NativeLinear:
    """y = x W^T + b for weights that it `takes`. Those in 8 or 4 bits are not widened in memory. With 4 bits, x is
    rounded to 8 bits in groups of 32; with 8, where the processor multiplies bytes, to 16 bits per row."""

    def __init__(self, weight_OI: Tensor | Int8 | Int4, bias_O: Tensor | None, out_dtype: torch.dtype) -> None:
        self.dtype, self.out_dtype = weight_OI.dtype, out_dtype
        self.outputs, self.inputs = weight_OI.shape
        int8 = weight_OI if isinstance(weight_OI, Int8) else None
        self._weight = in_huge_pages(_packed(weight_OI))
        self.weight_size: float = self._weight[0].nbytes / (tile() * self.inputs)  # bytes
        self.weight_bytes = round(self.weight_size * self.inputs * self.outputs)
        self._bias = None if bias_O is None else self._whole_tiles(bias_O.float())
        self._scale = self._whole_tiles(int8.scales_O.float()) if int8 else None
        self._sums = self._whole_tiles(128 * int8.values_OI.sum(1, dtype=torch.int32)) if int8 else None
        pointers = (_pointer(tensor) for tensor in (self._weight, self._bias, self._scale, self._sums))
        self.arguments = LinearArguments(*pointers, self.inputs, self.outputs, isinstance(weight_OI, Int4))

    def _whole_tiles(self, numbers_O: Tensor) -> Tensor:
        """With zeros for the rest of the last tile."""
        return torch.nn.functional.pad(numbers_O, (0, len(self._weight) * tile() - self.outputs))

    def __call__(self, x_NI: Tensor) -> Tensor:
        traffic.add(self.weight_bytes)
        x_NI = _checked(x_NI, self.dtype, self.inputs)
        y_NO = torch.empty(len(x_NI), self.outputs, dtype=self.out_dtype)
        size = (torch.get_num_threads(), len(x_NI), self.dtype == torch.bfloat16)
        out_bf16 = self.out_dtype == torch.bfloat16
        if _lib().linear(ctypes.byref(self.arguments), *size, x_NI.data_ptr(), y_NO.data_ptr(), out_bf16):
            raise MemoryError(f"no memory for {len(x_NI)} rows")
        return y_NO


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, D a multiple of 16."""
    weight_D = weight_D.float()
    x_ND = _checked(x_ND, x_ND.dtype, len(weight_D))
    y_ND = torch.empty_like(x_ND)
    bf16 = x_ND.dtype == torch.bfloat16
    _lib().rms_norm(weight_D.data_ptr(), *x_ND.shape, eps, bf16, x_ND.data_ptr(), y_ND.data_ptr())
    return y_ND


def runs_layers(config: ModelConfig, dtype: torch.dtype, devices: Sequence[torch.device]) -> bool:
    """Whether whole layers of such a model can run natively: its widths must fill vectors and tiles."""
    if not all(runs(dtype, device) for device in devices):
        return False
    return config.width % 16 == 0 and config.head_dim % 16 == 0 and config.mlp_width % tile() == 0


class LayerStack:
    """The layers of a Transformer in one call, sharing its weights."""

    operators = "native"
    min_rows = 1
    row_counts: tuple[int, ...] | None = None

    def __init__(self, config: ModelConfig, layers: Sequence[LayerParts], dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self._kept: list[Tensor | None] = []  # what the arguments point to
        self._layers = [self._arguments(layer) for layer in layers]
        self._beside = [0 if layer.beside_norm_E is None else len(layer.beside_norm_E) for layer in layers]
        self._bytes = [sum(part.weight_bytes for part in _linears(layer)) for layer in layers]
        self._table = (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, self._layers))

    def _arguments(self, layer: LayerParts) -> LayerArguments:
        norms = (layer.attention_norm_D, layer.mlp_norm_D, layer.beside_norm_E, layer.q_norm_d, layer.k_norm_d)
        floats = [None if norm is None else norm.float() for norm in norms]
        self._kept += floats
        return LayerArguments(*map(_pointer, floats), *(linear.arguments for linear in _linears(layer)))

    def new_cache(self, layers: int, rows: int) -> "PackedCache":
        return PackedCache(layers, self.config.kv_heads, self.config.head_dim, rows, self.dtype)

    def measure_rows(self, *others: LinearLayer) -> None:
        """There is nothing to find out: sums have one order."""

    def fewer_rows(self) -> bool:
        return False

    def recorder(self, model: Any, cache: Any) -> None:
        """There is none."""

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return rms_norm(x_ND, weight_D, eps)

    def __call__(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: "PackedView",
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        x_ND, cache = _checked(x_ND, self.dtype, self.config.width).clone(), view.cache
        width = max(self._beside[first:stop], default=0)
        if width:
            beside_NE = _checked(x_ND[:, :0] if beside_NE is None else beside_NE, self.dtype, width)
        behind = view.start + view.known
        if behind + len(x_ND) > cache.rows or stop > min(len(self._layers), len(cache.keys)):
            raise ValueError(f"expected {behind} + {len(x_ND)} rows of {stop} layers to fit the cache")
        if beside_NE is not None and len(beside_NE) != len(x_ND):
            raise ValueError(f"expected {len(x_ND)} rows beside as many, got {len(beside_NE)}")
        c, (cosines, sines) = self.config, rotation
        arguments = PassArguments(
            *(torch.get_num_threads(), self.dtype == torch.bfloat16, c.width, c.heads, c.kv_heads, c.head_dim),
            *(c.mlp_width, width, c.norm_eps, len(x_ND), view.start, view.known, cache.rows),
            *map(_pointer, (view.parents_N, cosines, sines, cache.keys, cache.values, beside_NE)),
        )
        if _lib().run_layers(ctypes.byref(arguments), self._table, first, stop - first, x_ND.data_ptr()):
            raise MemoryError(f"no memory for a pass over {len(x_ND)} rows")
        traffic.add(sum(self._bytes[first:stop]))
        return x_ND


def _linears(layer: LayerParts) -> list[NativeLinear]:
    """In the order in which native.h has them."""
    return [part for part in (layer.qkv, layer.out, layer.gate_up, layer.down) if isinstance(part, NativeLinear)]


class PackedCache:
    """Keys and values of all layers, in the layouts that native.c reads: see there."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, rows: int, dtype: torch.dtype) -> None:
        tiles, side = -(-rows // tile()), pair(dtype)
        self.rows = tiles * tile()
        self.keys = torch.zeros(layers, kv_heads, tiles, head_dim // side, tile(), side, dtype=dtype)
        self.values = torch.zeros(layers, kv_heads, -(-head_dim // tile()), self.rows, tile(), dtype=dtype)

    def prompt(self) -> "PackedView":
        """What the rows of a prompt see: a pass like any other."""
        return PackedView(self, 0, 0, None)

    def view(self, start: int, tree: TokenTree, known: int = 0, exact: bool = True) -> "PackedView":
        """What the rows of a pass over the nodes of `tree` behind its first `known` see, which have their rows already.
        The root follows the first `start` rows."""
        return PackedView(self, start, known, None if tree.is_chain else tree.parents_N)

    def pack(self, start: int, path_A: Tensor) -> None:
        """Move rows start + path_A to start .. start + A (path_A ascending). Row by row: a path has few, and indexing
        with tensors takes seven times as long."""
        size = tile()
        for target, source in enumerate((start + path_A).tolist(), start):
            if source != target:
                self.keys[:, :, target // size, :, target % size] = self.keys[:, :, source // size, :, source % size]
                self.values[:, :, :, target] = self.values[:, :, :, source]


@dataclass(frozen=True)
class PackedView:
    """What the rows of a pass see: the `start` committed rows, and their ancestors (`parents_N`; None: a chain), of
    which the first `known` are of an earlier pass."""

    cache: PackedCache
    start: int
    known: int
    parents_N: Tensor | None


def _checked(x: Tensor, dtype: torch.dtype, width: int) -> Tensor:
    """x, contiguous: what lies behind a pointer is not checked any more."""
    if x.dim() != 2 or x.shape[1] != width or x.dtype != dtype or x.device.type != "cpu":
        raise ValueError(
            f"expected a CPU tensor [rows, {width}] of {dtype}, got {x.dtype} {list(x.shape)} on {x.device}"
        )
    return x.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
