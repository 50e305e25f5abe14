"""Whether drafters do what the published code of their methods did: python scripts/check_golden.py FOLDER...

A FOLDER holds what that code computed on a tiny model which lies beside it, as those in tests/goldens do (see README
there): forwards, trees, whole generations. Exit status: 0 all agrees, 1 something differs, 2 unusable input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.errors import command_line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    args = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    from evaluation.proof.goldens import check

    table, agree = Table("golden", "what", "compared", "first difference"), True
    for folder in args.folders:
        for found in check(folder.resolve()):
            table.add_row(folder.resolve().name, found.what, str(found.compared), found.difference or "-")
            agree = agree and found.difference is None
    Console(highlight=False).print(table)
    return 0 if agree else 1


if __name__ == "__main__":
    command_line(main)
