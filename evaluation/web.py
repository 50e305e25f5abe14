"""The web page: `./eval.sh page [PAIR] [FOLDER]`: race methods, see where each token came from, read results.

It answers on this machine only, at http://127.0.0.1:8765, unless --address says otherwise. FOLDER: where runs lie, by
default results/. With --write it answers nothing and writes the folder's runs into one page, FOLDER/replay.html.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.launch import arguments
from evaluation.launch.config import parse
from evaluation.launch.flags import DEVICES
from methods.errors import CommandParser, UserError, command_line
from methods.pairs import known_pairs
from methods.paths import ROOT

PORT = 8765
EMBEDDED, RESULTS = "smollm2-135m", ROOT / "results"
CONDITIONS = ("target", "draft", "dtype", "template", "threads", "device")  # options that every run has


def main() -> int:
    options = _parser().parse_args()
    pair, folder = _positions(options)
    conditions = [pair] if pair else []
    for name in CONDITIONS:
        if (value := getattr(options, name)) is not None:
            conditions += [f"--{name}", str(value)]
    if not folder.is_dir():
        raise UserError(f"expected a results folder, got {folder}, which is no folder; check the path")
    if options.write:
        from evaluation.page.replay import write_replay
        from evaluation.page.runs import Runs

        print(write_replay(Runs(folder)))
        return 0
    parse(["autoregressive", *conditions])

    from evaluation.page.serve import serve

    return serve(conditions, folder, options.address, options.port)


def _positions(options: argparse.Namespace) -> tuple[str | None, Path]:
    """The pair, None where a target makes it, and the folder; a folder alone is not taken for a pair."""
    if options.pair and not options.folder and options.pair not in known_pairs() and Path(options.pair).is_dir():
        return None if options.target else EMBEDDED, any_path(options.pair)
    return options.pair or (None if options.target else EMBEDDED), options.folder or RESULTS


def _parser() -> argparse.ArgumentParser:
    usage = "eval.sh page [PAIR] [FOLDER] [options]"
    parser = CommandParser(prog="eval.sh page", usage=usage, description="A web page of races, results and lessons.")
    add = parser.add_argument
    add("pair", metavar="PAIR", nargs="?", help="a pair of data/pairs.toml (default: the embedded one)")
    add("folder", metavar="FOLDER", nargs="?", type=any_path, help="runs to show (default: results/)")
    add("--target", metavar="MODEL", type=arguments.word, help="target model, as of a run")
    add("--draft", metavar="MODEL", type=arguments.word, help="draft model of all methods")
    add("--dtype", metavar="TYPE", type=arguments.word, help="precision, as of a run")
    add("--template", metavar="NAME", type=arguments.word, help="prompt form, as of a run")
    add("--threads", metavar="N", type=arguments.processes, help="CPU threads of each rank")
    add("--device", choices=DEVICES, help="auto takes CUDA where there is one (default)")
    add("--address", metavar="IP", default="127.0.0.1", help="where to answer (default: this machine only)")
    add("--port", metavar="N", type=int, default=PORT, help=f"0: any that is free (default {PORT})")
    add("--write", action="store_true", help="only write FOLDER/replay.html: its runs in one page, without a server")
    return parser


if __name__ == "__main__":
    command_line(main)
