"""Files in which a user writes, as they come: read, or refused in one sentence that names the file and the place."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.answers.files import any_path
from evaluation.launch.benchmarks import Question, read_file, read_sources
from methods.errors import UserError
from methods.pairs import get_pair, known_pairs

CHEAP = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("\ud800"))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
TURNS = st.one_of(VALUES, st.lists(st.sampled_from(["a", "", "\0", "H\ud800i"]), max_size=2))
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "question_id": st.one_of(VALUES, st.sampled_from([1, "x\0", "\udfff"])),
        "category": st.one_of(VALUES, st.just("qa")),
        "turns": TURNS,
        "task_id": VALUES,
        "prompt": VALUES,
        "question": VALUES,
        "answer": VALUES,
    },
)
DEEP = b"[" * 100_000
GOOD = {"question_id": 1, "category": "qa", "turns": ["a"]}


@CHEAP
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.just(DEEP),
        st.lists(st.one_of(RECORDS, RECORDS.map(lambda r: GOOD | r)), max_size=3).map(
            lambda records: "\n".join(map(json.dumps, records)).encode()
        ),
    ),
    name=st.sampled_from(["q.jsonl", "q.jsonl.gz", "mgsm_de.tsv", "x.tsv", "line\nbreak.jsonl"]),
)
def test_a_file_of_questions_is_read_or_refused_in_one_sentence(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        questions = read_file(path)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert questions and json.dumps([vars(q) for q in questions], ensure_ascii=False).encode()


@pytest.mark.parametrize("key", ["question_id", "category", "turns"])
def test_half_a_surrogate_pair_is_refused_by_its_line(key: str, tmp_path: Path) -> None:
    bad = GOOD | {key: "H\ud800i"} if key != "turns" else GOOD | {"turns": ["a", "H\ud800i"]}
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(bad | ({"question_id": 2} if key != "question_id" else {})))
    with pytest.raises(UserError) as told:
        read_file(path)
    assert str(told.value).startswith(f"{path}, line 2: expected characters, got \\ud800")


def test_a_path_that_may_not_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is not there is none's fault yet: it may be made."""
    assert any_path(str(tmp_path / "none" / "at all")) == tmp_path / "none" / "at all"
    (tmp_path / "file").touch()
    assert any_path(str(tmp_path / "file" / "in it")) == tmp_path / "file" / "in it"

    def locked(text: str) -> None:
        raise PermissionError(13, "Permission denied", text)

    monkeypatch.setattr("os.stat", locked)
    with pytest.raises(UserError, match=r"cannot look at /locked/in: Permission denied; check the path and its"):
        any_path("/locked/in")


def test_a_nul_in_a_question_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": "a\0b", "category": "qa", "turns": ["\0"]}))
    assert read_file(path) == [Question("a\0b", "qa", ["\0"])]


KEYS = ["base", "files", "hub", "hubb", "target", "draft", "limit", "dtype", "name", "id", "split", "configurations"]
TOML_VALUES = st.one_of(
    st.sampled_from(
        ['"x"', "5", "0", "-1", "true", "1.5", "nan", "1979-05-27", '""', '"a\\u0000b"', '"bf16"', "[", "9" * 5000]
    ),
    st.sampled_from(['["a"]', "[]", "[1]", '{ "f.jsonl" = "0" }', '{ "../f" = "0" }', "{ f = 1 }", "[" * 5000]),
    st.sampled_from(['{ id = "a/b", configurations = ["c"], split = "s" }', '{ id = "a/b", configurations = [] }']),
)
TOML = st.one_of(
    st.text(max_size=20),
    st.tuples(
        st.sampled_from(
            ["[p]", '["p.1"]', '["../p"]', '[""]', "[p.1]", "p = 1", '["a\\u0000"]', f'["{"x" * 300}"]', ""]
        ),
        st.lists(st.tuples(st.sampled_from(KEYS), TOML_VALUES), max_size=3),
    ).map(lambda parts: "\n".join([parts[0], *(f"{key} = {value}" for key, value in parts[1])])),
)


@CHEAP
@given(text=TOML)
def test_pairs_and_benchmarks_are_read_or_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(text.encode())
    for read in (lambda: [get_pair(name, path) for name in known_pairs(path)], lambda: read_sources(path)):
        try:
            read()
        except UserError as error:
            assert str(error).count("\n") == 0 and str(path) in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[b\n", "is not TOML"),
        ('b = "x"\n', "expected a section [NAME] for every benchmark, got the bare entry 'b'"),
        ('[b]\nbase = "x"\n', "[b] files: Field required"),
        ("[b]\nbase = 5\n[b.files]\n", "[b] base: Input should be a valid string, got 5"),
        ('[b]\nbase = "x"\nhubb = 1\n', "[b] has an unknown key 'hubb'; did you mean 'hub'?"),
        ('[b]\nbase = "x"\nfiles = {}\n', "expected at least one"),
        ('[b]\nbase = "x"\n[b.files]\n"../f" = "0"\n', "'../f', which leads to another folder"),
        ('[b]\nbase = "x"\nhub = { id = "a/b" }\n[b.files]\nf = "0"\n', "[b] hub.configurations: Field required"),
        ('["../b"]\nbase = "x"\n', "'../b' leads to another folder"),
        ("a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_mistakes_in_the_benchmarks_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "benchmarks.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_sources(path)
    assert message in str(error.value) and str(path) in str(error.value)
