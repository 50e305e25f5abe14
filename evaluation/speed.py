"""How much faster a method is than its baseline: `python evaluation/speed.py --file-path F --base-path B`.

Of two results folders: how the speedups of each run in F have changed since B.

It reads our answer files and those of Spec-Bench's own scripts. The numbers are defined in `judge/stats.py` and
`judge/acceptance.py`, and shown by `show/tables.py`.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.answers.run import Run
from evaluation.judge.spec_bench import read_counter
from evaluation.judge.summary import summarize, summarize_by_category
from evaluation.show.tables import show
from methods.errors import CommandParser, UserError, command_line


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description="How much faster a method is than its baseline, with an interval.")
    parser.add_argument(
        "--file-path", required=True, metavar="F", type=any_path, help="the method's answers, or a results folder"
    )
    parser.add_argument(
        "--base-path",
        required=True,
        metavar="B",
        type=any_path,
        help="the baseline's answers, or an earlier folder",
    )
    parser.add_argument("--by", choices=["category"], help="a row for each category too")
    parser.add_argument(
        "--spec-bench",
        nargs="?",
        const="",
        metavar="TOKENIZER",
        help="show Spec-Bench's own figure beside ours; TOKENIZER (a folder or hub id) counts the baseline's tokens as "
        "its script does",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document: a list of summaries, overall last"
    )
    return parser


def main() -> int:
    options = _parser().parse_args()
    if options.file_path.is_dir() and options.base_path.is_dir():
        if options.by or options.spec_bench is not None:
            raise UserError("two folders are compared run by run; --by and --spec-bench need two answer files")
        from evaluation.show.change import compare_folders

        return compare_folders(options.file_path, options.base_path, options.json)
    count = read_counter(options.spec_bench) if options.spec_bench else None
    runs = Run.read_launches(options.file_path), Run.read_launches(options.base_path)
    summaries = summarize_by_category(*runs, count) if options.by else [summarize(*runs, count=count)]
    if options.json:
        print(json.dumps([asdict(summary) for summary in summaries], indent=2))
    else:
        show(summaries, options.spec_bench is not None, count is None)
    return 0


if __name__ == "__main__":
    command_line(main)
