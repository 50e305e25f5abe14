"""The main job: measure methods beside the baseline in one interleaved launch, then judge equality and speed.

    python evaluation/run.py METHOD[,METHOD...] PAIR [options]          (./eval.sh does the same)

The models are loaded once; the methods answer each question one after the other, in an order that turns round from one
question to the next (ABBA), so that the drift of a shared machine cancels. An interrupted run is continued by the same
command: finished questions are not run again.
"""

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evaluation.answers.header import answers_of
from evaluation.launch.afterwards import tell_where
from evaluation.launch.catalogue import answer_at_once
from evaluation.launch.config import RunConfig, parse
from evaluation.launch.hub import is_hub_id, look_for_model
from evaluation.launch.processes import launch, launched, run_rank
from evaluation.launch.progress import Tally, progress
from evaluation.show.tables import LEGEND, details, print_tables, table, terminal
from methods import BASELINE, get_method
from methods.errors import RunError, UserError, command_line

if TYPE_CHECKING:
    from evaluation.answers.record import Choice
    from evaluation.equal import Comparison
    from evaluation.launch.benchmarks import Question
    from evaluation.launch.parts import Store
    from evaluation.launch.worker import Session


def main() -> int:
    if text := answer_at_once(sys.argv[1:]):
        print(text)
        return 0
    config = parse(sys.argv[1:])
    if not launched():
        check(config)
    return start(config, run)


def start(config: RunConfig, job: Callable[[RunConfig], int]) -> int:
    """Do `job` in as many processes as the methods need, this one where it is enough, and return the exit status.
    A process of an outer launcher does its part and ends here."""
    processes = config.ranks * config.replicas
    if launched():
        run_rank(partial(job, config))
    if processes == 1:
        return job(config)
    return launch(partial(job, config), processes)


def check(config: RunConfig) -> None:
    """Find the user's mistakes before anything is loaded or started, so that each is told at once, and once."""
    from evaluation.launch.benchmarks import load_questions
    from evaluation.launch.ranks import choose_device, patience
    from methods.models import Models

    load_questions(config.benchmark, config.questions, config.limit)
    check_dtype(config.dtype, choose_device(config.device))
    check_writable(config.folder)
    patience()
    drafts = {(config.draft_of(spec), spec.weights == "sorted") for spec in config.specs if spec.weights}
    for source in dict.fromkeys([config.pair.target, *(draft for draft, _ in drafts if draft)]):
        if is_hub_id(source):
            look_for_model(source)
    _ = Models(config.pair.target, None, config.dtype, []).target_checkpoint.config
    for draft, exits in drafts:
        models = Models(config.pair.target, draft, config.dtype, [])
        _ = models.draft_exits if exits else models.draft_checkpoint


def check_dtype(dtype: str, device: str) -> None:
    if dtype == "float16" and device == "cpu":
        raise UserError("float16 runs on CUDA only; on CPU choose --dtype bfloat16 or float32")


def check_writable(folder: Path) -> None:
    """Nothing is made before there is something to write."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write answers into {folder}: {there} is no folder that can be written; choose --output"
        )


def run(config: RunConfig) -> int:
    """Measure, write, judge. The exit status: 0 if every question finished and every lossless method was identical."""
    session = open_session(config)
    console = spoken(session.ranks.rank)
    if session.ranks.rank == 0:
        _ = session.models  # what does not fit, such as the template, is told before the plan
    console.print(describe(config, len(session.benchmark.questions)), soft_wrap=True)
    failed = answer(session, console)
    if session.ranks.rank != 0:
        return 0
    try:
        return judge(session, failed, console)
    finally:
        tell_where(config, console)


def spoken(rank: int) -> Console:
    """Where a run says how it goes: one voice for all ranks. Names are printed as they are, brackets included."""
    return Console(stderr=True, highlight=False, markup=False, quiet=rank != 0)


def open_session(config: RunConfig) -> "Session":
    """Questions, ranks and devices of this process; models are loaded when they are first needed."""
    from evaluation.launch.benchmarks import load_questions
    from evaluation.launch.ranks import choose_device, join_ranks, open_link, take_share
    from evaluation.launch.worker import Session

    benchmark = load_questions(config.benchmark, config.questions, config.limit)
    device = choose_device(config.device)
    ranks = join_ranks(config.ranks)
    if config.replicas not in (1, ranks.replicas):
        raise UserError(f"expected {config.replicas} replicas, got the processes of {ranks.replicas} from the launcher")
    return Session(config, benchmark, ranks, take_share(ranks, device, config.threads), open_link(ranks))


def answer(session: "Session", console: Console) -> Counter[str]:
    """Answer by all methods what has no answer yet. Every rank must call it; rank 0 learns what failed, per method."""
    from evaluation.answers.trace import Trace
    from evaluation.launch.parts import Store

    config, ranks = session.config, session.ranks
    if config.trace is not None:
        session.trace = Trace(config.trace, ranks.replica)
        session.trace.collect(ranks)  # where it cannot be written, the user learns so before the run
    headers = {spec.name: session.header(spec) for spec in config.specs} if ranks.leads else {}
    with Store(config.folder, headers, ranks) as store:
        open_questions = [q for q in session.benchmark.questions if store.missing(q.question_id)]
        share = open_questions[ranks.replica :: ranks.replicas]
        if share and ranks.leads:
            measure(session, store, share, console)
        elif share:
            session.serve()
        session.close()
        store.collect()
        if session.trace is not None:
            session.trace.collect(ranks)
        return store.failures()


def describe(config: RunConfig, questions: int) -> str:
    """One paragraph on what will be measured, defaults included."""
    c = config
    chosen = f"temperature {c.temperature:g}, top-k {c.top_k}, top-p {c.top_p:g}" if c.temperature else "greedy"
    options = [
        f"{spec.name} {name} {value}"
        for spec in c.specs
        for name, value in c.options_of(spec).items()
        if name not in spec.fixed  # which its name tells
    ]
    drafters: dict[str | None, list[str]] = {}
    for spec in c.specs:
        if spec.weights:
            drafters.setdefault(c.draft_of(spec), []).append(spec.name)
    lines = [
        f"{', '.join(c.methods)} on {c.pair.name}",
        f"target {c.pair.target}" + "".join(f", draft {d} for {', '.join(by)}" for d, by in drafters.items()),
        f"{c.benchmark}: {questions} questions, at most {c.max_new_tokens} new tokens, prompt form {c.template}",
        f"{c.dtype}, {chosen}, seed {c.seed}" + "".join(f", {option}" for option in options),
        f"answers in {c.folder}",
    ]
    return "\n".join(lines)


def measure(session: "Session", store: "Store", questions: "list[Question]", console: Console) -> None:
    """Answer the questions by all methods, in turn, and write each answer as soon as its question is through."""
    tally = Tally()
    session.meet()
    with progress(console, len(questions)) as shown:
        session.warm_up()
        for name, settled in session.settled().items():
            store.files[name].note("settled", settled)
            console.print(f"{name} has chosen {', '.join(f'{key} {value}' for key, value in settled.items())}")
        for index, question in enumerate(questions):
            for name, choices in answer_question(session, store, question, index, shown.tick).items():
                store.files[name].append(session.answer(name, question, choices))
                tally.add(name, choices)
            shown.advance(tally.text())


def answer_question(
    session: "Session", store: "Store", question: "Question", index: int, tick: Callable[[], None]
) -> "dict[str, list[Choice]]":
    """All repeats of one question by each method, interleaved, `tick` after each. A method that raises has its failure
    recorded and no answer; the others go on, unless it has another rank that has lost step with it."""
    choices: dict[str, list[Choice]] = {name: [] for name in store.missing(question.question_id)}
    for repeat in range(session.config.repeats):
        order = list(choices) if (index + repeat) % 2 == 0 else list(reversed(choices))
        for name in order:
            try:
                choices[name].append(session.choice(name, question, repeat))
                tick()
            except (UserError, RunError):
                raise
            except Exception as error:
                traceback.print_exc()
                store.files[name].fail(question.question_id, f"{type(error).__name__}: {error}")
                del choices[name]
                if get_method(name).ranks > 1:  # the other rank is in the middle of that answer
                    raise RunError(f"{name} failed on question {question.question_id}; start again to go on") from None
    return choices


def judge(session: "Session", failed: Counter[str], console: Console) -> int:
    """Print equality, then speed, of the questions of this run; with --json one document for programs instead, and
    these on stderr."""
    config = session.config
    output = terminal(stderr=config.json)
    wanted = len(session.benchmark.questions)
    for name, count in failed.items():
        console.print(f"{name}: {count} questions failed; the same command tries them again", style="red")
    # A method that failed everywhere has nothing to be judged by, and without the baseline nobody has.
    judged = [name for name in config.methods if failed[name] < wanted]
    if BASELINE not in judged:
        print_json(config, {"error": f"{BASELINE} failed on every question, so there is nothing to compare with"})
        return 1
    equal = print_equality(session, judged, output)
    rows = print_speed(session, judged, output)
    names = zip(judged[1:] or judged, rows, strict=True)
    document = [json_row(config, name, row, equal.get(name)) for name, row in names]
    lost = [name for name in config.methods if name not in judged]
    print_json(config, document + [{"method": name, "error": "failed on every question"} for name in lost])
    return int(bool(failed) or not all(name in equal and equal[name].equal for name in session.lossless))


def print_json(config: RunConfig, document: object) -> None:
    """With --json: the one thing on stdout."""
    if config.json:
        print(json.dumps(document), flush=True)


def print_equality(session: "Session", judged: list[str], output: Console) -> "dict[str, Comparison]":
    """How each method's output compares; sampled output is not compared, it need not be equal."""
    from evaluation.equal import compare, report

    config = session.config
    found: dict[str, Comparison] = {}
    ids = {question.question_id for question in session.benchmark.questions}
    if config.temperature > 0:
        output.print("sampled output: distributions, not tokens, are equal; evaluation/lossless.py tests them")
        return found
    for name in judged[1:]:
        comparison = compare(answer_path(config, name), answer_path(config, BASELINE), ids)
        found[name] = comparison
        if name not in session.lossless:
            output.print(f"{name}: {comparison.line}; a reference row, which need not be")
        elif comparison.equal:
            output.print(f"{name}: {comparison.line}")
        else:
            output.print(report(comparison, False))
    return found


def print_speed(session: "Session", judged: list[str], output: Console) -> list[dict[str, Any]]:
    from evaluation.speed import summarize

    config = session.config
    ids = {question.question_id for question in session.benchmark.questions}
    rows = [summarize(answer_path(config, name), answer_path(config, BASELINE), ids) for name in judged[1:] or judged]
    print_tables(output, table(rows), details(rows))
    output.print(LEGEND)
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        output.print(f"note: {note}", style="yellow", soft_wrap=True)
    return rows


def answer_path(config: RunConfig, method: str) -> Any:
    return answers_of(config.folder, method)


def json_row(config: RunConfig, name: str, row: dict[str, Any], equality: "Comparison | None") -> dict[str, Any]:
    """One method's entry of the --json list; `identical` counts questions, null where sampling."""
    figures = ("questions", "speedup", "low", "high", "mat", "tokens_per_second", "baseline_tokens_per_second")
    return {
        "method": name,
        "pair": config.pair.name,
        "benchmark": config.benchmark,
        "identical": None if equality is None else equality.identical,
        **{key: row[key] for key in (*figures, "floor_tokens_per_second", "too_long", "notes")},
    }


if __name__ == "__main__":
    command_line(main)
