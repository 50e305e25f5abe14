"""The checks of lossless.py. Each runs the method as a measurement would, with its ranks, and returns rows to print."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluation.answers.files import answers_of
from evaluation.answers.record import Answer, read_answers
from evaluation.answers.run import Run
from evaluation.judge.equality import compare
from evaluation.judge.stats import holm
from evaluation.launch.benchmarks import Question
from evaluation.launch.config import RunConfig
from evaluation.launch.measure import answer, open_session, spoken, start
from evaluation.proof.audit import auditing
from evaluation.proof.goodness import Groups, group, next_token, p_value, samples_needed, uniformity
from evaluation.proof.tiny_pair import TOKENS as TINY_TOKENS
from evaluation.proof.tiny_pair import enumerate_method
from evaluation.show.equality import report
from methods import BASELINE, get_method
from methods.engine.sampling import Sampling
from methods.errors import RunError, UserError

LEVEL = 0.01  # chance that a test of samples fails a lossless method
TOLERANCE = 1e-6  # of enumerated probabilities, where a machine is not row-invariant; elsewhere they agree to 1e-15
TOKENS = 3  # of a sampled answer: the prefill gives the first, drafts the others
LEAST = 1 / 12  # mass of a group of answers
SHOWN = 3  # decisions that break the rule
CANDIDATES = 8  # prompts looked at for each that is sampled
UNCERTAIN = 0.1  # nats: entropy of the groups, beyond that of the first token, of a prompt with something to see


@dataclass(frozen=True)
class Check:
    """One row: what was compared and what came of it, in words; `figures`: the same for programs; `detail`: where a
    failure shows."""

    name: str
    compared: str
    outcome: str
    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True)
class Sizes:
    """Of the test of samples: how many prompts, and which shift (total variation) it finds with which probability."""

    prompts: int
    shift: float
    power: float


def all_checks(config: RunConfig, sizes: Sizes, folder: Path) -> Iterator[Check]:
    """Every check of the last method of `config`; the answer files go into `folder`."""
    for dtype in dict.fromkeys([config.dtype, "float32"]):
        yield greedy(replace(config, dtype=dtype), folder)
    yield enumeration(config)
    yield sampling(config, sizes, folder)
    yield from audit(config, folder)


def greedy(config: RunConfig, folder: Path) -> Check:
    """Every answer is the baseline's, token for token."""
    config = replace(config, temperature=0.0, top_k=0, top_p=1.0, output=folder / f"greedy-{config.dtype}")
    _run(config, _answer)
    run, baseline = (Run.read(answers_of(config.folder, name)) for name in (config.methods[-1], BASELINE))
    comparison = compare(run, baseline)
    tokens = sum(sum(choice.new_tokens) for a in run.answers.values() for choice in a.choices)
    questions = len(comparison.questions)
    return Check(
        f"greedy, {config.dtype}",
        f"{questions} questions, {tokens} tokens, with {BASELINE}",
        comparison.line,
        comparison.equal,
        {"questions": questions, "tokens": tokens, "identical": comparison.identical},
        "" if comparison.equal else report(comparison, False).plain,
    )


def enumeration(config: RunConfig) -> Check:
    """On a tiny pair the probability of every answer, over all random choices, is the target's."""
    spec = get_method(config.methods[-1])
    drawn = Sampling(config.temperature, config.top_k, config.top_p)
    found = enumerate_method(spec, config.options_of(spec), drawn)
    return Check(
        "enumeration",
        f"all {found.answers} answers of {TINY_TOKENS} tokens of a tiny model, by {found.runs} runs",
        f"probabilities differ by at most {found.difference:.1g}",
        found.difference < TOLERANCE,
        asdict(found),
    )


def sampling(config: RunConfig, sizes: Sizes, folder: Path) -> Check:
    """The first tokens of many answers to the same prompts are distributed as the target says."""
    prompts = choose_prompts(config, sizes.prompts)
    level = LEVEL / len(prompts)
    samples = samples_needed(max(groups.count for _, groups in prompts), sizes.shift, sizes.power, level)
    answers = _sample(config, [question for question, _ in prompts], samples, folder)
    choices = {q.question_id: answers[q.question_id].choices for q, _ in prompts}
    found = [p_value(groups, [(c.token_ids or [])[0] for c in choices[q.question_id]]) for q, groups in prompts]
    adjusted = holm(found)
    drafted = sum(sum(sum(turn) for turn in c.drafted or []) for several in choices.values() for c in several)
    return Check(
        "sampling",
        f"{len(prompts)} prompts, {samples} answers of {TOKENS} tokens each, {drafted} drafted tokens judged; finds a "
        f"shift of {sizes.shift:g} with probability {sizes.power:g}",
        f"chi-square, smallest p {min(adjusted):.2g} (Holm)",
        min(adjusted) > LEVEL,
        {
            "questions": list(choices),
            "samples": samples,
            "groups": [groups.count for _, groups in prompts],
            "drafted": drafted,
            "p_values": found,
            "adjusted": adjusted,
            **asdict(sizes),
        },
        "" if min(adjusted) > LEVEL else f"adjusted p-values by question: {dict(zip(choices, adjusted, strict=True))}",
    )


def choose_prompts(config: RunConfig, count: int) -> list[tuple[Question, Groups]]:
    """Of the shortest questions those whose answers are the least certain behind their first token, which no draft has
    a part in; with all their answers in groups. UserError where there is nothing to test."""
    session = open_session(replace(config, methods=(BASELINE,), limit=None, tensor_parallel=1))
    drawn = Sampling(config.temperature, config.top_k, config.top_p)
    encoded = [(q, session.prompter.encode(q.turns[:1], [])) for q in session.benchmark.questions]
    encoded = sorted(encoded, key=lambda pair: len(pair[1]))[: CANDIDATES * count]
    found = []
    for question, prompt_T in encoded:
        after = next_token(session.models.target, prompt_T, drawn)
        first, groups = (group(after, tokens, session.limits.eos_ids, LEAST) for tokens in (1, TOKENS))
        found.append((groups.entropy - first.entropy, question, groups))
    found = sorted(found, key=lambda entry: -entry[0])[:count]
    if found[-1][0] < UNCERTAIN:
        raise UserError(
            f"expected {count} prompts whose answers are uncertain behind the first token, found fewer; raise "
            "--temperature or take other --questions"
        )
    return [(question, groups) for _, question, groups in found]


def _sample(config: RunConfig, questions: list[Question], samples: int, folder: Path) -> dict[int | str, Answer]:
    """So many answers to the first turn of each question."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(asdict(replace(q, turns=q.turns[:1]))) + "\n" for q in questions))
    name = config.methods[-1]
    config = replace(
        config,
        methods=(name,),
        questions=path,
        limit=None,
        repeats=samples,
        max_new_tokens=TOKENS,
        output=folder / "sampling",
    )
    torch.cuda.empty_cache()  # what the choice of prompts needed, the run may need on the same GPU
    _run(config, _answer)
    return read_answers(answers_of(config.folder, name))


def audit(config: RunConfig, folder: Path) -> Iterator[Check]:
    """Every decision of a sampling run follows the acceptance rule, and every draft the q that it came with."""
    path = folder / "audit.json"
    _run(replace(config, methods=config.methods[-1:], output=folder / "audit"), partial(_audited, path))
    found = json.loads(path.read_text())
    broken: list[str] = found["broken"]
    yield Check(
        "audit of decisions",
        f"{found['passes']} passes, {found['tried']} drafted tokens tried, with the acceptance rule",
        f"{len(broken)} break it",
        not broken,
        {"passes": found["passes"], "tried": found["tried"], "broken": len(broken)},
        "\n".join(broken[:SHOWN]),
    )
    fit = uniformity(found["positions"])
    if fit is not None:
        yield Check(
            "audit of drafts",
            f"{len(found['positions'])} drafted tokens with the q that they came with",
            f"chi-square, p {fit:.2g}",
            fit > LEVEL,
            {"drafted": len(found["positions"]), "p_value": fit},
        )


def _run(config: RunConfig, job: Callable[[RunConfig], int]) -> None:
    if status := start(config, job):
        sys.exit(status)  # the rank that failed has told why


def _answer(config: RunConfig) -> int:
    """What every rank of a run does."""
    session = open_session(config)
    failed = answer(session, spoken(session.ranks.rank))
    if failed:
        told = ", ".join(f"{name} on {count} questions" for name, count in failed.items())
        raise RunError(f"nothing can be said where methods failed: {told}")
    return 0


def _audited(path: Path, config: RunConfig) -> int:
    with auditing() as found:
        _answer(config)
    if found.passes:  # on the target's rank
        path.write_text(json.dumps({key: getattr(found, key) for key in ("passes", "tried", "broken", "positions")}))
    return 0
