"""Whether our drafter gives the numbers of its published code: python scripts/check_golden.py FOLDER

FOLDER holds what that code made of the target in FOLDER/../target: see tests/goldens/README.md. Status 1 where anything
differs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from evaluation.proof.golden.agreement import Agreement
from methods.errors import command_line


def table(found: list[Agreement]) -> Table:
    """One row for each thing that was compared."""
    shown = Table("what", "compared", "largest difference", "first difference", box=None)
    for one in found:
        largest = "" if one.largest is None else f"{one.largest:.1e}"
        shown.add_row(one.what, str(one.compared), largest, one.first or "none")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder = parser.parse_args().folder
    from evaluation.proof.golden.checks import check_golden  # which loads torch

    found = check_golden(folder)
    Console(width=None if sys.stdout.isatty() else 160).print(table(found))
    return int(any(one.first for one in found))


if __name__ == "__main__":
    command_line(main)
