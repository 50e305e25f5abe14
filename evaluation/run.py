"""The main job: measure methods beside the baseline in one interleaved launch, then judge equality and speed.

    python evaluation/run.py METHOD[,METHOD...] PAIR [options]          (./eval.sh does the same)

The models are loaded once; the methods answer each question one after the other, in an order that turns round from one
question to the next (ABBA), so that the drift of a shared machine cancels. An interrupted run is continued by the same
command: finished questions are not run again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.afterwards import tell_where
from evaluation.launch.catalogue import answer_at_once
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.measure import answer, check, describe, open_session, spoken, start
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
    return start(config, run)


def run(config: RunConfig) -> int:
    """Measure, write, judge. The exit status: 0 if every question finished and every lossless method was identical."""
    session = open_session(config)
    console = spoken(session.ranks.rank)
    _ = session.models  # what does not fit, such as the template, is told before the plan
    console.print(describe(config, len(session.benchmark.questions)), soft_wrap=True)
    failed = answer(session, console)
    if session.ranks.rank != 0:
        return 0
    try:
        return judge(config, {q.question_id for q in session.benchmark.questions}, failed, console)
    finally:
        tell_where(config, console)


if __name__ == "__main__":
    command_line(main)
