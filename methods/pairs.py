"""Model pairs: data/pairs.toml -> Pair. Imports nothing heavy: help is instant."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from methods import MOST, weight_kinds
from methods.errors import UserError, nearest, shown
from methods.paths import ROOT, path_fault
from methods.toml_files import read_sections

PAIRS = ROOT / "data/pairs.toml"
DRAFTS = "drafts"
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_OF = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # what they are called as well


@dataclass(frozen=True)
class Pair:
    """A target and its drafts as `find_checkpoint` takes them, and the defaults of a run with them. `drafts`: by the
    kind of weights that a drafter needs. `download_gb`: what it is to download, about. `frequent`: a file of the
    target's tokens, the most frequent first, for drafts whose head knows only so many."""

    name: str
    target: str
    drafts: Mapping[str, str] = field(default_factory=dict)
    template: str = "chat"
    dtype: str = "bfloat16"
    benchmark: str = "spec_bench"
    limit: int | None = None
    max_new_tokens: int = 1024
    download_gb: int | None = None
    frequent: str | None = None


def own_pair(target: str, draft: str | None = None) -> Pair:
    """Of models that are in no file: named after the target, and with questions that need no download."""
    if fault := path_fault(target):
        raise UserError(f"expected a model folder, a .gguf file or a hub id as target, but {shown(target)} {fault}")
    name = Path(os.path.abspath(Path(target).expanduser())).name.lower()
    return Pair(name or "model", target, every_kind(draft), benchmark="humaneval", limit=20, max_new_tokens=128)


def every_kind(draft: str | None) -> dict[str, str]:
    """The same draft for whatever asks for one."""
    return dict.fromkeys(weight_kinds(), draft) if draft else {}


def known_pairs(path: Path = PAIRS) -> list[str]:
    """Names in file order."""
    return list(read_sections(path, "pair"))


def get_pair(name: str, path: Path = PAIRS) -> Pair:
    """Raises UserError for an unknown name, a broken file, an unknown key, a value of the wrong kind."""
    tables = read_sections(path, "pair")
    if name not in tables:
        raise UserError(f"unknown pair '{name}'{nearest(name, tables)}")
    return _pair(name, tables[name], path)


def find_pair(name: str) -> Pair:
    """The pair of that name, else one of the model that `name` is, as a run with --target makes it."""
    return get_pair(name) if name in known_pairs() else own_pair(name)


def _pair(name: str, table: dict[str, Any], path: Path) -> Pair:
    inner = next((key for key, value in table.items() if isinstance(value, dict) and key != DRAFTS), None)
    if inner is not None:
        raise UserError(f'{path}: a name with a dot in it needs quotes: ["{name}.{inner}"]')
    drafts = _drafts(name, table.get(DRAFTS, {}), path)
    types = {field.name: field.type for field in fields(Pair) if field.name not in ("name", DRAFTS)}
    for key, value in table.items():
        if key == DRAFTS:
            continue
        if key not in types:
            raise UserError(f"{path}: [{name}] has an unknown key {shown(key)}{nearest(key, types)}")
        if wish := _wish(get_args(types[key]) or (types[key],), value):
            raise UserError(f"{path}: [{name}] {key} should be {wish}, got {shown(value)}")
    if "target" not in table:
        raise UserError(f"{path}: [{name}] has no target: expected target = MODEL")
    dtype = DTYPE_OF.get(table.get("dtype", Pair.dtype), table.get("dtype", Pair.dtype))
    if dtype not in DTYPES:
        raise UserError(f"{path}: [{name}] has an unknown dtype {shown(dtype)}{nearest(dtype, DTYPES)}")
    return Pair(name=name, **table | {"dtype": dtype, DRAFTS: drafts})


def _drafts(name: str, table: object, path: Path) -> dict[str, str]:
    if not isinstance(table, dict):
        raise UserError(f"{path}: [{name}] drafts should be KIND = MODEL for each kind of draft, got {shown(table)}")
    for kind, source in table.items():
        if kind not in weight_kinds():
            raise UserError(
                f"{path}: [{name}] names an unknown kind of draft {shown(kind)}{nearest(kind, weight_kinds())}"
            )
        if wish := _wish((str,), source):
            raise UserError(f"{path}: [{name}] drafts.{kind} should be {wish}, got {shown(source)}")
    return table


def _wish(kinds: tuple[type, ...], value: object) -> str | None:
    """What a value should be, in words; None where it is that."""
    if type(value) not in kinds:  # not isinstance: true is no number
        return "a whole number" if int in kinds else "a text"
    if isinstance(value, int):
        return "at least 1" if value < 1 else f"at most {MOST}" if value > MOST else None
    return "a text that is not empty and can be a path" if path_fault(str(value)) else None
