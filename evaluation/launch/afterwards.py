"""A run ends by saying where its answers lie, and how to make a report of them."""

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from evaluation.launch.config import RunConfig, default_output
from methods.paths import ROOT

LATEST = "latest"


def tell_where(config: RunConfig, console: Console) -> None:
    """Say both. The link `latest` leads to the last run without --output."""
    if config.output == default_output(config):
        with suppress(OSError):  # no run fails by it
            point_to(config.output.with_name(LATEST), config.output)
    console.print(f"answers in {config.folder}", soft_wrap=True)
    console.print(f"for a report: {report_command(config.output)}", soft_wrap=True)


def point_to(link: Path, folder: Path) -> None:
    """Make `link` lead to a folder beside it, whatever link was there before."""
    made = link.with_name(f".{link.name}.{os.getpid()}")
    made.symlink_to(folder.name)
    try:
        os.replace(made, link)
    except OSError:
        made.unlink()
        raise


def report_command(folder: Path) -> str:
    """The command that makes a report, with the interpreter in use, as typed in the folder in which the user is."""
    installed = Path(sys.executable).is_relative_to(ROOT)  # else the project is found by its path only
    paths = Path(sys.executable), ROOT / "evaluation/report.py", folder.absolute()
    here = Path.cwd()
    words = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    return ("" if installed else f"PYTHONPATH={shlex.quote(str(ROOT))} ") + shlex.join(words)
