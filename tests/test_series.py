"""Runs that belong into one figure: sweeps, ablations, their pace; and no figure computes a statistic itself."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from evaluation.judge.fit import (
    baseline_rate,
    decode_rate,
    decode_speedup,
    pace,
    predicted_over_baseline,
    predicted_rate,
)
from evaluation.judge.groups import Group, read_groups
from evaluation.judge.series import ablations, mean_baseline_rate, measured_paces, sweeps
from methods import theory
from methods.paths import ROOT
from tests.simulated_runs import PEARL, SPS, Simulated, write_runs

STATISTICS = {"mean", "fmean", "nanmean", "average", "median", "nanmedian", "mode", "std", "stdev", "var", "variance",
              "quantile", "quantiles", "percentile", "geometric_mean", "corr", "cov", "sem", "groupby", "describe",
              "polyfit", "Counter", "bincount", "histogram"}  # fmt: skip
THEIR_MODULES = {"statistics", "scipy", "random"}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Three windows of PEARL by two launches, one window of SPS, PEARL without a part beside the second launch's."""
    folder = tmp_path_factory.mktemp("series")
    free = Simulated("pearl", {"gamma": "free", "without": "nothing"})
    runs = {"gamma-2": [replace(PEARL, options={"gamma": 2, "without": "nothing"}), SPS]}
    runs |= {"gamma-3": [replace(PEARL, options={"gamma": 3, "without": "nothing"}, verify=0.03)]}
    runs |= {"auto": [PEARL], "other-auto": [PEARL], "free": [free]}
    runs |= {f"auto/without-{part}": [_without(part)] for part in ("both", "post-verify")}
    for name, of_name in runs.items():
        write_runs(folder / name, of_name, questions=6)
    (found,) = read_groups([folder])
    return found


def _without(part: str) -> Simulated:
    return replace(PEARL, options={"gamma": "auto", "without": part})


def test_a_sweep_is_of_runs_that_differ_in_their_window_only(group: Group) -> None:
    found, reasons = sweeps(group)
    assert reasons == [] and [sweep.label for sweep in found] == ["pearl"]
    assert [size for size, _ in found[0].points] == [2, 3, 5, 5]  # 5 is what "auto" came to, in two launches
    assert {result.without for result in found[0].results} == {"nothing"}


def test_a_sweep_names_what_it_cannot_place(tmp_path: Path) -> None:
    unsettled = replace(PEARL, window=None)
    (group,) = read_groups([write_runs(tmp_path, [unsettled, SPS], questions=2)])
    found, reasons = sweeps(group)
    assert found == [] and reasons == ["the header of pearl does not say on which window it has settled"]


def test_the_baseline_of_a_sweep_is_the_mean_over_its_launches(group: Group) -> None:
    (sweep,) = sweeps(group)[0]
    bases = [baseline_rate(result) for result in sweep.results]
    assert len({round(base) for base in bases}) == 2  # the launches' targets differ
    assert mean_baseline_rate(sweep.results) == pytest.approx(fmean(bases))
    for result, base in zip(sweep.results, bases, strict=True):
        rate, speedup = decode_rate(result), decode_speedup(result)
        assert rate.tokens_per_second == pytest.approx(speedup.ratio * base) and rate.baseline == base
        assert speedup.low and rate.low == pytest.approx(speedup.low * base)


def test_an_ablation_has_one_run_of_each_part_the_whole_method_last(group: Group) -> None:
    (found,) = ablations(group)
    assert found.label == f"{group.name}: pearl, gamma auto"
    assert [result.without for result in found.results] == ["both", "post-verify", "nothing"]


def test_an_ablation_prefers_the_folder_with_most_of_its_runs(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_runs(tmp_path / name, [PEARL], questions=2)
    for path in (write_runs(tmp_path / "aside", [_without("both")], questions=2)).rglob("pearl.*"):
        path.rename(tmp_path / "b/mini_bench/tiny" / path.name.replace("pearl", "pearl@without=both"))
    (group,) = read_groups([tmp_path / name for name in "abc"])
    assert sum(result.without == "nothing" for result in group.measured) == 3
    (found,) = ablations(group)
    assert [(result.folder.name, result.without) for result in found.results] == [("b", "both"), ("b", "nothing")]


def test_paces_are_of_the_runs_that_the_theory_covers(group: Group) -> None:
    found, reasons = measured_paces([group])
    assert reasons == [] and set(found) == set(group.measured)
    for result, measured in found.items():
        assert measured == pace([result])
        by_window = predicted_rate(result, measured)
        if measured.window is None or result.without in ("post-verify", "pre-verify"):
            continue
        assert by_window is not None
        over_baseline = by_window(measured.window) / baseline_rate(result)
        assert over_baseline == pytest.approx(predicted_over_baseline(result, measured))
    sps = next(result for result in group.measured if result.method == "sps")
    its = found[sps]
    rate = predicted_rate(sps, its)
    assert rate and rate(7) == theory.draft_then_verify_speedup(its.alpha, 7, its.c) / its.verify_seconds
    halved = next(result for result in group.measured if result.without == "post-verify")
    assert predicted_rate(halved, found[halved]) is None


def _names(path: Path) -> Iterator[str]:
    """What a module imports and what it calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", ""))


def test_what_is_shown_is_computed_elsewhere() -> None:
    """Tables, reports and figures take every statistic from judge/."""
    modules = sorted((ROOT / "evaluation/show").rglob("*.py"))
    assert len(modules) > 10
    found = {path.name: sorted(set(_names(path)) & (STATISTICS | THEIR_MODULES)) for path in modules}
    assert {name: names for name, names in found.items() if names} == {}
