"""Messages as tensors: any frozen dataclass, taken apart and put together by its fields' annotations.

All that a message says in numbers and words becomes one vector of whole numbers, reals by their bits, so that token ids
never travel as floating-point numbers. Tensors travel beside it, each in its own dtype.
"""

import dataclasses
import struct
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.bool)
_REAL, _WHOLE = struct.Struct("<d"), struct.Struct("<q")  # of a real, and of the whole number of the same bits

Encoder = Callable[[Any, list[int], list[Tensor]], None]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the numbers of a message say of one of its tensors, so that its receiver can make room for it."""

    dtype: torch.dtype
    sizes: tuple[int, ...]


def encode(message: Any) -> tuple[list[int], list[Tensor]]:
    """The numbers of a message, and its tensors in the order in which the numbers name them, on the CPU."""
    numbers: list[int] = []
    tensors: list[Tensor] = []
    _encoder(message.__class__)(message, numbers, tensors)
    return numbers, tensors


@cache
def _encoder(kind: Any) -> Encoder:
    """What takes a value of that annotation apart. Made once of each: a message is sent in every round."""
    kind, optional = _without_none(kind)
    encoder = _encoder_of_one(kind)
    if not optional:
        return encoder

    def optionally(value: Any, numbers: list[int], tensors: list[Tensor]) -> None:
        numbers.append(int(value is not None))
        if value is not None:
            encoder(value, numbers, tensors)

    return optionally


def _encoder_of_one(kind: Any) -> Encoder:
    if kind in (int, bool):
        return lambda value, numbers, _: numbers.append(int(value))
    if kind is float:
        return lambda value, numbers, _: numbers.extend(_WHOLE.unpack(_REAL.pack(value)))
    if kind is str:
        return lambda value, numbers, _: numbers.extend((len(value), *map(ord, value)))
    if kind is Tensor:
        return _encode_tensor
    if get_origin(kind) in (list, tuple):
        return _encoder_of_many(get_args(kind)[0])
    if dataclasses.is_dataclass(kind):
        return _encoder_of_fields(kind)
    raise TypeError(f"expected fields of numbers, words, lists, tensors and dataclasses of these, got {kind}")


def _encode_tensor(value: Tensor, numbers: list[int], tensors: list[Tensor]) -> None:
    numbers += [DTYPES.index(value.dtype), value.dim(), *value.shape]
    tensors.append(value.cpu().contiguous())


def _encoder_of_many(kind: Any) -> Encoder:
    item_encoder = _encoder(kind)

    def encode_items(value: Any, numbers: list[int], tensors: list[Tensor]) -> None:
        numbers.append(len(value))
        for item in value:
            item_encoder(item, numbers, tensors)

    return encode_items


def _encoder_of_fields(kind: Any) -> Encoder:
    encoders = [(name, _encoder(inner)) for name, inner in _fields(kind)]

    def encode_fields(value: Any, numbers: list[int], tensors: list[Tensor]) -> None:
        for name, encoder in encoders:
            encoder(getattr(value, name), numbers, tensors)

    return encode_fields


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
        return _REAL.unpack(_WHOLE.pack(next(numbers)))[0]
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
