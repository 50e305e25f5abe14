"""A launch goes from its configuration to answer files, with all methods in turn."""

import os
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from evaluation.judge.wording import sampling_words
from evaluation.launch.config import RunConfig, default_output
from evaluation.launch.hub import is_hub_id, look_for_model
from evaluation.launch.processes import launch, launched, run_rank
from evaluation.launch.progress import Tally, progress
from methods import get_method
from methods.errors import RunError, UserError

if TYPE_CHECKING:
    from evaluation.answers.record import Choice
    from evaluation.launch.benchmarks import Question
    from evaluation.launch.parts import Store
    from evaluation.launch.worker import Session
    from methods.engine.config import ModelConfig


def start(config: RunConfig, job: Callable[[RunConfig], int], fresh: bool = False) -> int:
    """Do `job` in as many processes as the methods need, in this one where one is enough and none has to be `fresh`.
    Returns the exit status. A process of an outer launcher does its part and ends here."""
    config = meaningful(config)
    processes = config.ranks * config.replicas
    if launched():
        run_rank(partial(job, config))
    if processes == 1 and not fresh:
        return job(config)
    return launch(partial(job, config), processes)


def meaningful(config: RunConfig) -> RunConfig:
    """Leave out what is the baseline a second time here: on GPUs a target is no faster on those of both ranks, for its
    layers run one after the other; and one that is split has its devices already."""
    from evaluation.launch.ranks import choose_device

    idle = [spec.name for spec in config.specs if spec.all_devices]
    if not idle or (config.tensor_parallel == 1 and choose_device(config.device) == "cpu"):
        return config
    why = "on GPUs it is the baseline, whose layers run one after the other"
    if config.tensor_parallel > 1:
        why = "with --tensor-parallel the baseline runs on several ranks already"
    spoken(int(os.environ.get("RANK", 0))).print(f"{', '.join(idle)} is left out: {why}", soft_wrap=True)
    ours = config.output == default_output(config)
    config = replace(config, methods=tuple(name for name in config.methods if name not in idle))
    return replace(config, output=default_output(config)) if ours else config


def check(config: RunConfig) -> None:
    """Find the user's mistakes before anything is loaded or started, so that each is told at once, and once."""
    from evaluation.launch.benchmarks import load_questions
    from evaluation.launch.ranks import choose_device, patience
    from methods.build import check_weights
    from methods.models import Models

    load_questions(config.benchmark, config.questions, config.limit)
    check_dtype(config.dtype, choose_device(config.device))
    if config.draft_gpus > 1 and (config.ranks == 1 or choose_device(config.device) == "cpu"):
        raise UserError("expected --draft-gpus beside PEARL on GPUs, where a draft has a rank of its own; leave it out")
    check_writable(config.folder)
    patience()
    needed = [(config.weights_of(spec), spec.needs(config.options_of(spec))) for spec in config.specs]
    drafts = {(source, kind): checks[kind] for sources, checks in needed for kind, source in sources.items()}
    for source in dict.fromkeys([config.pair.target, *(draft for draft, _ in drafts if draft)]):
        if is_hub_id(source):
            look_for_model(source)
    model = Models(config.pair.target, None, config.dtype, []).target_checkpoint.config
    check_split(config, model)
    for (draft, _), checked in drafts.items():
        check_weights(checked, Models(config.pair.target, draft, config.dtype, [], frequent=config.pair.frequent))


def check_split(config: RunConfig, model: "ModelConfig") -> None:
    """Refuse a number of ranks that cannot have equal parts of the target, or find no GPU each."""
    from evaluation.launch.ranks import Ranks, choose_device, gpus_of
    from methods.engine.split import Part, part_of

    if config.tensor_parallel == 1:
        return
    part_of(model, Part(0, config.tensor_parallel), config.pair.target)
    if choose_device(config.device) == "cuda":
        count = config.ranks * config.replicas
        gpus_of(Ranks(0, count, 0, count, config.ranks, config.tensor_parallel), config.draft_gpus)


def check_dtype(dtype: str, device: str) -> None:
    if dtype == "float16" and device == "cpu":
        raise UserError("float16 runs on CUDA only; on CPU choose --dtype bfloat16 or float32")


def check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be written. Nothing is made before there is something to write."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write answers into {folder}: {there} is no folder that can be written; choose --output"
        )


def spoken(rank: int) -> Console:
    """Return the console on which a run says how it goes: one voice for all ranks. Names are printed as they are,
    brackets included."""
    return Console(stderr=True, highlight=False, markup=False, quiet=rank != 0)


def open_session(config: RunConfig) -> "Session":
    """Find the questions, ranks and devices of this process. Models are loaded when they are first needed."""
    from evaluation.launch.benchmarks import load_questions
    from evaluation.launch.ranks import choose_device, join_ranks, open_link, open_team, take_share
    from evaluation.launch.worker import Session

    benchmark = load_questions(config.benchmark, config.questions, config.limit)
    device = choose_device(config.device)
    ranks = join_ranks(config.ranks, config.tensor_parallel)
    if config.replicas not in (1, ranks.replicas):
        raise UserError(f"expected {config.replicas} replicas, got the processes of {ranks.replicas} from the launcher")
    share = take_share(ranks, device, config.threads, config.draft_gpus)
    return Session(config, benchmark, ranks, share, open_link(ranks), open_team(ranks, device))


def measured(config: RunConfig) -> "tuple[Session, Counter[str]]":
    """Say what will be measured, and let all methods answer. Returns what failed, by method, as rank 0 knows it."""
    session = open_session(config)
    console = spoken(session.ranks.rank)
    _ = session.models  # what does not fit, such as the template, is told before the plan
    console.print(describe(config, len(session.benchmark.questions)), soft_wrap=True)
    return session, answer(session, console)


def measure_only(config: RunConfig) -> int:
    """Do no more than that: one launch of several, which are judged when all are done."""
    measured(config)
    return 0


def answer(session: "Session", console: Console) -> Counter[str]:
    """Let all methods answer what has no answer yet. Every rank must call it; rank 0 learns what failed, by method."""
    from evaluation.answers.trace import TraceWriter
    from evaluation.launch.header import join_run, run_headers
    from evaluation.launch.parts import Store
    from evaluation.launch.ranks import gather

    config, ranks = session.config, session.ranks
    if session.share.shared:
        console.print(
            f"note: both ranks compute on {', '.join(session.share.shared)} and take turns there, so PEARL cannot gain "
            "by drafting while it verifies; give it another GPU",
            soft_wrap=True,
        )
    if config.trace is not None:
        session.trace = TraceWriter(config.trace, ranks.replica, session.launch)
        session.trace.collect(
            partial(gather, ranks), ranks.rank == 0
        )  # where it cannot be written, the user learns so before the run
    if ranks.follows:
        session.follow()  # through the passes that the headers need
    headers = run_headers(session) if ranks.leads else {}
    if ranks.rank == 0:
        headers = join_run(session, headers)
    session.rest()
    with Store(config.folder, headers, ranks) as store:
        open_questions = [q for q in session.benchmark.questions if store.missing(q.question_id)]
        share = open_questions[ranks.replica :: ranks.replicas]
        if share and ranks.leads:
            measure(session, store, share, console)
        elif share and ranks.follows:
            session.follow()
        elif share:
            session.serve()
        session.close()
        store.collect()
        if session.trace is not None:
            session.trace.collect(partial(gather, ranks), ranks.rank == 0)
        return store.failures()


def describe(config: RunConfig, questions: int) -> str:
    """Say in a paragraph what will be measured, defaults included."""
    c = config
    options = [
        f"{spec.name} {name} {value}"
        for spec in c.specs
        for name, value in c.options_of(spec).items()
        if name not in spec.fixed  # which its name tells
    ]
    drafters: dict[str | None, list[str]] = {}
    for spec in c.specs:
        for source in c.weights_of(spec).values():
            drafters.setdefault(source, []).append(spec.name)
    lines = [
        f"{', '.join(c.methods)} on {c.pair.name}",
        f"target {c.pair.target}" + "".join(f", draft {d} for {', '.join(by)}" for d, by in drafters.items()),
        f"{c.benchmark}: {questions} questions, at most {c.max_new_tokens} new tokens, prompt form {c.template}",
        f"{c.dtype}, {sampling_words(c.sampling)}, seed {c.seed}" + "".join(f", {option}" for option in options),
        *([f"the target is split among {c.tensor_parallel} ranks"] if c.tensor_parallel > 1 else []),
        *([f"{', '.join(c.turns[1])} after the others, in turns; --interleave: all in turns"] if c.turns[1:] else []),
        f"answers in {c.folder}",
    ]
    return "\n".join(lines)


def measure(session: "Session", store: "Store", questions: "list[Question]", console: Console) -> None:
    """Let all methods answer the questions, in turn, and write each answer as soon as its question is done."""
    tally = Tally()
    session.meet()
    for name, taps in session.taps().items():
        store.files[name].note("taps", taps)
    turns = session.config.turns
    with progress(console, len(questions) * len(turns)) as shown:
        noted: dict[str, dict[str, int | str]] = {}
        for number, (names, question) in enumerate(product(turns, questions)):
            if number % len(questions) == 0:
                session.warm_up(names)
            note_choices(session, store, noted, console)
            for name, choices in answer_question(session, store, question, number, shown.tick, names).items():
                store.files[name].append(session.answer(name, question, choices))
                tally.add(name, choices)
            shown.advance(tally.text())


def note_choices(session: "Session", store: "Store", noted: dict[str, dict[str, int | str]], console: Console) -> None:
    """Put into the headers what methods have chosen by themselves, for the answers to come; print the first choices,
    those of the warm-up."""
    for name, settled in session.settled().items():
        if noted.get(name) == settled:
            continue
        if name not in noted:
            console.print(f"{name} has chosen {', '.join(f'{key} {value}' for key, value in settled.items())}")
        noted[name] = settled
        store.files[name].settle(settled)


def answer_question(
    session: "Session",
    store: "Store",
    question: "Question",
    index: int,
    tick: Callable[[], None],
    names: Sequence[str],
) -> "dict[str, list[Choice]]":
    """Let each of these methods answer one question, all repeats, interleaved; call `tick` after each. Where a method
    raises, its failure is recorded instead of an answer, and the others go on, unless its other rank has lost step with
    it."""
    missing = store.missing(question.question_id)
    choices: dict[str, list[Choice]] = {name: [] for name in names if name in missing}
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
                if get_method(name).ranks > 1 or session.team:  # other ranks are in the middle of that answer
                    raise RunError(f"{name} failed on question {question.question_id}; start again to go on") from None
    return choices
