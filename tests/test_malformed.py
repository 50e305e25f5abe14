"""Files that are not what they must be: one sentence says where, what was expected and what came; nothing is lost."""

import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import DataObject, DrawFn, composite, data, sampled_from

from evaluation.answers.files import header_path
from evaluation.answers.header import read_header
from evaluation.answers.record import read_answers
from evaluation.answers.writer import AnswerFile
from evaluation.equal import main as equal
from evaluation.launch.parts import read_part
from evaluation.plot import main as plot
from evaluation.report import main as report
from evaluation.speed import main as speed
from methods.errors import UserError
from tests.answer_files import answer, choice, header, keys, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "mini_bench" / "tiny" / "pld.jsonl"


def damage(path: Path, line: int, **changes: Any) -> None:
    """Change keys of the first choice in a line (from 1) of an answer file; a value of None removes the key."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line - 1])
    record["choices"][0] |= changes
    record["choices"][0] = {key: value for key, value in record["choices"][0].items() if value is not None}
    lines[line - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wall_time": None}, "no key 'wall_time'"),
        ({"wall_time": [1.0, 2.0]}, "'wall_time' must have one entry for each of the 1 turns"),
        ({"new_tokens": ["ten"]}, 'choices[0].new_tokens[0]: expected a whole number, got "ten"; correct or remove'),
        ({"new_tokens": [10.0]}, "choices[0].new_tokens[0]: expected a whole number, got 10.0"),
        ({"new_tokens": [True]}, "choices[0].new_tokens[0]: expected a whole number, got true"),
        ({"turns": "ten"}, 'choices[0].turns: expected a list, got "ten"'),
        ({"turns": []}, "'turns' is empty"),
        ({"wall_time": [float("inf")]}, "choices[0].wall_time[0]: expected a finite number, got Infinity"),
        ({"wall_time": [float("nan")]}, "choices[0].wall_time[0]: expected a finite number, got NaN"),
        ({"wall_time": [-1.0]}, "choices[0].wall_time[0]: expected at least 0, got -1.0"),
        ({"wall_time": [10**20]}, "choices[0].wall_time[0]: expected at most 1e+09, got a number of 67 bits"),
        ({"prefill_time": [1.5]}, "'prefill_time' is longer than the 'wall_time' that includes it"),
        ({"drafted": [[0] * 9 + [-1]]}, "choices[0].drafted[0][9]: expected at least 0, got -1"),
        ({"accepted": [[0] * 9 + [1]]}, "'accepted' must have one entry for each of 'drafted', and none may be more"),
        ({"accepted": [[0] * 9]}, "'accepted' must have one entry for each of 'drafted'"),
        ({"accepted": [[0] * 10] * 2}, "'accepted' must have one entry for each of the 1 turns"),
        ({"nodes": [[1] * 9]}, "'nodes' must have one entry for each of the 'decoding_steps'"),
        ({"nodes": [[1] * 9 + [0]]}, "choices[0].nodes[0][9]: expected at least 1, got 0"),
        ({"drafted": [[0] * 9 + [2]]}, "'drafted' must have one entry for each of 'nodes', and none may be more"),
        ({"accepted": [7]}, "choices[0].accepted[0]: expected a list, got 7"),
        ({"decoding_steps": [4, 6]}, "one entry for each of the 'decoding_steps'"),
        ({"index": -1}, "choices[0].index: expected at least 0, got -1"),
        ({"turns": {"a": 1}}, "choices[0].turns: expected a list, got an object of 1"),
        ({"new_tokens": [11]}, "'new_tokens' does not count 'token_ids'"),
        ({"accept_lengths": [1] * 9}, "'accept_lengths' sums to 9, not to 10 tokens"),
        ({"accept_lengths": [2] * 5}, "one entry for each of the 'decoding_steps'"),
        ({"pass_time": [[0.1] * 9]}, "'pass_time' must have one entry for each of the 'decoding_steps'"),
        ({"pass_time": [[0.1001] * 10]}, "'pass_time' sums to more than the 'wall_time' that includes it"),
        ({"pass_time": [[-0.1] * 10]}, "choices[0].pass_time[0][0]: expected at least 0, got -0.1"),
    ],
)
def test_a_broken_choice_is_named_by_line(path: Path, changes: dict[str, Any], message: str) -> None:
    write(path, [answer(81), answer(82), answer(83)])
    damage(path, 2, **changes)
    with pytest.raises(UserError, match="line 2: ") as error:
        read_answers(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 8', "line 2 is not valid JSON"),
        ("[]", "line 2: expected an object, got a list of 0"),
        ('{"question_id": 1, "turns": ["Hello"]}', "line 2: no key 'category'"),
        ('{"question_id": 1, "category": "qa", "model_id": "m", "choices": []}', "line 2: 'choices' is empty"),
        (
            '{"question_id": null, "category": "qa", "model_id": "m", "choices": []}',
            "line 2: question_id: expected a whole number or a text, got null",
        ),
        (
            '{"question_id": 1, "category": "qa", "model_id": "m", "choices": 3}',
            "line 2: choices: expected a list, got 3",
        ),
        (
            '{"question_id": 1, "category": 2, "model_id": "m", "choices": []}',
            "line 2: category: expected a text, got 2",
        ),
        ('{"question_id": 99999999999999999999, "category": "", "model_id": "m", "choices": []}', "line 2: "),
        (f'{{"question_id": {"9" * 5000}, "category": "", "model_id": "m", "choices": []}}', "line 2"),
        ("[" * 100_000, "line 2 is not valid JSON (recursion limit exceeded"),
        ("[" * 1_000 + "]" * 1_000, "line 2 is not valid JSON (recursion limit exceeded"),
        ('{"a": "\0"}', "line 2 is not valid JSON (control character"),
        ('"\udcff"', "line 2 is not valid JSON (invalid unicode"),
    ],
)
def test_a_broken_line_in_the_middle_is_named(path: Path, line: str, message: str) -> None:
    write(path, [answer(81), answer(83)])
    first, last = path.read_text().splitlines()
    path.write_bytes("\n".join([first, line, last, ""]).encode(errors="surrogateescape"))
    before = path.read_bytes()
    for read in (read_answers, lambda p: AnswerFile.open(p, header())):
        with pytest.raises(UserError) as error:
            read(path)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["[" * 1_000 + "]" * 1_000, "garbage", '{"question_id": 82}}', '"\udcff"'])
def test_a_broken_last_line_that_no_crash_can_have_torn_is_kept(path: Path, line: str) -> None:
    write(path, [answer(81)])
    path.write_bytes(path.read_bytes() + f"{line}\n".encode(errors="surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        AnswerFile.open(path, header())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["{", '{"schema_version": 2}', "[]", "[" * 10_000, '{"a": "\0"}', '{"schema_version": 1e0}']
)
def test_a_header_that_cannot_be_understood_is_refused(path: Path, text: str) -> None:
    write(path, [answer()])
    header_path(path).write_text(text)
    with pytest.raises(UserError, match=r"pld\.run\.json"):
        read_header(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor_seconds_per_token": -1}, "floor_seconds_per_token: expected at least 1e-12, got -1"),
        ({"failures": {"a": 1}}, "failures: expected a list, got an object of 1"),
        ({"failures": [7]}, "failures[0]: expected an object, got 7"),
        ({"failures": [{"question_id": 1}]}, "no key 'error' in failures[0], as every run header has"),
        (
            {"failures": [{"question_id": 1.5, "error": ""}]},
            "failures[0].question_id: expected a whole number or a text",
        ),
        ({"sampling": "greedy"}, 'sampling: expected an object, got "greedy"'),
        ({"sampling": {"temperature": 0.0, "top_k": 0}}, "no key 'top_p' in sampling"),
        ({"sampling": {"temperature": "0", "top_k": 0, "top_p": 1}}, "sampling.temperature: expected a number, got"),
        ({"target": ["tiny"]}, "target: expected an object, got a list of 1"),
        ({"draft": "tiny"}, 'draft: expected an object, got "tiny"'),
        ({"devices": "cpu:0"}, 'devices: expected a list, got "cpu:0"'),
        ({"methods": [1]}, "methods[0]: expected a text, got 1"),
        ({"threads": True}, "threads: expected a whole number, got true"),
        ({"options": [1]}, "options: expected an object, got a list of 1"),
        ({"options": {"gamma": "5"}}, 'options.gamma: expected a number from 1 to 1000000000, got "5"'),
        ({"options": {"gamma": 0}}, "options.gamma: expected a number from 1 to 1000000000, got 0"),
        ({"options": {"gamma": None}}, "options.gamma: expected a whole number or a number or a text, got null"),
        ({"questions": "7"}, 'questions: expected a whole number, got "7"'),
        ({"max_new_tokens": 10**400}, "max_new_tokens: expected at most 1.09951e+12, got a number of 1329 bits"),
        ({"pair": "two\nlines"}, "pair: expected a text of one line"),
        ({"method": None}, "method: expected a text, got null"),
    ],
)
def test_a_key_of_a_header_that_is_not_what_it_must_be_is_named(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    write(path, [answer()])
    header_path(path).write_text(json.dumps(keys(**changes)))
    before = path.read_bytes(), header_path(path).read_bytes()
    for read in (read_header, lambda p: AnswerFile.open(p, header())):
        with pytest.raises(UserError) as error:
            read(path)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert str(header_path(path)) in str(error.value)
    assert before == (path.read_bytes(), header_path(path).read_bytes())


class Files:
    """A run, its baseline and what judges them, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder.with_name("report")
        self.place = folder / "mini_bench" / "tiny"
        second = choice([range(10), [3, 4]], [1.0, 0.5], per_pass=2)
        for method, seconds in (("autoregressive", 2.0), ("pld", 1.0)):
            rows = [answer(1, choices=[second]), answer(2, choices=[choice([range(10)], [seconds])])]
            write(self.path(method), rows, header(method, options={"gamma": 7} if method == "pld" else {}))

        self.whole = self.contents()

    def restore(self) -> None:
        for path, content in self.whole.items():
            Path(path).write_bytes(content)

    def path(self, method: str) -> Path:
        return self.place / f"{method}.jsonl"

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def judges(self) -> dict[str, Callable[[], object]]:
        pld, base = str(self.path("pld")), str(self.path("autoregressive"))
        return {
            "speed": lambda: called(speed, "--file-path", pld, "--base-path", base, "--by", "category", "--json"),
            "folders": lambda: called(speed, "--file-path", str(self.folder), "--base-path", str(self.folder)),
            "equal": lambda: called(equal, pld, base),
            "report": lambda: called(report, str(self.folder), "--output", str(self.output)),
            "resume": lambda: AnswerFile.open(pld, header(options={"gamma": 7})).finish(),
        }


def called(main: Callable[[], int], *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setattr("sys.argv", ["command", *arguments])
        return main()


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places(item, (*place, key))


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2,
    10**30,
    0.5,
    -0.5,
    1e308,
    5e-324,
    float("inf"),
    float("nan"),
    "",
    "5",
    "a\nb",
]
VALUES += ["\0", [], {}, [[]], [1, 2], ["a"], {"a": 1}, [{"question_id": 1}], [[[1]]]]


@composite
def mistakes(draw: DrawFn, record: Any) -> Any:
    """The record with something deleted, replaced, nested, doubled or renamed."""
    record = deepcopy(record)
    *parents, last = draw(sampled_from(list(places(record))))
    within = record
    for key in parents:
        within = within[key]
    kind = draw(sampled_from(["delete", "replace", "replace", "replace", "nest", "double", "rename"]))
    value = within[last]
    if kind == "replace":
        within[last] = draw(sampled_from(VALUES))
    elif kind == "nest":
        within[last] = [value]
    elif kind == "double":
        within[last] = [value, value]
    else:
        del within[last]
        if kind == "rename" and isinstance(within, dict):
            within[f"{last}:"] = value
    return record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("malformed") / "results")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data())
def test_every_mistake_in_a_file_is_one_sentence_and_changes_nothing(files: Files, drawn: DataObject) -> None:
    file = drawn.draw(sampled_from([files.path("pld"), header_path(files.path("pld"))]))
    whole = file.read_bytes()
    lines = whole.splitlines() if file.suffix == ".jsonl" else [whole]
    lines[0] = json.dumps(drawn.draw(mistakes(json.loads(lines[0])))).encode()
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    before = files.contents()
    try:
        for name, judge in files.judges().items():
            try:
                judge()
            except UserError as error:
                assert "\n" not in str(error), name
                assert files.contents() == before, name
                assert name != "report" or not files.output.exists()
            if name != "resume":
                assert files.contents() == before, name
    finally:
        files.restore()
        rmtree(files.output, ignore_errors=True)


@pytest.mark.parametrize("name", ["", "/", "a\0b", "a" * 300, "/".join(["a" * 250] * 20), ".", "nowhere", "loop"])
def test_every_path_that_is_none_is_one_sentence(
    files: Files, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    base, folder = str(files.path("autoregressive")), str(files.folder)
    for main, arguments in (
        (speed, ["--file-path", name, "--base-path", base]),
        (speed, ["--file-path", base, "--base-path", name]),
        (speed, ["--file-path", name, "--base-path", folder]),
        (equal, [base, name]),
        (equal, ["--file-path", name, "--jsonfile1", "pld.jsonl", "--jsonfile2", "pld.jsonl"]),
        (plot, [name]),
        (plot, [folder, "--trace", name]),
        (report, [name]),
        (report, [folder, "--compare", name]),
        (report, [folder, "--trace", name]),
    ):
        with pytest.raises(UserError) as error:
            called(main, *arguments)
        assert "\n" not in str(error.value) and "\0" not in str(error.value) and len(str(error.value)) < 400
    assert files.contents() == files.whole and [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_part_whose_first_answer_is_torn_is_an_empty_part_and_a_broken_one_is_told(path: Path) -> None:
    """What a replica that was killed leaves."""
    write(path, [answer(81)])
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert read_part(path, header("pld")) == ([], header("pld"))
    path.write_bytes(whole.replace(b'"turns": [', b'"turns": [1, ') + whole)
    with pytest.raises(UserError, match=r"line 1: choices\[0\].turns\[0\]: expected a text, got 1"):
        read_part(path, header("pld"))
