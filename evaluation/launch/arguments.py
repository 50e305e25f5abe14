"""These are the kinds of values on a command line. argparse refuses a value that is none of its kind, with status 2."""

import argparse
import math
import os
from functools import partial
from pathlib import Path

from methods import METHODS, MOST, VARIANT
from methods.paths import path_fault

MOST_LAUNCHES = 1000
PER_CORE = 4  # threads or processes: beyond that they only wait for each other, and soon there is no memory for them


def count(text: str, most: int = MOST) -> int:
    """Read a whole number from 1 to `most`."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most}, got {_shown(text)}")
    return value


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {_shown(text)}") from None


def processes(text: str) -> int:
    """Read a number of threads or processes that this machine can hold."""
    return count(text, PER_CORE * (os.cpu_count() or 1))


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {_shown(text)}")
    return value


def seconds(text: str) -> float:
    """Read a time that is not negative."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {_shown(text)}")
    return value


def word(text: str) -> str:
    """Read a text that is not empty: an empty one would be taken for none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a value, got an empty one; leave the option out for its default")
    return text


def path(text: str) -> Path:
    """Read a text that can be a path."""
    if fault := path_fault(text):
        raise argparse.ArgumentTypeError(f"expected a path, but {_shown(text)} {fault}")
    return Path(text)


def _shown(text: str) -> str:
    return f"{text[:40]!r}"


def join_methods(typed: list[str]) -> list[str]:
    """Join the list of methods into one argument where it was typed with blanks, as in `pld, sps PAIR`."""
    joined: list[str] = []
    for argument in typed:
        if joined and _lists_methods(joined[-1]) and _lists_methods(argument):
            joined[-1] += "," + argument
        else:
            joined.append(argument)
    return joined


def _lists_methods(argument: str) -> bool:
    names = [name.strip() for name in argument.split(",")]
    return any(names) and all(name.partition(VARIANT)[0] in METHODS for name in names if name)


def add_launches(parser: argparse.ArgumentParser) -> None:
    """Add the options of a comparison that is measured several times."""
    add = parser.add_argument
    add(
        "--launches",
        metavar="N",
        type=partial(count, most=MOST_LAUNCHES),
        default=1,
        help="measure all of it N times, each in fresh processes, and judge these together (default 1)",
    )
    add("--pause", metavar="SECONDS", type=seconds, default=0.0, help="wait so long between two launches (default 0)")
