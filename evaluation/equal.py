"""Whether two answer files hold the same output: `python evaluation/equal.py A B`, exit status 0 only if they do.

Works on our answer files, by token id, and on those of Spec-Bench's own scripts, by text; takes the arguments of
Spec-Bench's equal.py as well. `evaluation/run.py` calls `compare` after every run: greedy speculative decoding must
give what the target gives alone.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.answers.run import Run
from evaluation.judge.equality import compare, document
from evaluation.show.equality import FIRST, report
from methods.errors import CommandParser, UserError, command_line


def main() -> int:
    parser = CommandParser(
        description="Whether two answer files hold the same output. Exit status: 0 equal, 1 not, 2 unusable input.",
        usage="%(prog)s [--all | --json] A B | --file-path DIR --jsonfile1 A --jsonfile2 B",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", type=any_path, help="the two answer files")
    parser.add_argument("--file-path", default=Path(), metavar="DIR", type=any_path, help="folder of the two files")
    parser.add_argument("--jsonfile1", metavar="A", type=any_path, help="the first file, in DIR")
    parser.add_argument("--jsonfile2", metavar="B", type=any_path, help="the second file, in DIR")
    parser.add_argument("--all", action="store_true", help=f"show every difference, not the first {FIRST}")
    parser.add_argument("--json", action="store_true", help="print one JSON document, with every difference")
    options = parser.parse_args()
    files = options.files + [name for name in (options.jsonfile1, options.jsonfile2) if name]
    if len(files) != 2:
        raise UserError(f"expected two answer files, got {len(files)}; see --help")
    one, other = (Run.read_launches(options.file_path / name) for name in files)
    comparison = compare(one, other)
    if options.json:
        print(json.dumps(document(comparison), indent=2))
    else:
        Console(highlight=False).print(report(comparison, options.all), soft_wrap=True)
    return 0 if comparison.equal else 1


if __name__ == "__main__":
    command_line(main)
