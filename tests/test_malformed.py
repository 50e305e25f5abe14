"""Files that are not what they must be: one sentence says where, what was expected and what came; nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.headers import header_path, read_header
from evaluation.records import AnswerFile, read_answers
from methods.errors import UserError
from tests.answer_files import answer, header, write


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
        ({"accepted": [7]}, "choices[0].accepted[0]: expected a list, got 7"),
        ({"decoding_steps": [4, 6]}, "one entry for each of the 'decoding_steps'"),
        ({"index": -1}, "choices[0].index: expected at least 0, got -1"),
        ({"turns": {"a": 1}}, "choices[0].turns: expected a list, got an object of 1"),
        ({"new_tokens": [11]}, "'new_tokens' does not count 'token_ids'"),
        ({"accept_lengths": [1] * 9}, "'accept_lengths' sums to 9, not to 10 tokens"),
        ({"accept_lengths": [2] * 5}, "one entry for each of the 'decoding_steps'"),
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
        ({"options": {"gamma": "5"}}, 'options.gamma: expected a number of at least 1, got "5"'),
        ({"options": {"gamma": 0}}, "options.gamma: expected a number of at least 1, got 0"),
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
    header_path(path).write_text(json.dumps(header() | changes))
    before = path.read_bytes(), header_path(path).read_bytes()
    for read in (read_header, lambda p: AnswerFile.open(p, header())):
        with pytest.raises(UserError) as error:
            read(path)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert str(header_path(path)) in str(error.value)
    assert before == (path.read_bytes(), header_path(path).read_bytes())
