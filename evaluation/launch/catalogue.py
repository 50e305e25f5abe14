"""This module says what there is: the help of `./eval.sh` and of a method, and `./eval.sh list`. It imports nothing
heavy, so that help is instant."""

import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from evaluation.answers.files import header_path
from evaluation.answers.header import read_header
from evaluation.launch.benchmarks import EMBEDDED, benchmarks_here, known_benchmarks, sources
from evaluation.launch.flags import USAGE
from evaluation.launch.hub import is_cached, is_hub_id
from methods import BASELINE, METHODS, MethodSpec, Option, get_method
from methods.errors import UserError
from methods.pairs import Pair, get_pair, known_pairs
from methods.paths import ROOT

LIST = "list"
LOCAL = ROOT / "results/local"
HEADER = ".run.json"


def answer_at_once(typed: list[str]) -> str | None:
    """Return the text that a command line asks for, such as help; None where something is to be measured."""
    if not typed:
        return help_text()
    if "--version" in typed:
        return version()
    asks_for_help = not {"-h", "--help"}.isdisjoint(typed)
    if typed[0] == LIST:
        return LIST_HELP if asks_for_help else listing()
    if asks_for_help and not typed[0].startswith("-"):
        names = [name for text in typed[0].split(",") if (name := text.strip())]
        return "\n\n".join(method_help(get_method(name)) for name in names) or None
    return None


LIST_HELP = f"usage: eval.sh {LIST}   (methods, pairs, benchmarks and the runs so far; measures nothing)"


def version() -> str:
    """Return the version of the code that runs, installed or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"{project['name']} {project['version']}"


def help_text() -> str:
    """Return what `./eval.sh` alone prints: usage, methods, pairs."""
    return "\n".join(
        [
            f"usage: {USAGE}",
            "",
            f"Measures methods beside '{BASELINE}' in one interleaved run, and checks that every output is equal.",
            "",
            "methods:",
            *_columns([[name, spec.about] for name, spec in METHODS.items()]),
            "",
            "pairs:",
            *(f"  {name}" for name in known_pairs()),
            "",
            "variants, to compare a method with itself: sps@gamma=2, sd2-tree@branches=4@nodes=12",
            "",
            "For example: ./eval.sh pld smollm2-135m        All options: ./eval.sh --help",
            f"Of one method: ./eval.sh METHOD --help         What is here: ./eval.sh {LIST}",
            "Is the harness right? ./eval.sh --calibrate",
            "The web page of races, results and lessons: ./eval.sh page [PAIR] [FOLDER]",
        ]
    )


def method_help(spec: MethodSpec) -> str:
    """Say what a method is, what it needs, and which options it has."""
    about = [f"{spec.name}: {spec.about}"]
    about += [f"paper: {spec.paper}"] if spec.paper else []
    about += [f"needs: {_needs(spec)}"]
    about += [f"measured with it, unless --alone is given: {', '.join(spec.beside)}"] if spec.beside else []
    about += [] if spec.lossless else ["a reference: its output need not be equal to the baseline's"]
    options = [[f"--{name.replace('_', '-')}", _about(spec, name, option)] for name, option in spec.options.items()]
    about += ["options:" if options else "no options of its own", *_columns(options)]
    return "\n".join([*about, f"usage: eval.sh {spec.name} PAIR [options]; the options of every run: eval.sh --help"])


def _about(spec: MethodSpec, name: str, option: Option) -> str:
    if name in spec.fixed:
        return f"{option.help} ({spec.fixed[name]} in this variant)"
    return f"{option.help} ({option.expected}; default {option.default})"


def _needs(spec: MethodSpec) -> str:
    draft = " and ".join(f"a {kind} draft" for kind in spec.needs(spec.fixed)) or "no draft"
    return f"{draft}, two ranks" if spec.ranks > 1 else draft


def listing() -> str:
    """List methods, pairs, benchmarks and the runs so far, with what each needs and whether that is here."""
    needs = [[name, _needs(spec), spec.about] for name, spec in METHODS.items()]
    pairs = [[name, *_pair_row(get_pair(name))] for name in known_pairs()]
    here = benchmarks_here()
    benchmarks = [[name, "here" if name in here else _whence(name)] for name in known_benchmarks()]
    parts = {"methods": needs, "pairs": pairs, "benchmarks": benchmarks, "runs below results/local": list(_runs(LOCAL))}
    return "\n\n".join("\n".join([f"{name}:", *(_columns(rows) or ["  none yet"])]) for name, rows in parts.items())


def _whence(benchmark: str) -> str:
    if benchmark in EMBEDDED:
        return "missing: run scripts/setup.sh"
    other = ", or from the hub when it is used" if sources()[benchmark].hub else ""
    return f"scripts/fetch.py {benchmark}{other}"


def _pair_row(pair: Pair) -> list[str]:
    missing = [source for source in dict.fromkeys((pair.target, *pair.drafts.values())) if not _model_is_here(source)]
    drafts = [f", {kind} draft {source}" for kind, source in pair.drafts.items()]
    models = f"target {pair.target}" + "".join(drafts or [", no draft"])
    if not missing:
        return ["here", models]
    if not all(is_hub_id(source) for source in missing):
        return [f"missing: {', '.join(missing)}", models]
    size = f"about {pair.download_gb} GB " if pair.download_gb and len(missing) > 1 else ""
    part = "" if len(missing) > 1 or not pair.drafts else f"{missing[0]} "
    return [f"{size}{part}from the hub", models]


def _model_is_here(source: str) -> bool:
    if source.startswith("pypi:"):
        return find_spec(source.removeprefix("pypi:").replace("-", "_")) is not None
    if is_hub_id(source):
        return is_cached(source)
    made_of_target = "/" not in source and not source.endswith(".gguf")  # int4, int8, first-K
    return made_of_target or any((folder / source).expanduser().exists() for folder in (Path(), ROOT))


def _runs(local: Path) -> Iterator[list[str]]:
    """One row for each folder of answer files: the run, what it is of, and how many answers each method has."""
    headers = sorted(path for path in local.glob(f"*/*/*/*{HEADER}") if not (local / path.parts[-4]).is_symlink())
    for folder in dict.fromkeys(path.parent for path in headers):
        of_folder = [path for path in headers if path.parent == folder]
        told = [f"{path.name.removesuffix(HEADER)} {_answered(path)}" for path in of_folder]
        yield [folder.parts[-3], f"{folder.parts[-1]}, {folder.parts[-2]}", ", ".join(told)]


def _answered(header: Path) -> str:
    """Such as 20/20: questions that have an answer, of how many."""
    answers = header.with_name(header.name.removesuffix(HEADER) + ".jsonl")
    try:
        found = read_header(answers)
        wanted = "?" if found is None or found.questions is None else found.questions
        lines = answers.read_bytes().count(b"\n")
    except (UserError, OSError):
        return "unreadable"
    assert header == header_path(answers)
    return f"{lines}/{wanted}"


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows of texts, each column as wide as its longest, the last as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  " + "  ".join([*(f"{cell:{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
