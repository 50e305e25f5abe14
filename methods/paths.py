"""Where things lie: the repository and the user's cache folder; which texts can name files. Used by the loader, the
questions and the scripts."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes, as Linux has it


def cache_dir() -> Path:
    """Converted weights and fetched benchmarks: `PEARL_BENCH_CACHE`, else ~/.cache/pearl-bench. Not created here."""
    return Path(os.environ.get("PEARL_BENCH_CACHE") or "~/.cache/pearl-bench").expanduser()


def path_fault(text: str) -> str | None:
    """What keeps a text from being a path, as the end of a sentence; None where nothing does."""
    try:
        encoded = text.encode()
        Path(text).expanduser()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    except RuntimeError:
        return "begins with the home folder of a user who is unknown here"
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "has a NUL character in it"
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        return f"is too long: at most {LONGEST_NAME} bytes for each name, {LONGEST_PATH} in all"
    return None


def name_fault(text: str) -> str | None:
    """The same of a text that is to name one file or folder."""
    if "/" in text or text in (".", ".."):
        return "leads to another folder"
    return path_fault(text)
