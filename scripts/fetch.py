#!/usr/bin/env python
"""Downloads published benchmarks, as data/benchmarks.toml names them, into the cache folder and checks their hashes.

python scripts/fetch.py BENCHMARK...
"""

import argparse
import hashlib
import http.client
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.benchmarks import Source, sources
from methods.errors import CommandParser, UserError, command_line, nearest

TIMEOUT = 30  # seconds without an answer
INSTEAD = "try again where there is a network, or read a copy of your own with --questions FILE"


def download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise UserError(f"cannot download {url} ({error}): {INSTEAD}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # URLError wraps what happened
        raise UserError(f"cannot download {url} ({reason}): {INSTEAD}") from None


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, also when two write the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def fetch(source: Source) -> None:
    """Raises UserError when a file does not come or is not the published one; what is there already stays."""
    for name, expected in source.files.items():
        path = source.folder / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
            print(f"{path} is there")
            continue
        content = download(source.base + name)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise UserError(f"{source.base}{name} is not the published file: expected sha256 {expected}, got {found}")
        write_whole(path, content)
        print(f"{path} {len(content):,} bytes, sha256 as published")


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", metavar="BENCHMARK", help=", ".join(sources()))
    names = parser.parse_args().benchmarks
    for name in names:
        if name not in sources():
            raise UserError(f"unknown benchmark '{name}'{nearest(name, sources())}")
    for name in names:
        fetch(sources()[name])
    return 0


if __name__ == "__main__":
    command_line(main)
