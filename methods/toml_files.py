"""Reads the TOML files in which a user may write: every mistake is one sentence that names the file and the place."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.errors import UserError, shown
from methods.paths import name_fault

if TYPE_CHECKING:
    from pydantic import ValidationError


def read_sections(path: Path, what: str) -> dict[str, dict[str, Any]]:
    """The sections of a file, each of which is a `what` whose name becomes that of a folder. Raises UserError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path} is not usable: its values are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): expected TOML") from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: expected a section [NAME] for every {what}, got the bare entry {shown(name)}")
        if fault := name_fault(name):
            raise UserError(f"{path}: the name of a {what} becomes that of a folder, but {shown(name)} {fault}")
    return tables


def first_mistake(error: "ValidationError") -> str:
    """Where a checked value went wrong first, and how."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    came = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
    return f"{place}: {first['msg']}{came}"
