"""Each answer file is read once by a command, and traces say to which launch and round a span belongs."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation.answers.record import read_answers
from evaluation.answers.trace import TracedSpan, TraceWriter, read_trace
from evaluation.judge.groups import read_groups
from evaluation.judge.rounds import first_rounds
from evaluation.judge.timeline import spans_of
from evaluation.report import main as report
from methods.base import Generation, Limits, Span, Step
from tests.simulated_runs import PEARL, SPS, Simulated, write_runs

OPENED: list[str] | None = None  # while it is a list, the files that this process opens


def _watch(event: str, arguments: Sequence[Any]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_watch)  # there is no way to take it away again


def test_a_report_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_runs(tmp_path / "runs", [SPS, PEARL, Simulated("pld", {"gamma": 7})], questions=6)
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--fail-on", "identical<1", "--output", str(tmp_path)])
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    assert report() == 0
    assert OPENED is not None
    times = Counter(Path(name).name for name in OPENED if name.endswith((".jsonl", ".run.json")))
    methods, endings = ("autoregressive", "sps", "pearl", "pld"), (".jsonl", ".run.json")
    names = [method + ending for method in methods for ending in endings]
    assert times == dict.fromkeys(names, 1)


def test_spans_know_their_round_and_a_trace_its_launch(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    folder = write_runs(tmp_path / "runs", [SPS, PEARL], trace, questions=5)
    read = read_trace(trace)
    assert read.launch is None  # as older ones are
    for result in read_groups([folder])[0].measured:
        turns = spans_of(result, read)
        assert len(turns) == 5
        for turn, spans in turns.items():
            rounds = [span.round or 0 for span in spans]
            passes = len(result.run.answers[turn[0]].choices[0].accept_lengths)
            assert sorted(set(rounds)) == list(range(1, passes)) and rounds == sorted(rounds)  # the prefill has none
            older = [TracedSpan(s.rank, s.work, s.begin, s.end) for s in spans]
            found, guessed = (first_rounds(result, turn, given, 8) for given in (spans, older))
            assert [one.tokens for one in found] == [one.tokens for one in guessed] and len(found) == 8
            kinds = [[[s.work for s in one.spans] for one in some] for some in (found, guessed)]
            assert kinds[0] == kinds[1]


def test_a_trace_of_the_same_launch_needs_no_times_to_agree(tmp_path: Path) -> None:
    answer = Generation()
    for tokens in ([1], [2]):
        answer.add(Step(tokens, spans=[Span("target", "verify", 1.0, 2.0)]), Limits(frozenset(), 9))
    for launch, found in (("a", True), ("b", False)):
        writer = TraceWriter(tmp_path / f"{launch}.json", launch=launch)
        writer.add("sps", 0, 0, answer)
        writer.write()
        trace = read_trace(writer.path)
        assert trace.launch == launch and [s.round for s in trace.answers["sps"][0, 0]] == [0, 1]
        folder = write_runs(tmp_path / f"runs of {launch}", [SPS], questions=5, launch="a")
        assert bool(spans_of(read_groups([folder])[0].measured[0], trace)) == found


def test_answers_hold_the_nodes_of_each_pass(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", [SPS], questions=5)
    result = read_groups([folder])[0].measured[0]
    (choice,) = read_answers(result.run.path)[0].choices
    assert choice.nodes == [[1, *[6] * (len(choice.accept_lengths) - 1)]] and result.summary.nodes_per_pass == 6
    path = result.run.path
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["choices"][0]["nodes"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    older = read_groups([folder])[0].measured[0].summary
    assert older.nodes_per_pass is None and older.drafted == result.summary.drafted
