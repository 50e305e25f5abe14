"""The main job: measure methods beside the baseline in one interleaved launch, then judge equality and speed.

    python evaluation/run.py METHOD[,METHOD...] PAIR [options]          (./eval.sh does the same)

The models are loaded once; the methods answer each question one after the other, in an order that turns round from one
question to the next (ABBA), so that the drift of a shared machine cancels. With --launches all of this is done several
times. An interrupted run is continued by the same command: finished questions are not run again.
"""

import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.kinds import QuestionId
from evaluation.launch.afterwards import tell_where
from evaluation.launch.benchmarks import load_questions
from evaluation.launch.catalogue import answer_at_once
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.launches import failures, next_launch, start_launches
from evaluation.launch.measure import check, meaningful, measure_only, measured, spoken, start
from evaluation.launch.processes import launched
from evaluation.show.verdict import judge
from methods.errors import command_line


def main() -> int:
    if text := answer_at_once(sys.argv[1:]):
        print(text)
        return 0
    config = parse(sys.argv[1:])
    if not launched():
        check(config)
    return start(config, run) if config.launches == 1 else run_launches(meaningful(config))


def run_launches(config: RunConfig) -> int:
    """Do every launch, then judge them together. An outer launcher's processes do the next one that is not done."""
    ids = {q.question_id for q in load_questions(config.benchmark, config.questions, config.limit).questions}
    if launched():
        return start(next_launch(config, ids), run)
    console = spoken(0)
    return start_launches(config, ids, measure_only, console) or judge_all(config, ids, failures(config), console)


def run(config: RunConfig) -> int:
    """Measure, write, judge. The exit status: 0 if every question finished and every lossless method was identical."""
    session, failed = measured(config)
    if session.ranks.rank != 0:
        return 0
    return judge_all(config, {q.question_id for q in session.benchmark.questions}, failed, spoken(0))


def judge_all(config: RunConfig, ids: Collection[QuestionId], failed: Counter[str], console: Console) -> int:
    """Judge, and say where the answers lie."""
    try:
        return judge(config, ids, failed, console)
    finally:
        tell_where(config, console)


if __name__ == "__main__":
    command_line(main)
