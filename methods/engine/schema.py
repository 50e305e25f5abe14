"""Files that others wrote, read and checked: whatever is wrong with one is a single sentence of a UserError.

The words for what pydantic, torch and Transformers raise are found here, so that every reader tells them alike.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from methods.errors import UserError, one_line, shown

NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "unable to mmap")
Checked = TypeVar("Checked", bound="Schema")


class Schema(BaseModel):
    """What is read of a table. Types are not converted into each other; keys that are not named are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; correct it or fetch it again") from None
    if not isinstance(table, dict):
        raise UserError(f"expected {path} to hold a table {{...}}, got {shown(table)}; fetch it again")
    return table


def checked(schema: type[Checked], table: object, source: object) -> Checked:
    """The table as the schema has it. `source`: its file, to be named in the sentence about the first wrong key."""
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the table"
        if first["type"] == "missing":
            raise UserError(f"{source} lacks the key {key}; complete it or fetch it again") from None
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise UserError(
            f"expected {key} in {source} to be {expected}, got {shown(first['input'])}; correct it or fetch it again"
        ) from None


@contextmanager
def enough_memory(purpose: str) -> Iterator[None]:
    """A refused allocation becomes a sentence; every other exception stays what it is."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"there is not enough memory {purpose}; free some, or lift the limit that is set") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, PyTorch's (on CPU a mere RuntimeError) and the system's ways to say it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in NO_MEMORY)
