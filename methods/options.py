"""Options of methods: what they mean, which values they take, and METHOD@OPTION=VALUE. Imports nothing heavy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from methods.errors import UserError, nearest

VARIANT = "@"  # sps@gamma=2: a variant, so that one run can compare a method with itself under other options
AUTO = "auto"  # a value: what the first answers show to be best
NOTHING = "nothing"  # a value of options that name what is left out, or added
GIVEN = "given"  # a value: as other options say
ALL = "all"  # a value: as many as there are
DRAFT = "draft"  # an option of every method that needs weights: its own, instead of the pair's

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # what a user may call something

MOST = 10**9  # of anything that an option counts

Value = int | float | str


@dataclass(frozen=True)
class Option:
    """A method's option: one of `words`, or a number from `least` (None: words only) on, with a fraction if the
    default has one. `flag`: whether it is a flag of the command line too, for all methods at once; METHOD@NAME=VALUE
    sets every option. `lossy`: words under which the output is no longer the target's. `named`: any name will do."""

    default: Value
    help: str
    least: int | float | None = 1
    words: tuple[str, ...] = ()
    flag: bool = False
    lossy: tuple[str, ...] = ()
    named: bool = False

    def read(self, text: str) -> Value | None:
        """The value that the text stands for; None if it stands for none."""
        if self.named:
            return text if NAME.fullmatch(text) else None
        if text in self.words or self.least is None:
            return text if text in self.words else None
        try:
            value = float(text) if isinstance(self.default, float) else int(text)
        except ValueError:
            return None
        return value if self.least <= value <= MOST else None

    @property
    def expected(self) -> str:
        """What `read` takes, in words."""
        if self.named:
            return "a name of small letters, digits, dots and dashes"
        number = [] if self.least is None else [f"a number from {self.least} to {MOST}"]
        return " or ".join([*self.words, *number])


def read_settings(
    method: str, options: Mapping[str, Option], has_draft: bool, texts: Sequence[str]
) -> dict[str, Value]:
    """The options that the texts OPTION=VALUE of a variant set, by name; "draft" where the method has one.

    Raises UserError for an option that the method lacks, or a value that it cannot be."""
    settings: dict[str, Value] = {}
    for text in texts:
        flag, _, typed = text.partition("=")
        settings[flag.replace("-", "_")] = _value(method, options, has_draft, flag, typed)
    return settings


def _value(method: str, options: Mapping[str, Option], has_draft: bool, flag: str, typed: str) -> Value:
    if flag == DRAFT and has_draft:
        if not typed:
            raise UserError(f"expected {method}{VARIANT}draft=MODEL to name a model, got nothing")
        return typed
    option = options.get(flag.replace("-", "_"))
    if option is None:
        flags = [name.replace("_", "-") for name in options] + [DRAFT] * has_draft
        raise UserError(f"{method} has no option '{flag}'" + (nearest(flag, flags) if flags else ""))
    value = option.read(typed)
    if value is None:
        raise UserError(f"expected {method}{VARIANT}{flag}=VALUE to be {option.expected}, got '{typed}'")
    return value
