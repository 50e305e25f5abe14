"""Model pairs: data/pairs.toml -> Pair. Used by evaluation/config.py. Imports nothing heavy: help is instant."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from methods.errors import UserError, nearest
from methods.paths import ROOT

PAIRS = ROOT / "data/pairs.toml"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Pair:
    """A target and its draft as `find_checkpoint` takes them, and the defaults of a run with them. `sorted_draft`: one
    with exits, for the methods that need them (None: the draft)."""

    name: str
    target: str
    draft: str | None = None
    template: str = "chat"
    dtype: str = "bfloat16"
    benchmark: str = "spec_bench"
    limit: int | None = None
    max_new_tokens: int = 1024
    sorted_draft: str | None = None


def known_pairs(path: Path = PAIRS) -> list[str]:
    """Names in file order."""
    return list(_tables(path))


def get_pair(name: str, path: Path = PAIRS) -> Pair:
    """Raises UserError for an unknown name, a broken file, an unknown key, a value of the wrong kind."""
    tables = _tables(path)
    if name not in tables:
        raise UserError(f"unknown pair '{name}'{nearest(name, tables)}")
    return _pair(name, tables[name], path)


def find_pair(name: str) -> Pair:
    """The pair of that name, else one of the model that `name` is, as a run with --target makes it."""
    return get_pair(name) if name in known_pairs() else Pair(name=Path(name).name.lower(), target=name)


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _pair(name: str, table: object, path: Path) -> Pair:
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected a section [NAME] for every pair, got the bare entry '{name}'")
    inner = next((key for key, value in table.items() if isinstance(value, dict)), None)
    if inner is not None:
        raise UserError(f'{path}: a name with a dot in it needs quotes: ["{name}.{inner}"]')
    types = {field.name: field.type for field in fields(Pair) if field.name != "name"}
    for key, value in table.items():
        if key not in types:
            raise UserError(f"{path}: [{name}] has an unknown key '{key}'{nearest(key, types)}")
        kinds = get_args(types[key]) or (types[key],)
        if type(value) not in kinds:  # not isinstance: true is no number
            kind = "a whole number" if int in kinds else "a text"
            raise UserError(f"{path}: [{name}] {key} should be {kind}, got {value!r}")
        if isinstance(value, int) and value < 1:
            raise UserError(f"{path}: [{name}] {key} should be at least 1, got {value}")
    if "target" not in table:
        raise UserError(f"{path}: [{name}] has no target: expected target = MODEL")
    if table.get("dtype", DTYPES[0]) not in DTYPES:
        raise UserError(f"{path}: [{name}] has an unknown dtype '{table['dtype']}'{nearest(table['dtype'], DTYPES)}")
    return Pair(name=name, **table)
