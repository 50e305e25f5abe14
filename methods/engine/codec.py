"""Messages as tensors: any frozen dataclass, taken apart and put together by its fields' annotations.

All that a message says in numbers and words becomes one vector of whole numbers, reals by their bits, so that token ids
never travel as floating-point numbers. Tensors travel beside it, each in its own dtype.
"""

import dataclasses
import struct
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.bool)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the numbers of a message say of one of its tensors, so that its receiver can make room for it."""

    dtype: torch.dtype
    sizes: tuple[int, ...]


def encode(message: Any) -> tuple[list[int], list[Tensor]]:
    """The numbers of a message, and its tensors in the order in which the numbers name them, on the CPU."""
    numbers: list[int] = []
    tensors: list[Tensor] = []
    for name, kind in _fields(message.__class__):
        _encode(getattr(message, name), kind, numbers, tensors)
    return numbers, tensors


def _encode(value: Any, kind: Any, numbers: list[int], tensors: list[Tensor]) -> None:
    kind, optional = _without_none(kind)
    if optional:
        numbers.append(int(value is not None))
        if value is None:
            return
    if kind in (int, bool):
        numbers.append(int(value))
    elif kind is float:
        numbers.append(struct.unpack("<q", struct.pack("<d", value))[0])
    elif kind is str:
        numbers += [len(value), *map(ord, value)]
    elif get_origin(kind) in (list, tuple):
        numbers.append(len(value))
        for item in value:
            _encode(item, get_args(kind)[0], numbers, tensors)
    elif kind is Tensor:
        numbers += [DTYPES.index(value.dtype), value.dim(), *value.shape]
        tensors.append(value.cpu().contiguous())
    elif dataclasses.is_dataclass(kind):
        for name, inner in _fields(kind):  # type: ignore[arg-type]
            _encode(getattr(value, name), inner, numbers, tensors)
    else:
        raise TypeError(f"expected fields of numbers, words, lists, tensors and dataclasses of these, got {kind}")


def shapes(kind: type, numbers: list[int]) -> list[Shape]:
    """Of the tensors of a message of that kind."""
    found: list[Shape] = []

    def note(shape: Shape) -> None:
        found.append(shape)

    _decode(kind, iter(numbers), note)
    return found


def decode(kind: type, numbers: list[int], tensors: list[Tensor]) -> Any:
    """The message that `encode` took apart."""
    waiting = iter(tensors)
    return _decode(kind, iter(numbers), lambda _: next(waiting))


def _decode(kind: Any, numbers: Iterator[int], tensor: Any) -> Any:
    kind, optional = _without_none(kind)
    if optional and not next(numbers):
        return None
    if kind in (int, bool):
        return kind(next(numbers))
    if kind is float:
        return struct.unpack("<d", struct.pack("<q", next(numbers)))[0]
    if kind is str:
        return "".join(chr(next(numbers)) for _ in range(next(numbers)))
    if get_origin(kind) in (list, tuple):
        items = [_decode(get_args(kind)[0], numbers, tensor) for _ in range(next(numbers))]
        return items if get_origin(kind) is list else tuple(items)
    if kind is Tensor:
        dtype, dimensions = DTYPES[next(numbers)], next(numbers)
        return tensor(Shape(dtype, tuple(next(numbers) for _ in range(dimensions))))
    return kind(*(_decode(inner, numbers, tensor) for _, inner in _fields(kind)))


@cache
def _fields(kind: Any) -> list[tuple[str, Any]]:
    """Names and annotations of a dataclass's fields."""
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind)]


@cache
def _without_none(kind: Any) -> tuple[Any, bool]:
    """The annotation X of `X | None`, and whether it was one."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
    return inner, True
