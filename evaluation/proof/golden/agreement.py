"""One thing that was compared with a golden, and the first place where it differs."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4  # of fp32 sums in another order, on values of order 1 to 10
SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Agreement:
    """`compared`: numbers or items; `largest`: difference of numbers; `first`: where they part, "" where nowhere."""

    what: str
    compared: int
    largest: float | None = None
    first: str = ""


def close(what: str, got: Tensor, expected: Tensor) -> Agreement:
    """Numbers, within TOLERANCE."""
    if got.shape != expected.shape:
        return Agreement(what, 0, None, f"shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    apart = (got.double() - expected.double()).abs()
    wrong = (~(apart <= TOLERANCE)).nonzero()  # NaN is wrong too
    largest = float(apart.max()) if apart.numel() else 0.0
    if not len(wrong):
        return Agreement(what, got.numel(), largest)
    place = tuple(wrong[0].tolist())
    return Agreement(what, got.numel(), largest, f"at {place}: {float(got[place]):g}, not {float(expected[place]):g}")


def same(what: str, items: Iterable[tuple[str, object, object]]) -> Agreement:
    """Items that must be equal, each with its place."""
    first, compared = "", 0
    for place, got, expected in items:
        compared += 1
        if got != expected and not first:
            first = f"{place}: {str(got)[:SHOWN]}, not {str(expected)[:SHOWN]}"
    return Agreement(what, compared, None, first)
