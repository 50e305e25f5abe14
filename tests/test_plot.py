"""plot.py: every figure is there, shows the numbers of `speed.py`, `stats.py` and `theory.py`, and guesses nothing."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from evaluation.answers.trace import read_trace
from evaluation.judge import stats
from evaluation.judge.acceptance import Drafts, by_depth, run_lengths
from evaluation.judge.categories import SPEC_BENCH_ORDER
from evaluation.judge.fit import advantage, decode_speedup, pace, predicted_speedup, window
from evaluation.judge.groups import Group, LeftOut, Result, conditions, read_groups
from evaluation.plot import main
from evaluation.show.figures.draw import draw
from evaluation.show.figures.speed import file_name, speedup_bars
from evaluation.show.figures.style import Drawing, looks
from methods import theory
from methods.errors import UserError
from tests.answer_files import choice, header, summarize, summarize_by_category, write
from tests.commands import start_script
from tests.simulated_runs import PEARL, SPS, Simulated, write_runs

ABLATIONS = ("pre-verify", "post-verify", "both")
PASS, DECIDE, DRAFT = 0.02, 0.0005, 0.004  # seconds, as simulated
FREE = Simulated("pearl", {"gamma": "free", "without": "nothing"}, window=1)  # a span for each token
FOLDERS = ("main", "heads", "gamma-2", "gamma-8", *(f"without-{part}" for part in ABLATIONS))
PNG_BYTES = 15_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a whole study of one pair."""
    folder = tmp_path_factory.mktemp("study")
    pld = Simulated("pld", {"gamma": 7, "max_ngram": 3}, alpha=0.3, draft=0.0001)
    head = Simulated("pearl-eagle3", {"gamma": 3, "without": "nothing"}, alpha=0.6, features=True)
    write_runs(folder / "main", [SPS, PEARL, pld], folder / "trace.json")
    write_runs(folder / "heads", [head])
    for part in ABLATIONS:
        write_runs(folder / f"without-{part}", [replace(PEARL, options={"gamma": "auto", "without": part})])
    for gamma in (2, 8):
        pearl = Simulated("pearl", {"gamma": gamma, "without": "nothing"})
        write_runs(folder / f"gamma-{gamma}", [replace(SPS, options={"gamma": gamma}), pearl])
    return folder


@pytest.fixture(scope="module")
def groups(root: Path) -> list[Group]:
    return read_groups(root / name for name in FOLDERS)


@pytest.fixture(scope="module")
def drawings(root: Path, groups: list[Group]) -> dict[str, Drawing]:
    drawn, left_out = draw(groups, read_trace(root / "trace.json"))
    assert left_out == []
    return {drawing.name: drawing for drawing in drawn}


def result_of(groups: Sequence[Group], label: str) -> Result:
    return next(result for group in groups for result, its_label in group.labels.items() if its_label == label)


def group_of(folder: Path, *runs: Simulated, trace: Path | None = None) -> Group:
    return read_groups([write_runs(folder, runs, trace, questions=6)])[0]


def rows(drawing: Drawing) -> dict[str, dict[str, object]]:
    return {row["run"]: row for row in drawing.data.to_dict("records")}


def test_files(drawings: dict[str, Drawing], tmp_path: Path) -> None:
    expected = "speedup speedup-by-category radar ablation window acceptance depth waiting timeline prediction plane"
    assert list(drawings) == expected.split()
    for drawing in drawings.values():
        png, svg, csv = drawing.save(tmp_path)
        assert png.stat().st_size > PNG_BYTES and 0.01 < (matplotlib.image.imread(png) < 0.9).any(axis=2).mean() < 0.9
        assert len(list(ElementTree.parse(svg).iter())) > 40
        written, data = pd.read_csv(csv), drawing.data
        assert len(data) and list(written) == list(data)
        for name in written.select_dtypes("number"):
            assert list(written[name].dropna()) == pytest.approx(list(data[name].dropna()))
        small = drawing.figure.get_supxlabel().replace("\n", " ")
        for word in ("tiny", "mini_bench", "14 questions", "float32", "greedy", "cpu:0,1 (some CPU)", "2025-01-01"):
            assert word in small
        assert "commit 0123456" in small
    again = drawings["speedup"].save(tmp_path / "again")[1]
    assert again.read_bytes() == (tmp_path / "speedup.svg").read_bytes()


def test_speedups_are_those_of_speed(drawings: dict[str, Drawing], groups: list[Group], root: Path) -> None:
    shown = rows(drawings["speedup"])
    assert len(shown) == 11 and list(shown)[:3] == ["sps, gamma 2", "sps, gamma 5", "sps, gamma 8"]
    for label, row in shown.items():
        result = result_of(groups, label)
        expected = summarize(result.run.path, result.run.path.with_name("autoregressive.jsonl"))
        assert [row[k] for k in ("speedup", "low", "high")] == [expected.speedup, expected.low, expected.high]
    place = root / "main/mini_bench/tiny"
    summaries = summarize_by_category(place / "pearl.jsonl", place / "autoregressive.jsonl")
    by_category = drawings["speedup-by-category"].data.query("method == 'pearl'").set_index("category")["speedup"]
    assert by_category.to_dict() == {s.group: s.speedup for s in summaries}
    around = drawings["radar"].data.query("method == 'pearl'")
    assert tuple(around["category"]) == SPEC_BENCH_ORDER
    assert list(around["speedup"]) == [by_category[name] for name in SPEC_BENCH_ORDER]


def test_ablation_is_found_by_the_headers(drawings: dict[str, Drawing], groups: list[Group]) -> None:
    shown = drawings["ablation"].data
    assert list(shown["without"]) == ["both", "post-verify", "pre-verify", "nothing"]
    for row in shown.to_dict("records"):
        assert row["speedup"] == result_of(groups, row["run"]).summary.speedup


def test_window_sweep(drawings: dict[str, Drawing], groups: list[Group]) -> None:
    data = drawings["window"].data
    measured = data.query("kind == 'measured' and run == 'pearl'")
    assert list(measured["window"]) == [2, 5, 8]  # 5 is what "auto" came to
    runs = [result_of(groups, f"pearl, gamma {gamma}") for gamma in ("2", "auto", "8")]
    for result, row in zip(runs, measured.to_dict("records"), strict=True):
        tokens = sum(sum(c.new_tokens) - 1 for c in result.choices)
        seconds = sum(c.wall_time[0] - (c.prefill_time or [0])[0] for c in result.choices)
        assert row["tokens_per_second"] == pytest.approx(tokens / seconds) and row["baseline"] == pytest.approx(50)
        assert row["low"] < row["tokens_per_second"] < row["high"]
    alpha = Drafts.of([c for result in runs for c in result.choices]).acceptance_rate
    assert alpha is not None and set(data.query("run == 'pearl'")["alpha"]) == {alpha}
    assert measured["c"].iloc[0] == pytest.approx((PASS + DECIDE) / DRAFT)
    for row in data.query("kind == 'theory' and run == 'pearl'").iloc[::40].to_dict("records"):
        expected = theory.pearl_speedup(alpha, row["window"], row["c"]) / (PASS + DECIDE)
        assert row["tokens_per_second"] == pytest.approx(expected)


def test_acceptance(drawings: dict[str, Drawing], groups: list[Group]) -> None:
    result, data = result_of(groups, "sps, gamma 5"), drawings["acceptance"].data.query("run == 'sps, gamma 5'")
    lengths = data.query("quantity == 'accept length'")
    counts = Counter(length for choice in result.choices for length in choice.accept_lengths)
    assert dict(zip(lengths["value"], lengths["count"], strict=True)) == {
        **dict.fromkeys(lengths["value"], 0),
        **counts,
    }
    assert (lengths["value"] * lengths["share"]).sum() == pytest.approx(stats.mean_accept_length(result.choices))
    positions = data.query("quantity == 'draft position'")
    assert list(positions["share"]) == Drafts.of(result.choices).conditional_acceptance
    assert data.query("quantity == 'run length'")["share"].sum() == pytest.approx(1)


def test_run_lengths_go_on_over_passes_and_not_over_turns() -> None:
    one = choice([range(5), range(4)], [1.0, 1.0])
    drafted, accepted = [[0, 1, 5, 5, 1], [0, 3, 3, 3]], [[0, 1, 5, 2, 1], [0, 2, 3, 1]]
    assert list(run_lengths(replace(one, drafted=drafted, accepted=accepted, nodes=None))) == [8, 2, 4]


def test_acceptance_by_depth_is_counted_by_hand() -> None:
    """Three passes: all of three kept; the second of three rejected; nothing drafted; the first of two rejected."""
    one = choice([range(3), range(2)], [1.0, 1.0])
    drafted, accepted = [[0, 3, 3], [0, 2]], [[0, 3, 1], [0, 0]]
    told = replace(one, drafted=drafted, accepted=accepted, depths=[[1, 2, 3, 3, 4, 5], [2, 3]], nodes=None)
    found = {rate.depth: (rate.tried, rate.accepted) for rate in by_depth([told])}
    assert found == {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (1, 0)}
    of_other = replace(told, depths=[[1, 2, 0, 1, 0, 0], [0, 0]])  # composed: a drafter without features among them
    assert {rate.depth: (rate.tried, rate.accepted) for rate in by_depth([of_other])} == {1: (2, 2), 2: (1, 1)}
    assert by_depth([replace(told, depths=None)]) == []


def test_depth(drawings: dict[str, Drawing], groups: list[Group]) -> None:
    """Simulated with windows of 3: first 1 to 3, behind two unverified ones 3 to 5, of which the first was judged."""
    data, result = drawings["depth"].data, result_of(groups, "pearl-eagle3")
    assert set(data["run"]) == {"pearl-eagle3"} and list(data["depth"]) == [1, 2, 3, 4, 5]
    assert sum(data["tried"]) == sum(
        min(kept + 1, judged)
        for one in result.choices
        for judged, kept in zip((one.drafted or [])[0], (one.accepted or [])[0], strict=True)
    )
    assert list(data["share"]) == pytest.approx([0.6] * 5, abs=0.1)
    assert (data["accepted"] / data["tried"]).tolist() == list(data["share"])


def test_waiting(drawings: dict[str, Drawing]) -> None:
    data = drawings["waiting"].data.set_index(["run", "side"])
    sps, pearl = data.loc["sps, gamma 5"], data.loc["pearl, gamma auto"]
    assert list(sps["round_seconds"]) == pytest.approx([5 * DRAFT + PASS + DECIDE] * 2)
    assert list(sps["waiting_seconds"]) == pytest.approx([5 * DRAFT + DECIDE, PASS])  # they take turns
    assert list(pearl["busy_seconds"]) == pytest.approx([PASS + DECIDE, 5 * DRAFT])
    assert pearl["waiting_seconds"].iloc[0] == pytest.approx(0, abs=1e-9)
    assert pearl["waiting_share"].max() < 0.1 < sps["waiting_share"].min()
    assert ("pearl, without both", "draft") in data.index


def test_timeline(drawings: dict[str, Drawing], groups: list[Group]) -> None:
    data = drawings["timeline"].data
    assert set(data["run"]) == {"sps, gamma 5", "pearl, gamma auto"}
    for label, its_rows in data.groupby("run"):
        lengths = result_of(groups, str(label)).run.answers[0].choices[0].accept_lengths
        assert list(its_rows.query("work == 'decided'")["tokens"]) == list(lengths[1:9])
        assert its_rows["begin_ms"].min() == 0 and its_rows["round"].max() == 8
    sps, pearl = (data.query(f"run == '{run}'") for run in ("sps, gamma 5", "pearl, gamma auto"))
    assert sps.query("work == 'verify'")["begin_ms"].iloc[0] == pytest.approx(5 * DRAFT * 1e3)
    assert pearl.query("work == 'verify'")["begin_ms"].iloc[0] == 0
    first = result_of(groups, "pearl, gamma auto").run.answers[0].choices[0]
    assert first.drafted is not None and first.accepted is not None
    rejected = [kept < judged for judged, kept in zip(first.drafted[0][1:9], first.accepted[0][1:9], strict=True)]
    assert list(pearl.query("work == 'draft'")["dropped"]) == rejected and any(rejected)
    assert not sps.query("work == 'draft'")["dropped"].any()


def test_theory(drawings: dict[str, Drawing], groups: list[Group]) -> None:
    predicted, points = rows(drawings["prediction"]), rows(drawings["plane"])
    assert set(predicted) == set(points) and len(points) == 10 and "pld" not in points
    for label, row in predicted.items():
        result = result_of(groups, label)
        measured = pace([result])
        assert (row["alpha"], row["c"]) == (measured.alpha, measured.c)
        base = result.pairs
        own = base["decode_time_base"].sum() / base["decode_tokens_base"].sum()  # a pass of the target alone
        slower = measured.verify_seconds / own
        assert row["predicted"] == pytest.approx(predicted_speedup(result, measured) / slower)
        assert row["measured"] == pytest.approx(decode_speedup(result).ratio)
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.12)
    sps, pearl = predicted["sps, gamma 5"], predicted["pearl, gamma auto"]
    by_formula = theory.draft_then_verify_speedup(sps["alpha"], 5, sps["c"])  # type: ignore[arg-type]
    assert sps["predicted"] == pytest.approx(by_formula, rel=0.03)  # its passes take little longer than the baseline's
    assert pearl["predicted"] == pytest.approx(theory.pearl_speedup(pearl["alpha"], 5, pearl["c"]), rel=0.03)  # type: ignore[arg-type]
    assert points["sps, gamma 5"]["break_even_c"] == theory.break_even_c(sps["alpha"])  # type: ignore[arg-type]
    assert advantage(0.8, theory.break_even_c(0.8)) == pytest.approx(1)


@pytest.mark.parametrize("part", ["nothing", *ABLATIONS])
def test_window_and_c_are_what_the_run_had(part: str, tmp_path: Path) -> None:
    for size in (3, 4, 6):
        run = Simulated("pearl", {"gamma": "auto", "without": part}, window=size)
        result = group_of(tmp_path / str(size), run).measured[0]
        measured = pace([result])
        assert window(result) == size and measured.draft_seconds == pytest.approx(DRAFT)
        assert measured.verify_seconds == pytest.approx(PASS + DECIDE)


def test_what_cannot_be_known_is_left_out(tmp_path: Path) -> None:
    unsettled = group_of(
        tmp_path / "unsettled", replace(PEARL, window=None, options={**PEARL.options, "gamma": "auto"})
    )
    with pytest.raises(LeftOut, match="does not say on which window"):
        window(unsettled.measured[0])
    group_of(tmp_path / "free", FREE, SPS, trace=tmp_path / "free.json")
    other = group_of(tmp_path / "other", replace(SPS, draft=0.005), replace(PEARL, draft=0.005))
    _, left_out = draw([other], read_trace(tmp_path / "free.json"))
    reasons = dict(line.split(": ", 1) for line in left_out)
    assert set(reasons) == {"radar", "ablation", "window", "depth", "timeline"}
    assert "does not show one answer" in reasons["timeline"]


def test_a_free_window_is_measured_too(tmp_path: Path) -> None:
    group = group_of(tmp_path / "free", FREE)
    measured = pace(group.measured)
    assert measured.window is None and measured.draft_seconds == pytest.approx(DRAFT)
    assert predicted_speedup(group.measured[0], measured) > 1


def test_groups_and_runs_have_names_of_their_own(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", [SPS], questions=6)
    write_runs(tmp_path / "b", [SPS], questions=6)
    write_runs(tmp_path / "c", [SPS], questions=6, dtype="bfloat16")
    write_runs(tmp_path / "d", [SPS], questions=6, benchmark="gsm8k")
    groups = read_groups([tmp_path, tmp_path / "a"])  # a folder twice is there once
    assert [group.name for group in groups] == [
        "tiny · gsm8k",
        "tiny · mini_bench, bfloat16",
        "tiny · mini_bench, float32",
    ]
    assert [groups[2].labels[result] for result in groups[2].measured] == ["sps, a", "sps, b"]
    assert "float32 · greedy" in conditions(groups[2].results)
    assert len(groups[2].typical) == 1
    names = [file_name("radar", group, groups) for group in groups]
    assert names[1:] == ["radar-tiny-mini-bench-bfloat16", "radar-tiny-mini-bench-float32"]
    assert file_name("radar", groups[0], groups[:1]) == "radar"


def test_a_run_that_failed_everywhere_is_no_obstacle(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, [SPS], questions=6) / "mini_bench/tiny"
    failures = [{"question_id": 1, "error": "ValueError: no"}]
    write(folder / "pld.jsonl", [], header("pld", failures=failures))
    assert [result.method for result in read_groups([tmp_path])[0].measured] == ["sps"]
    (folder / "autoregressive.jsonl").unlink()
    drawn, left_out = draw(read_groups([tmp_path]))
    assert drawn == [] and "speedup: needs a run with its baseline beside it" in left_out


def test_looks_differ_even_where_the_colours_are_used_up() -> None:
    found = looks([f"method {n}" for n in range(30)])
    assert len({(look.color, look.hatch) for look in found.values()}) == 30
    assert looks(["pearl", "medusa"])["pearl"] == looks(["sps", "pearl", "pld"])["pearl"]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", [SPS], questions=6)
    name = {"name": "process_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": "replica 0, draft"}}
    span = {"name": "verify", "ph": "X", "pid": 0, "tid": 0, "ts": 0, "dur": 1, "args": {"question": 1, "turn": 0}}
    for content, told in (
        ("[]", "expected an object, got a list of 0"),
        ("{", "no valid JSON: EOF"),
        ("[" * 10_000, "no valid JSON: recursion limit"),
        ({"traceEvents": [{"name": "verify", "ph": "X"}]}, "no key 'pid' in traceEvents[0]"),
        ({"traceEvents": [span | {"dur": -1}]}, "traceEvents[0].X.dur: expected at least 0, got -1"),
        ({"traceEvents": [span | {"ts": "0"}]}, 'traceEvents[0].X.ts: expected a number, got "0"'),
        ({"traceEvents": [span | {"ph": "Z"}]}, "traceEvents[0]: expected one of 'M', 'X' as its 'ph'"),
        ({"traceEvents": [span]}, "traceEvents[0] is of a rank or a method that the file does not name"),
        ({"traceEvents": [name, name | {"name": "thread_name"}, span]}, "traceEvents[2] has the draft's rank verify"),
    ):
        (tmp_path / "trace.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError, match="is not a trace as a run with --trace writes it") as error:
            read_trace(tmp_path / "trace.json")
        assert told in str(error.value) and "\n" not in str(error.value)
    done = start_script("plot.py", folder, "--trace", tmp_path / "trace.json", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no runs"):
        read_groups([tmp_path / "empty"])
    with pytest.raises(UserError, match="which is no folder"):
        read_groups([tmp_path / "nowhere"])
    path = folder / "mini_bench/tiny/sps.run.json"
    broken = json.loads(path.read_text())
    del broken["dtype"]
    path.write_text(json.dumps(broken))
    with pytest.raises(UserError, match="no key 'dtype', as every run header has"):
        read_groups([folder])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pld = Simulated("pld", {"gamma": 7}, alpha=0.3)
    write_runs(tmp_path / "runs/a", [pld], questions=3, categories=["qa"])
    write_runs(tmp_path / "runs/b", [], questions=3, benchmark="gsm8k")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plot.py", "runs"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "runs/figures/speedup.png .svg .csv" in said and (tmp_path / "runs/figures/speedup.csv").exists()
    assert "left out: ablation: needs runs of PEARL" in said and "left out: waiting: needs PEARL" in said
    assert "left out: acceptance: needs a run that records what it drafted (tiny · gsm8k)" in said


def test_a_sweep_does_not_crowd_out_the_methods(groups: list[Group], monkeypatch: pytest.MonkeyPatch) -> None:
    (group,) = (group for group in groups if len(group.typical) < len(group.measured))
    styles = looks(result.method for result in group.results)
    every = speedup_bars([group], styles).data
    monkeypatch.setattr("evaluation.show.figures.speed.MOST_BARS", len(group.measured) - 1)
    few = speedup_bars([group], styles).data
    assert list(few["run"]) == [group.labels[result] for result in group.typical]
    assert list(every["run"]) == [group.labels[result] for result in group.measured]
