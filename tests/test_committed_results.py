"""The committed results: what README.md and results/README.md say is what the answer files give."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from evaluation.answers.calibration import read_calibration
from evaluation.answers.record import read_answers
from evaluation.judge.change import pair_runs
from evaluation.judge.fit import PEARL, decode_speedup, pace, predicted_over_baseline, schedule
from evaluation.judge.gates import compare_all
from evaluation.judge.groups import Group, LeftOut, read_groups
from evaluation.judge.sharing import predicted_sharing
from evaluation.show.figures.speed import ablation_bars, speedup_bars
from evaluation.show.figures.style import looks
from methods.paths import ROOT

FOLDER = ROOT / "results/leaderboard-one-launch"
MOST_BYTES = 20_000_000  # of all that is committed here: a clone brings it
BENCHMARKS = "humaneval", "mini_bench"


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return read_groups([FOLDER])


def test_results_are_small() -> None:
    """But for those of this machine alone."""
    paths = (path for path in (ROOT / "results").rglob("*") if ROOT / "results/local" not in path.parents)
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= MOST_BYTES


APART = ["autoregressive-all", "sps", "pearl"]  # on HumanEval, of four hours before
SHARED = ["first-look-epyc", "leaderboard-one-launch/greedy", "leaderboard-first", "leaderboard-earlier"]


@pytest.mark.parametrize("folder", SHARED)
def test_pearls_speed_is_that_of_ranks_that_share_a_memory(folder: str) -> None:
    """From the times of the other methods of its launch, within 10 percent; with memories of their own they would be
    faster than that."""
    found = 0
    for group in read_groups([ROOT / "results" / folder]):
        for result in (result for result in group.measured if result.method == "pearl"):
            measured, speedup = pace([result]), decode_speedup(result).ratio
            assert predicted_sharing(result, measured, group) == pytest.approx(speedup, rel=0.1), group.name
            found += 1
    assert found


# results/README.md says why: prompts that the draft is late with, and files that do not tell what a draft reads.
OUTSIDE = {
    ("mini_bench", "pearl"): 1.12,
    ("mini_bench", "pearl-eagle3"): 0.90,
    ("mini_bench", "pearl-eagle3@branches=3"): 0.86,
}


@pytest.mark.parametrize("folder", ["plane"])
def test_every_row_of_pearl_is_as_fast_as_ranks_that_share_a_memory(folder: str) -> None:
    """By its own windows, acceptance and hits, and the times of the other methods: within 10 percent, but for these."""
    found = {
        (result.header.benchmark, result.run.label): predicted_sharing(result, pace([result]), group)
        / decode_speedup(result).ratio
        for group in read_groups([ROOT / "results" / folder])
        for result in group.measured
        if schedule(result) == PEARL
    }
    assert len(found) == 32
    outside = {key: ratio for key, ratio in found.items() if abs(ratio - 1) > 0.1}
    assert outside == pytest.approx(OUTSIDE, abs=5e-3)


@pytest.mark.parametrize(("earlier", "inside", "beyond"), [("first", 13, APART[2:]), ("earlier", 8, APART)])
def test_two_leaderboards_differ_as_told(groups: list[Group], earlier: str, inside: int, beyond: list[str]) -> None:
    greedy = [group for group in groups if any(r.folder.name == "greedy" for r in group.results)]
    pairings = pair_runs(greedy, read_groups([ROOT / f"results/leaderboard-{earlier}"]))
    assert len(pairings) == 14 and sum(pairing.inside is True for pairing in pairings) == inside
    assert [pairing.label for pairing in pairings if pairing.apart] == beyond


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_readmes_table_is_what_the_answers_give() -> None:
    found = {
        (result.run.path.name.split(".")[0], result.header["benchmark"]): result.overall
        for group in read_groups([ROOT / "results/drafters"])
        for result in group.measured
    }
    lines = (ROOT / "README.md").read_text().split("## What is fastest")[1].split("Every figure,")[0].splitlines()
    rows = [cells(line) for line in lines if line.startswith("| `")]
    assert len(rows) == 8
    for row in rows:
        for benchmark, told in zip(BENCHMARKS, (row[1:3], row[3:5]), strict=True):
            s = found[row[0].strip("`"), benchmark]
            assert s is not None and told == [f"{s.speedup:.2f}x", f"{s.low:.2f} to {s.high:.2f}"] and s.significant


def test_the_leaderboard_of_launches_is_what_the_answers_give() -> None:
    (group,) = read_groups([ROOT / "results/leaderboard"])
    methods = {result.run.label for result in group.measured}
    assert len(methods) == 30 and {"sps", "pearl", "sam-rest", "pearl-sam-eagle3"} < methods
    judged = {r: c for r, c in compare_all([group]).items() if r.header["lossless"]}
    assert len(judged) == 30 and all(comparison.equal for comparison in judged.values())
    for result in group.results:  # greedy: the same in every launch
        one, other = (read_answers(folder / "humaneval/smollm2-135m" / result.run.path.name)
                      for folder in (ROOT / "results/leaderboard", ROOT / "results/leaderboard/launch-2"))  # fmt: skip
        assert len(one) == 8 and one.keys() == other.keys()
        assert all(one[key].choices[0].token_ids == other[key].choices[0].token_ids for key in one)
    figure = speedup_bars([group], looks(result.method for result in group.results)).figure
    assert "95% interval over questions of 2 launches" in " ".join(text.get_text() for text in figure.texts)
    text = (ROOT / "results/README.md").read_text().split("## The leaderboard")[1].split("\n## ")[0]
    told = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    found = {result.run.label: result.overall for result in group.measured}
    assert {row[0].strip("`") for row in told} == methods
    for name, speedup, interval, mat in told:
        s = found[name.strip("`")]
        assert s is not None and (speedup, mat) == (f"{s.speedup:.2f}x", f"{s.mat:.2f}")
        assert interval == f"{s.low:.2f} to {s.high:.2f}" + " (not significant)" * (not s.significant)


def test_the_sweep_by_window_is_what_the_answers_give(groups: list[Group]) -> None:
    found = {result.run.path.stem: result.summary for group in groups for result in group.measured
             if result.folder.name.startswith("gamma-")}  # fmt: skip
    text = (ROOT / "results/README.md").read_text().split("| tokens per round |")[1].split("\n\n")[0]
    windows, _, *rows = [cells(line) for line in text.splitlines()]
    assert len(rows) == 2
    for name, *told in rows:
        for window, cell in zip(windows, told, strict=True):
            s = found.get(f"{name.split('`')[1]}@gamma={window.strip('`')}")
            assert cell.split()[:1] == ([f"{s.speedup:.2f}x"] if s else [])


def test_the_table_of_drafts_is_what_the_answers_give() -> None:
    runs = [result for group in read_groups([ROOT / "results/drafts", ROOT / "results/drafts-int8"])
            for result in group.measured]  # fmt: skip
    found = {(r.folder.name == "drafts-int8", r.run.path.stem.split("@branches")[0], r.header["benchmark"]): r.summary
             for r in runs}  # fmt: skip
    lines = (ROOT / "results/README.md").read_text().split("## Drafts")[1].split("##")[0].splitlines()
    rows = [cells(line) for line in lines if line.startswith("| `")]
    assert len(rows) == 8
    for row in rows:
        for benchmark, told in zip(BENCHMARKS, (row[1:4], row[4:7]), strict=True):
            s = found.get(("`int8`" in row[0], row[0].split("`")[1], benchmark))
            expected = [f"{s.speedup:.2f}x", f"{s.low:.2f} to {s.high:.2f}", f"{s.mat:.2f}"] if s else ["", "", ""]
            assert told == expected


def test_the_tables_of_4_bits_are_what_the_answers_give() -> None:
    text = (ROOT / "results/README.md").read_text().split("## The target in 4 bits")[1].split("\n## ")[0]
    first, second = ([cells(line) for line in part.splitlines() if line.startswith("| `")]
                     for part in text.split("So it became the pair's draft"))  # fmt: skip
    groups = read_groups([ROOT / "results/drafts-int4", ROOT / "results/drafts-int4-counted"])
    found = {(r.folder.name, r.header["benchmark"], r.run.label): r.summary for g in groups for r in g.measured}
    assert len(first) == len(second) == 5 and len(found) == 15
    for row in first:
        s = found["drafts-int4", "humaneval", "@draft=".join(cell.strip("`") for cell in row[:2])]
        assert s is not None and row[2:5] == [f"{s.speedup:.2f}x", f"{s.low:.2f} to {s.high:.2f}", f"{s.mat:.2f}"]
    for row in second:
        for benchmark, told in zip(BENCHMARKS, (row[2:4], row[4:6]), strict=True):
            s = found["drafts-int4-counted", benchmark, "@draft=".join(cell.strip("`") for cell in row[:2])]
            assert s is not None and told == [f"{s.speedup:.2f}x", f"{s.low:.2f} to {s.high:.2f}"]


def test_every_lossless_answer_is_the_baselines(groups: list[Group]) -> None:
    judged = {r: c for r, c in compare_all(groups).items() if r.header["lossless"]}
    assert len(judged) > 40 and all(comparison.equal for comparison in judged.values())


def test_ablations_are_of_one_launch_where_a_sweep_has_the_full_method_too(groups: list[Group]) -> None:
    (group,) = (group for group in groups if any(r.folder.name == "gamma-pearl" for r in group.results))
    data = ablation_bars([group], looks(result.method for result in group.results)).data
    assert list(data["method"]) == ["pearl"] * 4 + ["pearl-sd2"] * 4
    places = {group.labels[result]: result.folder for result in group.results}
    assert {Path(places[run]).name for run in data["run"]} == {"ablation-pearl", "ablation-pearl-sd2"}


def test_the_table_of_heads_is_what_the_answers_give() -> None:
    found = {
        (r.run.label, str(r.header["benchmark"])): r
        for group in read_groups([ROOT / "results/drafters"])
        for r in group.measured
    }
    text = (ROOT / "results/README.md").read_text().split("## Heads")[1].split("\n## ")[0]
    rows = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(found) / len(BENCHMARKS) == 17
    for row in rows:
        for benchmark, told in zip(BENCHMARKS, (row[1:4], row[4:7]), strict=True):
            result = found[row[0].strip("`"), benchmark]
            s = result.overall
            assert s is not None and result.comparison
            assert (told[0], told[2]) == (f"{s.speedup:.2f}x", f"{s.mat:.2f}")
            assert told[1] == f"{s.low:.2f} to {s.high:.2f}" + " (not significant)" * (not s.significant)
    (group,) = read_groups([ROOT / "results/drafters-published-windows"])
    published = {r.run.label: r.overall.speedup for r in group.measured if r.overall is not None}
    assert ", ".join(f"`{name}` {published[name]:.2f}x" for name in ("lookahead", "ouroboros")) in text


def predictions(group: Group) -> Iterator[tuple[str, list[str]]]:
    """Of each run, the speedup without prefill, and the theory's, with a shared memory where PEARL has one."""
    for result in group.measured:
        told = ""
        if schedule(result):
            with suppress(LeftOut):
                told = f"{predicted_over_baseline(result, pace([result])):.2f}"
                told = f"{predicted_sharing(result, pace([result]), group):.2f}, shared"
        yield result.run.label, [f"{decode_speedup(result).ratio:.2f}", told]


def test_the_table_of_the_plane_is_what_the_answers_give() -> None:
    groups = read_groups([ROOT / "results/plane"])
    found = {(r.run.label, str(r.header["benchmark"])): r.overall for group in groups for r in group.measured}
    theory = dict(predictions(next(group for group in groups if "humaneval" in group.name)))
    text = (ROOT / "results/README.md").read_text().split("## The plane")[1].split("\n## ")[0]
    rows = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(found) / len(BENCHMARKS) == 26
    for row in rows:
        assert row[6:8] == theory[row[0].strip("`")]
        for benchmark, told in zip(BENCHMARKS, (row[1:4], row[8:11]), strict=True):
            s = found[row[0].strip("`"), benchmark]
            assert s is not None and (told[0], told[2]) == (f"{s.speedup:.2f}x", f"{s.mat:.2f}")
            assert told[1] == f"{s.low:.2f} to {s.high:.2f}" + " (not significant)" * (not s.significant)


def test_the_calibration_is_told_as_it_came_out() -> None:
    found = read_calibration(ROOT / "results/calibration")
    assert found is not None and found.verdict == "near" and f"{100 * found.stolen:.1f}" == "0.3"
    deviations = [f"{100 * row.deviation:.1f}" for row in found.rows]
    assert deviations == ["-1.2", "-0.6", "-1.6", "-0.9", "-1.5", "-0.8", "-1.3", "-1.9"]
    assert [f"{1e3 * row.overhead:.2f}" for row in found.rows[:3]] == ["0.23", "0.62", "1.02"]
    before = read_calibration(ROOT / "results/calibration-zen-3")
    assert before is not None and before.verdict == "wrong" and f"{100 * before.deviation:.1f}" == "6.2"
    assert [f"{1e3 * row.overhead:.1f}" for row in before.rows[:3]] == ["0.7", "2.4", "3.7"]
