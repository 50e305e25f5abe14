"""The command line of the main job, in this process: what is understood, and what is refused in one sentence."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation import equal, lossless, run, speed
from evaluation.launch import hub
from evaluation.launch.benchmarks import load_questions
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.flags import all_options
from evaluation.launch.measure import check, describe
from methods import METHODS
from methods.errors import UserError, command_line, nearest
from methods.pairs import get_pair, own_pair

PAIR = "smollm2-135m"
CHEAP = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused(typed: list[str]) -> str:
    """The sentence by which a command line is refused."""
    with pytest.raises(UserError) as error:
        parse(typed)
    return str(error.value)


VALUED = [
    *("target", "draft", "benchmark", "questions", "limit", "max-new-tokens", "dtype", "template", "temperature"),
    *("top-p", "top-k", "seed", "threads", "repeats", "replicas", "trace", "output", "device"),
    *(name.replace("_", "-") for name in all_options()),
]


@pytest.mark.parametrize("option", VALUED)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_not_taken_for_none(option: str, value: str) -> None:
    every = [",".join(METHODS), PAIR, "--draft=int8"]  # the pair has no weights of some kinds
    assert option in refused([*every, f"--{option}={value}"]).replace("_", "-")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("threads", ["100000000", "0", "-1", "x", "9" * 5000]),
        ("replicas", ["100000000", "0"]),
        ("repeats", ["1" + "0" * 30, "0"]),
        ("limit", ["1" + "0" * 30, "0", "nan"]),
        ("max-new-tokens", ["1" + "0" * 30, "0"]),
        ("temperature", ["nan", "inf", "-inf", "1e400", "1e-320", "-1"]),
        ("top-p", ["nan", "inf", "0", "1.5"]),
        ("top-k", ["-1", "nan"]),
        ("seed", ["nan", "9" * 5000]),
        ("depth", ["nan", "inf", "-1"]),
        ("nodes", ["1" + "0" * 30, "nan"]),
        ("output", ["a\0b", "x" * 300, "a/" * 3000]),
        ("questions", ["a\0b"]),
        ("trace", ["a\0b"]),
        ("target", ["a\0b", "x" * 300, "~nobody-of-that-name/x", "\udc80"]),
        ("draft", ["a\0b", "x" * 300]),
        ("template", ["fastchat:x"]),
    ],
)
def test_a_value_that_cannot_be_is_refused(option: str, values: list[str]) -> None:
    for value in values:
        assert "expected" in refused(["sd2-tree", PAIR, f"--{option}={value}"])


def test_large_numbers_that_can_be_are_taken() -> None:
    taken = parse(["pld", PAIR, "--limit", "1000000000", "--max-new-tokens", "1000000000", "--repeats", "1000000"])
    assert (taken.limit, taken.max_new_tokens, taken.repeats) == (10**9, 10**9, 10**6)
    assert len(load_questions("mini_bench", None, taken.limit).questions) == 48


@pytest.mark.parametrize(
    "typed",
    [["pld,", "sps", PAIR], ["pld", ",sps", PAIR], ["pld", "sps", PAIR], ["pld, sps", PAIR], ["pld,sps,", PAIR]],
)
def test_blanks_between_methods_are_understood(typed: list[str]) -> None:
    assert parse(typed).methods == ("autoregressive", "pld", "sps")
    assert parse(typed).pair.name == PAIR


@pytest.mark.parametrize(("typed", "meant"), [("bf16", "bfloat16"), ("fp32", "float32"), ("fp16", "float16")])
def test_short_names_of_types_are_understood(typed: str, meant: str, tmp_path: Path) -> None:
    assert parse(["pld", PAIR, "--dtype", typed]).dtype == meant
    (tmp_path / "pairs.toml").write_text(f'[p]\ntarget = "t"\ndtype = "{typed}"\n')
    assert get_pair("p", tmp_path / "pairs.toml").dtype == meant


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([PAIR, "pld"], f"expected methods before the pair, got the pair '{PAIR}': write pld {PAIR}"),
        ([PAIR, "pld,sps@gamma=2"], f"write pld,sps@gamma=2 {PAIR}"),
        ([PAIR], f"write METHOD {PAIR}"),
        (["PLD", PAIR], "did you mean 'pld'?"),
        ([",", PAIR], "expected a method"),
        (["sps@draft=" + "x" * 250, PAIR], "too long a name"),
        (["sps@draft=a\0b", PAIR], "has a NUL character in it"),
    ],
)
def test_other_mistakes_are_answered(typed: list[str], message: str) -> None:
    assert message in refused(typed)


def test_only_what_is_alike_is_suggested() -> None:
    assert nearest("cascade", METHODS).startswith("; known: autoregressive,")
    assert nearest("dflash", METHODS).startswith("; known: ")
    for typed, meant in {"pearls": "pearl", "spss": "sps", "Pearl-SD2": "pearl-sd2", "pl": "pld"}.items():
        assert nearest(typed, METHODS) == f"; did you mean '{meant}'?"


def test_an_own_target_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = parse(["pld", "--target", "owner/Model"])
    assert (one.pair.name, one.benchmark, one.limit, one.max_new_tokens) == ("model", "humaneval", 20, 128)
    assert parse(["pld", "--target", "owner/Model", "--benchmark", "mini_bench"]).limit is None
    monkeypatch.chdir(tmp_path)
    assert own_pair(".").name == tmp_path.name.lower() and own_pair("/").name == "model"
    assert own_pair("x/..").name == tmp_path.name.lower(), "no answers outside of the folder for them"


@CHEAP
@given(
    positionals=st.lists(
        st.one_of(st.sampled_from([*METHODS, PAIR, "sps@gamma=2", "a,b", ",", "pld,"]), st.text(max_size=4)), max_size=3
    ),
    options=st.lists(
        st.tuples(
            st.sampled_from([*VALUED, "jsn"]),
            st.one_of(
                st.sampled_from(["", "1", "-1", "nan", "x", "a\0b", "bf16", "1e9", "/nowhere/x", "..", "9" * 400]),
                st.text(max_size=4),
            ),
        ),
        max_size=3,
    ),
)
def test_a_command_line_is_parsed_or_refused_in_one_sentence(
    positionals: list[str], options: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [*positionals, *(f"--{name}={value}" for name, value in options)]
    try:
        assert isinstance(parse([word for word in typed if word != "-h"]), RunConfig)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    assert not list(tmp_path.iterdir())


# Before anything is loaded ------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_told_before_anything_is_loaded(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    own = ["--target", str(tiny), "--benchmark", "mini_bench", "--dtype", "fp32"]
    mistakes = {
        "runs on CUDA only": ["--dtype", "fp16", "--device", "cpu"],
        "cannot write answers": ["--output", str(tmp_path / "file")],
        "No such file": ["--questions", "/nowhere"],
        "expected a draft with exits": ["--draft", "int8"],
    }
    for message, more in mistakes.items():
        with pytest.raises(UserError, match=message):
            check(parse(["sd2", *own, "--draft", "int8", "--output", str(tmp_path / "out"), *more]))
    check(parse(["pld", *own, "--output", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_answer_is_told_at_once(
    no_hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="owner/model is not here and the Hugging Face hub cannot be asked"):
        check(parse(["pld", "--target", "owner/model", "--output", str(tmp_path)]))
    assert "looking for owner/model on the Hugging Face hub" in capsys.readouterr().err
    weights = tmp_path / "hub/models--owner--model/snapshots/abc/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("")
    hub.look_for_model("owner/model")
    partial = tmp_path / "hub/models--owner--model/blobs/abc.incomplete"
    partial.parent.mkdir()
    partial.write_text("")
    assert not hub.is_cached("owner/model")


def test_a_missing_benchmark_names_those_that_are_here() -> None:
    with pytest.raises(UserError, match="here are humaneval, mini_bench"):
        load_questions("spec_bench")


def test_an_error_is_a_json_document_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise UserError("expected this\nor that")

    for argv, expected in ((["x", "--json"], '{"error": "expected this or that"}\n'), (["x"], "")):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            command_line(main)
        assert end.value.code == 2
        assert capsys.readouterr() == (expected, "error: expected this or that\n")


MISTAKES = {
    "an unknown flag": ["--no-such-flag"],
    "a value that is none": ["--limit", "--file-path", ""],
    "nothing": [],
    "a flag that is no switch": ["--json=1"],
}


@pytest.mark.parametrize("typed", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("door", [run, speed, equal, lossless], ids=lambda door: door.__name__)
def test_what_argparse_refuses_is_a_json_document_too(
    door: ModuleType, typed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["door.py", *typed, "--json"])
    with pytest.raises(SystemExit) as end:
        command_line(door.main)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    sentence = json.loads(out)["error"]
    assert err.endswith(f"error: {sentence}\n") and err.count("error: ") == 1 and "Traceback" not in err
    monkeypatch.setattr(sys, "argv", ["door.py", *typed, "--no-such-flag"])
    with pytest.raises(SystemExit):
        command_line(door.main)
    assert ("--json=1" in typed) == bool(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ([], ", greedy, seed 0"),
        (["--top-k", "5", "--top-p", "0.5"], ", greedy, seed 0"),
        (["--temperature", "1"], ", temperature 1, seed 0"),
        (["--temperature", "0.8", "--top-p", "0.9"], ", temperature 0.8, top-p 0.9, seed 0"),
        (["--temperature", "1", "--top-k", "20"], ", temperature 1, top-k 20, seed 0"),
    ],
)
def test_a_run_tells_what_of_sampling_is_in_force(typed: list[str], told: str) -> None:
    assert told in describe(parse(["pld", PAIR, *typed]), 4)
