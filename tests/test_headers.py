"""RunHeader: what each key means to who compares, and headers of older releases."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.answers.header import SCHEMA_VERSION, Role, RunHeader, of_role, read_header
from evaluation.judge.wording import sampling_words
from methods.errors import UserError
from methods.paths import ROOT
from tests.answer_files import answer, header, keys, summarize, write


def old(method: str, **changes: Any) -> dict[str, Any]:
    """A header as schema 1 has it."""
    later = ("loop", "drafter", "shape", "taps", "launch")
    return {name: value for name, value in keys(method, **changes).items() if name not in later} | {"schema_version": 1}


@pytest.mark.parametrize(
    ("method", "loop", "drafter", "shape"),
    [
        ("autoregressive", "alone", None, None),
        ("sps", "turns", "model", "chain"),
        ("pld", "turns", "pld", "chain"),
        ("sd2-tree", "turns", "sd2-tree", "tree"),
        ("pearl-sd2", "pearl", "sd2", "chain"),
        ("hf-pld", "peer", None, None),
    ],
)
def test_what_old_headers_lack_is_what_the_table_says(
    method: str, loop: str, drafter: str | None, shape: str | None
) -> None:
    read = RunHeader.from_json(old(method))
    assert (read.loop, read.drafter, read.shape, read.taps, read.launch) == (loop, drafter, shape, [], None)
    again = read.to_json()
    assert again["schema_version"] == SCHEMA_VERSION and RunHeader.from_json(again) == read


def test_a_method_of_another_release_is_not_guessed() -> None:
    read = RunHeader.from_json(old("their-tree", options={"branches": 3, "without": "nothing", "gamma": 5}))
    assert (read.loop, read.drafter, read.shape) == (None, None, None)


def test_a_header_of_now_must_say_what_the_run_is() -> None:
    with pytest.raises(UserError, match="no key 'shape', as every run header has"):
        RunHeader.from_json({name: value for name, value in keys("sps").items() if name != "shape"})
    with pytest.raises(UserError, match="shape: expected 'chain' or 'tree', got \"bush\""):
        RunHeader.from_json(keys("sps", shape="bush"))


def test_every_committed_header_is_read_and_written_without_loss() -> None:
    paths = [path for path in (ROOT / "results").rglob("*.run.json") if "local" not in path.relative_to(ROOT).parts]
    assert len(paths) > 20
    for path in paths:
        raw = json.loads(path.read_text())
        read = read_header(path.with_name(path.name.removesuffix(".run.json") + ".jsonl"))
        assert read is not None and read.loop is not None
        written = read.to_json()
        if raw["schema_version"] == 1:
            assert (read.shape == "tree") == (read.method == "sd2-tree")
            written = {name: written.get(name) for name in raw} | {"schema_version": 1}
        assert written == raw


def test_keys_of_another_release_are_kept_and_told() -> None:
    read = header("pld", colour="green")
    assert read.to_json()["colour"] == "green" and read.differences(header("pld")) == {"colour": ("green", "unset")}


CHANGED: dict[str, Any] = {"sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0}, "target": {"source": "other"}}
CHANGED["read_once"] = True


def other_value(name: str) -> Any:
    """Another value than that of the tests' headers."""
    was = header()[name]
    if name in CHANGED:
        return CHANGED[name]
    return {list: [9] if name == "eos_token_ids" else ["other"], int: 99}.get(type(was), "other")


@pytest.mark.parametrize("name", of_role(Role.WORK | Role.MACHINE))
def test_what_must_agree_is_refused(tmp_path: Path, name: str) -> None:
    base = write(tmp_path / "autoregressive.jsonl", [answer()])
    method = write(tmp_path / "pld.jsonl", [answer()], header("pld", **{name: other_value(name)}))
    with pytest.raises(UserError, match=f"cannot be compared: {name}"):
        summarize(method, base)


def test_one_launch_is_told_by_its_id_and_of_older_headers_by_when_it_began() -> None:
    one, other = header("pld", launch="a"), header("autoregressive", launch="b")
    assert not one.same_launch(other) and one.same_launch(header("autoregressive", launch="a", created="later"))
    assert header("pld").same_launch(header("autoregressive")) and not header("pld").same_launch(
        header(created="later")
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "words"),
    [
        (0, 0, 1, "greedy"),
        (0, 5, 0.5, "greedy"),
        (0.8, 0, 1.0, "temperature 0.8"),
        (1.0, 20, 0.95, "temperature 1, top-k 20, top-p 0.95"),
    ],
)
def test_what_is_off_is_not_named(temperature: float, top_k: int, top_p: float, words: str, tmp_path: Path) -> None:
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    told = header(sampling=sampling)
    assert sampling_words(told.sampling) == words
    path = write(tmp_path / "pld.jsonl", [answer()], told)
    assert f", {words}, at most" in summarize(path, path).conditions
