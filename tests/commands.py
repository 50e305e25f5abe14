"""Commands as tests run them: in this process where what they do is asked, as processes where it is how they start.

To start an interpreter and to import what a command needs takes seconds, the command itself often milliseconds.
"""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from methods.errors import command_line
from methods.paths import ROOT

Done = subprocess.CompletedProcess[str]


def in_process(main: Callable[[], int], *arguments: object, cwd: Path | None = None) -> Done:
    """Run a command's `main` as its process would, from its command line to its exit status, in this process."""
    typed = list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["command", *typed])
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line(main)
    status = end.value.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(typed, status, out.getvalue(), err.getvalue())


def run_script(script: str, *arguments: object, cwd: Path) -> Done:
    """Run `evaluation/<script>` from another folder, in this process."""
    module = importlib.import_module(f"evaluation.{script.removesuffix('.py')}")
    return in_process(module.main, *arguments, cwd=cwd)


def start_script(script: str, *arguments: object, cwd: Path) -> Done:
    """Run `evaluation/<script>` as its user does: as a process of its own, from another folder."""
    return subprocess.run(
        [sys.executable, ROOT / "evaluation" / script, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
