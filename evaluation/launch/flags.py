"""The options of commands that run methods. What they mean together, and their defaults, config.py knows.

Nothing heavy is imported here.
"""

import argparse

from evaluation.launch import arguments
from evaluation.launch.benchmarks import known_benchmarks
from evaluation.launch.servers import add_servers
from methods import METHODS
from methods.errors import CommandParser
from methods.pairs import DTYPES

DEVICES = ("auto", "cpu", "cuda")
USAGE = "eval.sh METHOD[,METHOD...] PAIR [options]   (eval.sh METHOD --target MODEL [--draft MODEL] [options])"


def all_options() -> dict[str, str]:
    """Return every option of methods that is a flag, with its help: one for each loop that calls something else so."""
    helps: dict[str, dict[str, str]] = {}  # name -> loop -> help
    for spec in METHODS.values():
        for name, option in spec.options.items():
            if option.flag:
                helps.setdefault(name, {})[spec.loop] = option.help
    return {name: "; ".join(_longest(set(texts.values()))) for name, texts in helps.items()}


def _longest(texts: set[str]) -> list[str]:
    """The texts in order, without those that are the beginning of another one."""
    return sorted(text for text in texts if not any(o != text and o.startswith(text) for o in texts))


def command_parser() -> argparse.ArgumentParser:
    """Return what reads the command line of the main job."""
    parser = CommandParser(prog="eval.sh", usage=USAGE, description="Measure decoding methods on a model pair.")
    add = parser.add_argument
    add("methods", metavar="METHOD[,METHOD...]", help="methods to compare with the baseline, variants as sps@gamma=2")
    add_conditions(parser)
    add("--repeats", metavar="N", type=arguments.count, default=1, help="answer every question N times (default 1)")
    add(
        "--replicas",
        metavar="N",
        type=arguments.processes,
        default=1,
        help="processes (or pairs) that share the questions",
    )
    arguments.add_launches(parser)
    add(
        "--trace",
        metavar="FILE",
        type=arguments.path,
        help="write what each rank did and when, in Chrome's trace format; of the first launch",
    )
    add("--read-once", action="store_true", help="read a prompt once for all methods: for equality, not for speed")
    add_servers(parser)
    add("--alone", action="store_true", help="leave out the methods that are measured beside the chosen ones")
    add(
        "--output",
        metavar="DIR",
        type=arguments.path,
        help="folder for answers (default: one per configuration in results/local)",
    )
    add(
        "--json",
        action="store_true",
        help="print one JSON document, a list with one object per method, and nothing else",
    )
    return parser


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has that runs methods: which models answer which questions, and how."""
    add, word, count = parser.add_argument, arguments.word, arguments.count
    add("pair", metavar="PAIR", nargs="?", help="a pair of data/pairs.toml")
    add("--target", metavar="MODEL", type=word, help="target model: folder, .gguf file or hub id, not the pair's")
    add(
        "--draft",
        metavar="MODEL",
        type=word,
        help="draft model of all methods, instead of the pair's; of one: sps@draft=MODEL",
    )
    add("--benchmark", metavar="NAME", type=word, help=f"one of {', '.join(known_benchmarks())}")
    add("--questions", metavar="FILE", type=arguments.path, help="questions of your own, in Spec-Bench's JSONL format")
    add("--limit", metavar="N", type=count, help="take N questions, from all categories in turn")
    add("--max-new-tokens", metavar="N", type=count, help="longest answer of a turn, in tokens")
    add("--dtype", metavar="TYPE", type=word, help=f"one of {', '.join(DTYPES)}")
    add("--template", metavar="NAME", type=word, help="prompt form: chat (the tokenizer's), raw, or fschat:NAME")
    add("--temperature", metavar="T", type=arguments.number, default=0.0, help="0 is greedy (default %(default)g)")
    add("--top-p", metavar="P", type=arguments.number, default=1.0, help="nucleus sampling (default 1: off)")
    add("--top-k", metavar="K", type=arguments.whole, default=0, help="sample among the K most likely (default 0: off)")
    add("--seed", metavar="N", type=arguments.whole, default=0, help="seed of all sampling (default 0)")
    add(
        "--threads",
        metavar="N",
        type=arguments.processes,
        help="CPU threads of each rank (default: its share of the cores)",
    )
    add("--device", choices=DEVICES, default="auto", help="auto takes CUDA where there is one (default)")
    add(
        "--draft-gpus",
        metavar="N",
        type=arguments.count,
        default=1,
        help="GPUs of PEARL's draft rank (default 1); its target rank has the others",
    )
    add(
        "--tensor-parallel",
        metavar="N",
        type=arguments.processes,
        default=1,
        help="split the target among N ranks of one node, a GPU each (default 1)",
    )
    for name, text in all_options().items():
        add(f"--{name.replace('_', '-')}", metavar="VALUE", help=text)


def beyond_conditions() -> dict[str, object]:
    """Return what the main job's other options are by default: what a command that has the conditions alone does not
    ask for."""
    parser = argparse.ArgumentParser(add_help=False)
    add_conditions(parser)
    known, every = vars(parser.parse_args([])), vars(command_parser().parse_args([""]))
    return {name: value for name, value in every.items() if name not in (*known, "methods", "json")}
