"""Messages as tensors: any named tuple or dataclass, taken apart and put together by its fields' annotations.

All that a message says in numbers and words becomes one vector of whole numbers, reals by their bits, so that token ids
never travel as floating-point numbers. Tensors travel beside it, each in its own dtype.
"""

import dataclasses
import struct
import types
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.bool)
_REAL, _WHOLE = struct.Struct("<d"), struct.Struct("<q")  # of a real, and of the whole number of the same bits

Encoder = Callable[[Any, list[int], list[Tensor]], None]
Decoder = Callable[[Iterator[int], Any], Any]


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
    if hasattr(kind, "__match_args__"):
        return _encoder_of_fields(kind)
    raise TypeError(
        f"expected fields of numbers, words, lists, tensors, named tuples and dataclasses of these, got {kind}"
    )


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


def decode(kind: type, numbers: list[int], tensor: Callable[[Shape], Tensor]) -> Any:
    """The message that `encode` took apart. `tensor` gives the next one, which is of that shape."""
    return _decoder(kind)(iter(numbers), tensor)


@cache
def _decoder(kind: Any) -> Decoder:
    """What puts a value of that annotation together. Made once of each, too."""
    kind, optional = _without_none(kind)
    decoder = _decoder_of_one(kind)
    return (lambda numbers, tensor: decoder(numbers, tensor) if next(numbers) else None) if optional else decoder


def _decoder_of_one(kind: Any) -> Decoder:
    if kind is int:
        return lambda numbers, _: next(numbers)
    if kind is bool:
        return lambda numbers, _: bool(next(numbers))
    if kind is float:
        return lambda numbers, _: _REAL.unpack(_WHOLE.pack(next(numbers)))[0]
    if kind is str:
        return lambda numbers, _: "".join(map(chr, islice(numbers, next(numbers))))
    if kind is Tensor:
        return _decode_tensor
    if get_origin(kind) in (list, tuple):
        return _decoder_of_many(get_origin(kind), get_args(kind)[0])
    decoders = [_decoder(inner) for _, inner in _fields(kind)]
    return lambda numbers, tensor: kind(*[decoder(numbers, tensor) for decoder in decoders])


def _decode_tensor(numbers: Iterator[int], tensor: Callable[[Shape], Tensor]) -> Tensor:
    dtype = DTYPES[next(numbers)]
    return tensor(Shape(dtype, tuple(islice(numbers, next(numbers)))))


def _decoder_of_many(many: Any, kind: Any) -> Decoder:
    if kind is int:
        return lambda numbers, _: many(islice(numbers, next(numbers)))
    decoder = _decoder(kind)
    return lambda numbers, tensor: many([decoder(numbers, tensor) for _ in range(next(numbers))])


@cache
def _fields(kind: Any) -> list[tuple[str, Any]]:
    """Names and annotations of the fields, which named tuples and dataclasses tell by the same name."""
    hints = get_type_hints(kind)
    return [(name, hints[name]) for name in kind.__match_args__]


@cache
def _without_none(kind: Any) -> tuple[Any, bool]:
    """The annotation X of `X | None`, and whether it was one."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
    return inner, True
