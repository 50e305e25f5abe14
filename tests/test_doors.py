"""The commands below evaluation/ run from anywhere, with any interpreter that has the dependencies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from methods.paths import ROOT

DOORS = ("calibrate", "run", "speed", "equal", "lossless", "plot", "report", "web")
LONGEST = 80  # lines: a door holds arguments and exit status


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project somewhere else, whose code says that it is the copy."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ("evaluation", "methods", "data"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "drafts"))
    with (folder / "methods/errors.py").open("a") as file:
        file.write('\nprint("the copy", file=sys.stderr)\n')
    return folder


@pytest.mark.parametrize("door", DOORS)
def test_a_door_opens_from_anywhere(copy: Path, door: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(copy / f"evaluation/{door}.py"), "--help"]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "the copy\n") and "usage" in done.stdout


def test_doors_are_small() -> None:
    lengths = {door: len((ROOT / f"evaluation/{door}.py").read_text().splitlines()) for door in DOORS}
    assert {door: length for door, length in lengths.items() if length > LONGEST} == {}
