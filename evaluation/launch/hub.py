"""This module asks, without the hub's libraries, whether the Hugging Face hub answers and which of its models lie
here."""

import os
import sys
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from methods.errors import UserError
from methods.paths import ROOT

PATIENCE = 5.0  # seconds that the hub has to answer; its own libraries try for half a minute
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def is_hub_id(source: str) -> bool:
    """Return whether the loader would look for a model on the hub."""
    local = source.startswith((".", "/", "~", "pypi:")) or source.endswith(".gguf")
    return not local and source.count("/") == 1 and not any(path.is_dir() for path in (Path(source), ROOT / source))


def is_cached(source: str) -> bool:
    """Return whether a model of the hub lies here, whole."""
    folder = cache_folder() / f"models--{source.replace('/', '--')}"
    weights = [path for pattern in WEIGHTS for path in folder.glob(f"snapshots/*/{pattern}")]
    return bool(weights) and not any(folder.glob("blobs/*.incomplete"))


def cache_folder() -> Path:
    """Return the folder in which the hub's library keeps what it has downloaded."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return (Path(named) if named else home / "hub").expanduser()


def look_for(what: str) -> bool:
    """Tell that something is looked for on the hub, and return whether the hub answers. Where it does not, its
    libraries are told to be content with their cache, so this must be called before they are imported."""
    if is_offline():
        return False
    print(f"looking for {what} on the Hugging Face hub ...", file=sys.stderr, flush=True)
    if not answers():
        print(f"{endpoint()} does not answer: only what was downloaded before is here", file=sys.stderr, flush=True)
        os.environ["HF_HUB_OFFLINE"] = "1"  # the other ranks inherit it
    return answers()


def look_for_model(source: str) -> None:
    """Do the same for a model. Raises UserError where it is neither here nor to be had."""
    if not look_for(source) and not is_cached(source):
        raise UserError(
            f"{source} is not here and the Hugging Face hub cannot be asked: try again where there is a network, or "
            "give a local folder"
        )


def is_offline() -> bool:
    """Return whether the user has told the hub's libraries not to ask it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@cache
def answers() -> bool:
    """Return whether the hub answers in time, through the proxies that the environment names."""
    found: list[bool] = []
    # in a thread: looking up a name knows no time limit
    thread = threading.Thread(target=lambda: found.append(_asked()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found == [True]


def _asked() -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, if not the wished one
    except (OSError, ValueError):
        return False
