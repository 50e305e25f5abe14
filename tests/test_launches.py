"""Several launches of one comparison: measured apart, continued where they stopped, judged together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.answers.header import read_header, write_header
from evaluation.answers.run import Run, first_launch, launch_of
from evaluation.judge.change import apart, pair_runs
from evaluation.judge.groups import Group, read_groups
from evaluation.judge.launches import launches, speedups_by_launch
from evaluation.launch.config import parse
from evaluation.launch.launches import launch, next_launch, start_launches
from evaluation.launch.measure import measure_only, spoken
from evaluation.run import main
from evaluation.show.change import compare_folders
from evaluation.show.document import to_markdown
from evaluation.show.page import Report
from methods import METHODS, get_method
from methods.errors import UserError
from methods.pairs import get_pair
from scripts.methods_of import methods_of
from tests.commands import in_process
from tests.simulated_runs import PEARL, SPS, write_runs
from tests.tiny import save_model

PLACE = Path("mini_bench/tiny")
TURNS = [["hello there hello there"], ["one two", "three"], ["abc abc abc abc"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "target", seed=0, layers=2)
    lines = [{"question_id": i + 1, "category": "qa", "turns": turns} for i, turns in enumerate(TURNS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def typed(models: Path, output: Path, *more: str) -> list[str]:
    task = ["--questions", str(models / "questions.jsonl"), "--max-new-tokens", "6", "--template", "chat"]
    here = ["--dtype", "float32", "--threads", "1", "--output", str(output)]
    return ["pld", "--target", str(models / "target"), *task, *here, *more]


def drop_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.usefixtures("one_thread")
def test_launches_are_done_once_each_in_processes_of_their_own(models: Path, tmp_path: Path) -> None:
    """The first is that of the plain command; the second is made beside it, and both are judged together."""
    output, ids = tmp_path / "out", {1, 2, 3}
    assert in_process(main, *typed(models, output)).returncode == 0
    first = {path: path.read_bytes() for path in output.rglob("*.json*")}
    done = in_process(main, *typed(models, output, "--launches", "2", "--pause", "0", "--json"))
    assert done.returncode == 0 and json.loads(done.stdout)[0]["launches"] == 2 and "2 launches" in done.stderr
    assert {path: path.read_bytes() for path in first} == first
    pld, later = (output / place / "questions/target/pld.jsonl" for place in (".", "launch-2"))
    headers = [read_header(path) for path in (pld, later)]
    assert headers[0] and headers[1] and headers[0].run == headers[1].run == headers[0].launch != headers[1].launch
    assert headers[0].command == headers[1].command and not headers[0].differences(headers[1])
    assert all(choice.read_bandwidth for a in Run.read(later).answers.values() for choice in a.choices)

    config = parse(typed(models, output, "--launches", "2"))
    assert next_launch(config, ids).launch == 2
    assert start_launches(config, ids, cannot_be_called, spoken(0)) == 0
    drop_last_line(later)
    assert next_launch(replace(config, launches=3), ids).launch == 2
    drop_last_line(pld)
    assert next_launch(config, ids).launch == 1
    more = parse(typed(models, output, "--launches", "2", "--seed", "7"))
    assert next_launch(more, ids).launch == 1, "another seed is another comparison"


def cannot_be_called(config: object) -> int:
    raise AssertionError(config)


@pytest.mark.usefixtures("one_thread")
def test_a_launch_of_other_conditions_than_the_first_is_refused(models: Path, tmp_path: Path) -> None:
    config = parse(typed(models, tmp_path, "--launches", "2"))
    with pytest.raises(UserError, match=r"launch 2 of autoregressive has no first one in .*; begin with that"):
        measure_only(launch(config, 2))
    measure_only(config)
    path = tmp_path / "questions/target/pld.jsonl"
    header = read_header(path)
    assert header is not None
    write_header(path, replace(header, cpu="some older CPU"))
    with pytest.raises(UserError, match="the first launch of pld was made with cpu=some older CPU, now "):
        measure_only(launch(config, 2))


@pytest.mark.parametrize("option", ["--launches=0", "--launches=1001", "--pause=-1", "--pause=nan"])
def test_no_launches_and_no_pauses_below_nothing(option: str) -> None:
    with pytest.raises(UserError, match="expected"):
        parse(["pld", "smollm2-135m", option])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of three launches, in which a pass of PEARL takes longer from one to the next."""
    folder = tmp_path_factory.mktemp("three")
    for number in (1, 2, 3):
        place = folder / f"launch-{number}" if number > 1 else folder
        runs = [SPS, replace(PEARL, verify=PEARL.verify * (1 + 0.1 * number))]
        write_runs(place, runs, run="r1", launch=f"l{number}", read_bandwidth=1e10 * number)
    return folder


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(three, tmp_path / "copy")


def of(folder: Path) -> Group:
    (group,) = read_groups([folder])
    return group


def test_launches_are_judged_together(three: Path, tmp_path: Path) -> None:
    alone, group = of(shutil.copytree(three / "mini_bench", tmp_path / "one/mini_bench").parent), of(three)
    assert [result.method for result in group.results] == ["autoregressive", "sps", "pearl"]
    sps, pearl = group.measured
    assert (sps.summary.launches, alone.measured[0].summary.launches) == (3, 1)
    assert sps.summary.questions == pearl.summary.questions == 14
    assert sps.summary.speedup == pytest.approx(alone.measured[0].summary.speedup) and sps.summary.moved_by_launch == 0
    own = speedups_by_launch(pearl)
    assert own[0] > pearl.summary.speedup > own[2]
    assert pearl.summary.moved_by_launch == pytest.approx((own[0] - own[2]) / 2 / own[1], rel=0.1)
    low, high = pearl.summary.low, pearl.summary.high
    assert low is not None and high is not None and high - low > 4 * (own[0] - own[2]) / 2, "three launches tell little"
    assert [found.read_bandwidth for found in launches(group)] == [1e10, 2e10, 3e10]
    assert launches(alone) == []


def test_a_launch_that_is_not_at_its_end_or_was_made_otherwise_is_left_out(copy: Path) -> None:
    drop_last_line(copy / "launch-3" / PLACE / "sps.jsonl")
    other = copy / "launch-2" / PLACE / "sps.jsonl"
    header = read_header(other)
    assert header is not None
    write_header(other, replace(header, max_new_tokens=65))
    sps, pearl = of(copy).measured
    assert (sps.summary.launches, pearl.summary.launches) == (1, 3)
    notes = " ".join(sps.summary.notes)
    assert "launch-3/mini_bench/tiny/sps.jsonl, 13 of 14 questions" in notes
    assert "launch-2/mini_bench/tiny/sps.jsonl, made with max_new_tokens=65, where the first has 64" in notes


def test_a_question_that_failed_in_one_launch_is_left_out_of_all(copy: Path) -> None:
    path = copy / "launch-2" / PLACE / "sps.jsonl"
    drop_last_line(path)
    header = read_header(path)
    assert header is not None
    write_header(path, replace(header, failures=[{"question_id": 13, "error": "no memory"}]))
    sps = of(copy).measured[0]
    assert (sps.summary.launches, sps.summary.questions) == (3, 13)
    assert "left out: 1 of 14 questions, which not every launch has finished" in sps.summary.notes


def test_a_later_launch_may_be_judged_by_itself(three: Path) -> None:
    run = Run.read_launches(three / "launch-2" / PLACE / "pearl.jsonl")
    assert len(run.launches) == 1 and {launch_of(c.index) for a in run.answers.values() for c in a.choices} == {0}
    assert of(three / "launch-2").measured[0].summary.launches == 1
    assert first_launch(three / "launch-2" / PLACE / "x") == three / PLACE / "x"


def markdown(folder: Path, before: Path | None = None) -> str:
    """A report without its figures."""
    groups = read_groups([folder])
    pairings = pair_runs(groups, read_groups([before])) if before else []
    return to_markdown(Report(groups, [], [], pairings, folder, before, "Written"))


def test_the_fastest_is_compared_with_the_next_on_as_many_threads(tmp_path: Path) -> None:
    """Another number of threads has another baseline, and other times."""
    for threads, runs in ((1, [SPS]), (2, [PEARL])):
        write_runs(tmp_path / f"t{threads}", runs, threads=threads)
    (group,) = read_groups([tmp_path])
    assert {group.labels[r] for r in group.measured} == {"sps", "pearl"}
    page = markdown(tmp_path).split("## ")[0]
    assert "times" not in page
    write_runs(tmp_path / "more", [replace(SPS, verify=SPS.verify * 2)], threads=1)
    assert "times sps" in markdown(tmp_path).split("## ")[0]


def test_a_report_begins_with_what_is_fastest_and_shows_what_moves(three: Path) -> None:
    text = markdown(three)
    page, s = text.split("## ")[0], of(three).measured[0].summary
    assert len(page.splitlines()) <= 12
    assert f"| **sps: {s.speedup:.2f}x** | {s.low:.2f} to {s.high:.2f}<br>14 questions, 3 launches<br>questions" in page
    assert "times pearl, the next" in page and "**yes, token for token, in all 2 runs**" in page
    assert (
        "a pass as long as 5 / 10 / 20 draft tokens" in page
        and "74% accepted<br>drafting first 1.7 / 2.2 / 2.6x" in page
    )
    moves = text.split("### By launch")[1].split("\n\n")[1]
    own = [f"{ratio:.2f}x" for ratio in speedups_by_launch(of(three).measured[1])]
    assert f"| pearl | {' | '.join(own)} |" in moves and "| memory, GB/s | *10.0* | *20.0* | *30.0* |" in moves
    assert "95% interval, 3 launches" in text and "95% interval, this launch" not in text


def test_runs_that_differ_beyond_both_intervals_are_told_with_what_else_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write_runs(tmp_path / "before", [SPS, PEARL], questions=6, read_bandwidth=5e10)
    slow = replace(PEARL, verify=2 * PEARL.verify, window=3)
    now = write_runs(tmp_path / "now", [SPS, slow], questions=6, read_bandwidth=3e10, threads=4)
    pairings = pair_runs(read_groups([now]), read_groups([before]))
    assert [pairing.apart for pairing in pairings] == [False, True]
    (line,) = apart(pairings)
    assert line.startswith(
        "beyond both intervals: tiny · mini_bench: pearl; besides, the number of threads was 2, is now 4"
    )
    assert "memory read in GB/s: 30.0, before 50.0" in line and "gamma settled on: 3, before 5" in line
    assert apart(pairings[:1]) == ["no run differs beyond both intervals"]
    assert compare_folders(now, before, False) == 0 and line in capsys.readouterr().out
    assert "- beyond both intervals: tiny · mini_bench: pearl" in markdown(now, before)
    assert "95% interval, this launch" in markdown(now)


def test_a_leaderboard_has_all_methods_that_the_pair_has_weights_for() -> None:
    """Of those that copy first only the ones that are worth it; no other library's."""
    embedded, plain = methods_of("smollm2-135m"), methods_of("llama-2-7b-70b")
    assert {get_method(name).weights for name in embedded} >= {"", *get_pair("smollm2-135m").drafts}
    assert set(METHODS) - set(embedded) == {name for name in METHODS if not wanted(name)}
    assert "pearl" in plain and not {"medusa", "pearl-medusa", "sd2", "rest"} & set(plain)


def wanted(name: str) -> bool:
    behind = name.removeprefix("pearl-").partition("sam-")[2]
    if METHODS[name].loop == "peer" or METHODS[name].weights == "toy":  # a drafter of the tests
        return False
    return name not in ("autoregressive", "space") and behind in ("", "model", "rest", "recycling", "eagle3")
