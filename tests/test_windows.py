"""Which windows a run of PEARL drafted, by what its passes judged and kept; and what two ranks that share a memory then
take."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.judge.fit import pace, window
from evaluation.judge.groups import LeftOut, read_groups
from evaluation.judge.sharing import Alone, predicted_sharing
from evaluation.judge.windows import Seen, typical_windows
from methods.paths import ROOT
from methods.pearl.window import Windows

FIRST_LOOK = ROOT / "results/first-look-epyc"


def passes(windows: Windows, alpha: float, pre_verify: bool, hits: float, count: int = 40) -> list[tuple[int, int]]:
    """What the passes of a run judge and keep, by PEARL's rule."""
    rng, found, tail = np.random.default_rng(1), list[tuple[int, int]](), 0
    first = True
    for _ in range(count):
        if not tail and not pre_verify:
            tail, first = windows.first, False
        judged = tail + 1
        kept = min(int(rng.geometric(1 - alpha)) - 1, judged)
        found.append((judged, kept))
        beside, first = (windows.first if first else windows.later), False
        tail = beside - 1
        if kept < judged:
            prepared = rng.random() < hits
            tail, first = (windows.first if prepared else 0), not prepared
    return found


@pytest.mark.parametrize("hits", [0.0, 0.5])
@pytest.mark.parametrize("pre_verify", [True, False])
@pytest.mark.parametrize("windows", [Windows(5, 3), Windows(2, 6), Windows(4, 4)])
def test_windows_are_found_in_what_passes_judge(windows: Windows, pre_verify: bool, hits: float) -> None:
    seen = Seen.of(passes(windows, 0.8, pre_verify, hits), pre_verify)
    assert set(seen.first) == {windows.first} and set(seen.later) == {windows.later}
    assert seen.typical(Windows(9, 9)) == windows


def test_windows_that_were_of_no_use_are_as_those_of_the_run() -> None:
    assert Seen.of([(1, 0)] * 5, True).typical(Windows(7, 4)) == (7, 4)
    assert Seen.of([(1, 1), (6, 2), (1, 0)], True).typical(Windows(7, 4)) == (6, 4)


def test_a_window_that_changed_is_as_its_passes_show_and_not_the_mean_of_those_that_occurred() -> None:
    """pearl-eagle3 has mostly drafted 7 tokens, and 32 in one answer."""
    (run,) = (
        result
        for group in read_groups([ROOT / "results/plane"])
        for result in group.measured
        if result.run.label == "pearl-eagle3" and result.header.benchmark == "humaneval"
    )
    assert run.header.settled is not None and run.header.settled["gamma"] == [7, 32]
    assert window(run) == typical_windows(run.choices, True, Windows(1, 1)).later < 10


def changed(folder: Path, change: Callable[[str, dict[str, Any]], None]) -> float:
    """The prediction for the first look's PEARL, each choice of a method changed."""
    source = FIRST_LOOK / "humaneval/smollm2-135m"
    place = folder / "humaneval/smollm2-135m"
    place.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            (place / path.name).write_bytes(path.read_bytes())
            continue
        answers = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for answer in answers:
            for choice in answer["choices"]:
                change(path.name.split(".")[0], choice)
        (place / path.name.removesuffix(".gz")).write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    (group,) = read_groups([folder])
    (pearl,) = (result for result in group.measured if result.method == "pearl")
    return predicted_sharing(pearl, pace([pearl]), group)


def test_a_draft_that_reads_less_leaves_the_target_more(tmp_path: Path) -> None:
    (group,) = read_groups([FIRST_LOOK])
    (sps,) = (result for result in group.measured if result.method == "sps")
    assert sps.header.target is not None
    rate = sps.header.target["weight_bytes"] * float(
        sps.pairs["decode_tokens_base"].sum() / sps.pairs["decode_time_base"].sum()
    )

    def reading(share: float) -> Callable[[str, dict[str, Any]], None]:
        def change(method: str, choice: dict[str, Any]) -> None:
            if method == "sps":
                choice["draft_bytes"] = [round(share * rate * seconds) for seconds in choice["draft_time"]]

        return change

    found = [changed(tmp_path / str(share), reading(share)) for share in (0.05, 0.3, 1.0, 1.5)]
    assert found == sorted(found, reverse=True) and found[0] > 1.05 * found[2]
    assert changed(tmp_path / "unknown", lambda method, choice: None) == pytest.approx(found[2], rel=1e-4)


def test_time_between_passes_counts(tmp_path: Path) -> None:
    def slower(method: str, choice: dict[str, Any]) -> None:
        if method == "pearl":
            steps = choice["decoding_steps"]
            choice["wall_time"] = [old + 0.005 * count for old, count in zip(choice["wall_time"], steps, strict=True)]

    assert changed(tmp_path / "wall", slower) < 0.97 * changed(tmp_path / "plain", lambda method, choice: None)


@pytest.mark.parametrize(
    "draft, prepare, seconds",
    [(1, 0, 10 + 1.5), (1, 4, 10 + 3.5), (1, 99, 10 + 5), (4, 0, 12 + 5), (4, 99, 12 + 5)],
)
def test_branches_are_prepared_in_what_a_pass_leaves_and_read_the_memory_too(
    draft: float, prepare: float, seconds: float
) -> None:
    """A pass of 10 ms beside three tokens; what runs together takes half as long again."""
    alone = Alone(draft / 1000, {1: 0.010}, 1.5)
    assert alone.beside(3, prepare / 1000, 0.002)[0, 2] == pytest.approx(seconds / 1000 + 0.002)


def test_what_shares_no_memory_is_left_out() -> None:
    (group,) = read_groups([FIRST_LOOK])
    (pearl,) = (result for result in group.measured if result.method == "pearl")
    (sps,) = (result for result in group.measured if result.method == "sps")
    for other in (sps, replace(pearl, header=replace(pearl.header, devices=["cuda:0"]))):
        with pytest.raises(LeftOut, match="not PEARL over a model"):
            predicted_sharing(other, pace([other]), group)
