"""The harness is calibrated: scripted models of known speed through the real runner, beside what theory says. And a
harness that measures something else is found out, by the files that it would have written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation.answers.calibration import (
    CALIBRATION,
    Calibrated,
    Calibration,
    Verdict,
    read_calibration,
    write_calibration,
)
from evaluation.answers.files import answers_of
from evaluation.judge import stats
from evaluation.judge.calibration import CASES, Case, settled, verdict_of
from evaluation.launch.calibration import PAIR, TRACE, calibrate, cases_here, read, write_model
from evaluation.show.calibration import HEADS, cells, headline, told
from methods.engine.loader import find_checkpoint
from methods.engine.script import FIRST, NEITHER, SECOND, WORDS, Script
from methods.errors import UserError
from methods.theory import draft_then_verify_tokens, known_rounds, pearl_tokens

SHORT = Script(kept=90, other=5, tokens=28, prompt=5, seed=1), Script(kept=30, other=50, tokens=20, prompt=5, seed=2)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case], list[Script], Calibration]:
    """One calibration, however busy the machine is: all loops, two ranks, link, files, judge."""
    folder = tmp_path_factory.mktemp("calibration")
    found = calibrate(folder, cases_here(), SHORT, Console(quiet=True), attempts=1)
    questions = (folder / "scripts.jsonl").read_text(encoding="utf-8").splitlines()
    scripts = [_script(json.loads(line)["turns"][0]) for line in questions]
    return folder, cases_here(), scripts, found


def _script(text: str) -> Script:
    script = Script.read([WORDS.index(word) for word in text.split()])
    assert script is not None and script.text == text
    return script


@pytest.mark.timeout(900)
def test_the_harness_prints_what_theory_says(ran: tuple[Path, list[Case], list[Script], Calibration]) -> None:
    """On slow cores the harness's own work takes several percent of a round, and rounds are slow: that is told, and no
    fault of what it counts."""
    *_, found = ran
    exact = [row for row in found.rows if "branches" not in row.method]  # which may come too late
    assert [[fault for fault in row.faults if "even the quickest" not in fault] for row in exact] == [[]] * len(exact)
    assert all(row.mat == row.mat_theory for row in exact)


def one_pass_too_few(choice: dict[str, Any]) -> None:
    lengths = choice["accept_lengths"]
    lengths[1:3] = [sum(lengths[1:3])]
    choice["decoding_steps"] = [len(lengths)]
    for key in ("drafted", "accepted", "nodes"):
        del choice[key][0][1]


def without_pass_times(broken: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Which would contradict what it breaks, so that no file could be read."""

    def both(choice: dict[str, Any]) -> None:
        choice.pop("pass_time", None)
        broken(choice)

    return both


def a_clock_that_starts_behind_the_prompt(choice: dict[str, Any]) -> None:
    choice["wall_time"][0] -= choice["prefill_time"][0]
    choice["prefill_time"][0] = 0.0


def a_clock_that_misses_most(choice: dict[str, Any]) -> None:
    choice["wall_time"][0] = choice["prefill_time"][0] + 0.05 * choice["verify_time"][0]


def a_pass_booked_twice(choice: dict[str, Any]) -> None:
    choice["verify_time"][0] *= 2


def another_text(choice: dict[str, Any]) -> None:
    choice["token_ids"][0][1] += 1


@pytest.mark.parametrize(
    "broken, fault",
    [
        (one_pass_too_few, "passes, got"),
        (a_clock_that_starts_behind_the_prompt, "the prompt takes"),
        (a_clock_that_misses_most, "the answer takes"),
        (a_pass_booked_twice, "its rounds take"),
        (another_text, "output:"),
    ],
)
def test_files_of_a_broken_harness_are_wrong(
    ran: tuple[Path, list[Case], list[Script], Calibration],
    tmp_path: Path,
    broken: Callable[[dict[str, Any]], None],
    fault: str,
) -> None:
    folder, _, scripts, _ = ran
    changed = tmp_path / "changed"
    _copy(folder, changed, CASES[:2])
    path = answers_of(changed / "scripts" / PAIR, CASES[1].name)
    answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for answer in answers:
        without_pass_times(broken)(answer["choices"][0])
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")
    found = read(changed, CASES[:2], scripts)
    assert found.verdict == "wrong" and fault in " ".join(told(found))


def _copy(folder: Path, other: Path, cases: tuple[Case, ...]) -> None:
    """What `read` needs of these cases."""
    for path in (folder / TRACE, *folder.glob("disturbance-*.json")):
        (other / path.name).parent.mkdir(parents=True, exist_ok=True)
        (other / path.name).write_bytes(path.read_bytes())
    for case in cases:
        for path in (folder / "scripts" / PAIR).glob(f"{case.name}.*"):
            (other / "scripts" / PAIR).mkdir(parents=True, exist_ok=True)
            (other / "scripts" / PAIR / path.name).write_bytes(path.read_bytes())


def test_a_judge_that_averages_ratios_is_wrong(
    ran: tuple[Path, list[Case], list[Script], Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, scripts, _ = ran
    whole = stats.speedup
    monkeypatch.setattr(stats, "speedup", lambda pairs: replace(whole(pairs), ratio=whole(pairs).geometric_mean))
    found = read(folder, CASES[:2], scripts)
    assert found.verdict == "wrong" and "the files say a speedup of" in " ".join(told(found))


def test_rounds_that_are_slow_even_at_their_quickest_are_wrong(
    ran: tuple[Path, list[Case], list[Script], Calibration], tmp_path: Path
) -> None:
    """A target's rank that waits 2 ms too long in each round, on a machine whose waits were on time."""
    folder, _, scripts, _ = ran
    changed = tmp_path / "changed"
    _copy(folder, changed, CASES[:2])
    for path in changed.glob("disturbance-*.json"):
        noted = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(noted | {"late": [0.0] * len(noted["late"])}), encoding="utf-8")
    trace = json.loads((changed / TRACE).read_text(encoding="utf-8"))
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            event["ts"] += 2000 * event["args"]["round"]
    (changed / TRACE).write_text(json.dumps(trace), encoding="utf-8")
    found = read(changed, CASES[:2], scripts)
    assert found.verdict == "wrong" and "even the quickest" in " ".join(told(found))


@pytest.mark.parametrize(
    "deviation, lost, faulty, verdict",
    [
        (0.009, 0.0, False, "exact"),
        (-0.009, 0.5, False, "exact"),
        (0.011, 0.0, False, "wrong"),
        (-0.02, 0.01, False, "near"),
        (-0.04, 0.02, False, "busy"),
        (-0.2, 0.02, False, "wrong"),  # more than the machine has taken
        (0.0, 0.0, True, "wrong"),
    ],
)
def test_what_the_machine_cannot_explain_is_wrong(
    deviation: float, lost: float, faulty: bool, verdict: Verdict
) -> None:
    assert verdict_of(deviation, lost, faulty) == verdict


def test_an_attempt_is_believed_if_it_comes_out_right_or_twice_wrong() -> None:
    def last(*verdicts: Verdict) -> bool:
        return settled(verdicts, 3)

    assert last("exact") and last("wrong", "near") and last("busy", "busy", "busy") and last("wrong", "busy", "wrong")
    assert not last("wrong") and not last("busy") and not last("busy", "wrong")


def test_a_script_has_as_many_cards_of_each_kind_as_it_says() -> None:
    script = Script(kept=70, other=20, tokens=101, prompt=3, seed=5)
    cards = [script.card(place) for place in range(1, 101)]
    assert [cards.count(kind) for kind in (FIRST, SECOND, NEITHER)] == [70, 20, 10] and cards[0] == FIRST
    for place in range(1, 101):
        choices = script.choices(place)
        assert len({*choices, script.token(place)}) == 3 - (script.card(place) != NEITHER)
        assert script.card(place) == NEITHER or choices[script.card(place)] == script.token(place)
    assert [place for place in range(101) if script.token(place) == 0] == [100]
    assert _script(script.text) == script and Script.read([3, 4, 5]) is None


@pytest.mark.parametrize("pre_verify, post_verify, expected", [(True, True, pearl_tokens), (False, False, None)])
def test_known_rounds_are_those_of_the_closed_forms(
    pre_verify: bool, post_verify: bool, expected: Callable[[float, float], float] | None
) -> None:
    script = Script(kept=80, other=0, tokens=40_000, prompt=1, seed=0)
    rounds = known_rounds(
        lambda place: script.card(place + 1) == FIRST, 4, 4e-3, 20e-3, script.tokens - 1, pre_verify, post_verify
    )
    tokens = (expected or draft_then_verify_tokens)(0.8, 4)
    assert (script.tokens - 1) / len(rounds) == pytest.approx(tokens, rel=0.01)
    assert {round(one.seconds, 6) for one in rounds} == ({0.02} if pre_verify else {0.036})


def test_rounds_by_hand() -> None:
    """Kept, kept, not, kept, kept, kept, not: a window of 2, a link of 1, rows of 0.5."""
    kept = [True, True, False, True, True, True, False, True].__getitem__

    def rounds(pre_verify: bool, post_verify: bool, hits: bool = False) -> list[tuple[float, int, int, int]]:
        found = known_rounds(kept, 2, 4.0, 20.0, 6, pre_verify, post_verify, lambda place: hits, 0.5, 1.0)
        return [(one.seconds, one.tokens, one.judged, one.accepted) for one in found]

    assert rounds(True, True) == [(20, 1, 1, 1), (20.5, 2, 2, 1), (20, 1, 1, 1), (20.5, 2, 2, 2)]
    assert rounds(False, False) == [(31, 3, 2, 2), (31, 3, 2, 2)]
    assert rounds(False, True) == [(31, 3, 3, 2), (31, 3, 3, 3)]
    assert rounds(True, False) == [(20, 1, 1, 1), (20.5, 2, 1, 1), (20, 1, 1, 1), (20.5, 2, 1, 1)]
    assert rounds(True, True, hits=True) == [(20, 1, 1, 1), (20.5, 2, 2, 1), (21, 3, 3, 3)]


def test_a_calibration_is_read_as_it_was_written_and_shown(tmp_path: Path) -> None:
    row = Calibrated("sps@gamma=3", 1.5, 1.49, 2.0, 2.0, 80e-6, 4.0, 0.0, [], "exact")
    found = Calibration("2026-11-30", "a CPU", None, 0.02, 0.004, 0.001, 0.0, 3.0, [row], ["one core only"])
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, found)
    assert read_calibration(tmp_path) == found and len(cells(row)) == len(HEADS)
    assert "within 1% (at most 0.67% from theory)" in headline(found) and "one core only" in told(found)
    (tmp_path / CALIBRATION).write_text('{"rows": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="calibrate again, or delete it"):
        read_calibration(tmp_path)


def test_a_pace_that_cannot_be_is_told(tmp_path: Path) -> None:
    write_model(tmp_path / "model", {"pass_seconds": -1.0, "row_seconds": 0.0, "drafts": False})
    checkpoint = find_checkpoint(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"pass_seconds in .*config\.json to be greater than or equal to 0"):
        checkpoint.transformer("float32", [])
