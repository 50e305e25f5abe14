"""The figures of a method against its baseline, overall and by category."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.answers.header import RunHeader
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import Choice
from evaluation.answers.run import Run
from evaluation.judge.categories import OVERALL, SPEC_BENCH_ORDER
from evaluation.judge.compare import PairedRuns, pair, paired_choices
from evaluation.judge.wording import counted, sampling_words

if TYPE_CHECKING:
    import pandas as pd

WORKS = ("draft", "verify", "wait", "hidden")  # whose times lines may have


@dataclass(frozen=True)
class Summary:
    """The figures of one method, overall or of a group of categories. Rates are in tokens per second, prefill included;
    times in seconds; None where the files do not record what a figure is made of."""

    method: str
    baseline: str
    pair: str | None
    benchmark: str | None
    group: str
    conditions: str
    questions: int
    tokens_per_second: float
    baseline_tokens_per_second: float
    floor_tokens_per_second: float | None
    speedup: float
    low: float | None
    high: float | None
    significant: bool
    launches: int
    moved_by_questions: float | None
    moved_by_launch: float | None
    geometric_mean: float
    decode_speedup: float | None
    spec_bench_speedup: float | None
    mat: float | None
    passes: int | None
    draft_seconds_per_pass: float | None
    verify_seconds_per_pass: float | None
    wait_seconds_per_pass: float | None
    hit_rate: float | None  # of PEARL's branches
    prepared_per_pass: float | None
    hidden_seconds_per_pass: float | None
    run_length: float | None
    acceptance_rate: float | None
    accepted_share: float | None  # of drafted tokens, as a server tells
    drafted: int | None  # judged draft tokens: of a tree all its nodes
    drafted_per_token: float | None
    nodes_per_pass: float | None
    conditional_acceptance: list[float] | None  # by draft position: given that all before it were accepted
    joint_acceptance: list[float] | None  # by draft position: it and all before it
    repetition: float | None
    too_long: int  # questions that do not fit the context
    interleaved: bool
    lossy: bool  # its output is not the target's, by design
    notes: list[str]


Count = Callable[[str], int]  # the tokens of a text, as Spec-Bench's script counts them


def summarize(
    method: Run,
    base: Run,
    question_ids: Collection[QuestionId] | None = None,
    count: Count | None = None,
) -> Summary:
    """The overall figures of a method against its baseline, on their common questions or on `question_ids` alone.

    Rates are tokens per second, prefill included; a figure the files do not record is None. `count`: of the baseline's
    tokens, for Spec-Bench's own figure. Raises UserError where the two files cannot be compared.
    """
    comparison = pair(method, base, question_ids)
    return _summary(comparison, OVERALL, comparison.pairs, count)


def by_category(comparison: PairedRuns, count: Count | None = None) -> list[Summary]:
    """One summary for each category, those of MT-bench taken as one as Spec-Bench does, then the overall one."""
    groups = dict(list(comparison.pairs.groupby("group")))
    known = [group for group in SPEC_BENCH_ORDER if group in groups]
    order = known + sorted(set(groups) - set(known))
    parts = [(group, groups[group]) for group in order]
    return [_summary(comparison, group, pairs, count) for group, pairs in [*parts, (OVERALL, comparison.pairs)]]


def summarize_by_category(method: Run, base: Run, count: Count | None = None) -> list[Summary]:
    """The same of two runs."""
    return by_category(pair(method, base), count)


def _summary(comparison: PairedRuns, group: str, pairs: "pd.DataFrame", count: Count | None) -> Summary:
    from evaluation.judge import stats
    from evaluation.judge.acceptance import drafts_of

    method, base = comparison.method, comparison.baseline
    result = stats.speedup(pairs)
    choices = paired_choices(method, pairs)
    drafts = drafts_of(method, choices)
    judged = drafts.judged
    return Summary(
        method=method.label,
        baseline=base.label,
        pair=method.header.pair if method.header else None,
        benchmark=method.header.benchmark if method.header else None,
        group=group,
        conditions=_title_words(base.header or method.header),
        questions=result.questions,
        tokens_per_second=float(pairs["tokens"].sum() / pairs["time"].sum()),
        baseline_tokens_per_second=float(pairs["tokens_base"].sum() / pairs["time_base"].sum()),
        floor_tokens_per_second=_floor(method, base),
        speedup=result.ratio,
        low=result.low,
        high=result.high,
        significant=result.significant,
        launches=result.launches,
        moved_by_questions=result.moved_by_questions,
        moved_by_launch=result.moved_by_launch,
        geometric_mean=result.geometric_mean,
        decode_speedup=stats.decode_speedup(pairs),
        spec_bench_speedup=stats.spec_bench_speedup(*comparison.lines(group), count),
        **_passes(choices),
        run_length=drafts.run_length,
        acceptance_rate=drafts.acceptance_rate,
        accepted_share=stats.accepted_share(choices),
        drafted=judged,
        drafted_per_token=None if judged is None else float(judged / pairs["tokens"].sum()),
        conditional_acceptance=drafts.conditional_acceptance,
        joint_acceptance=drafts.joint_acceptance,
        repetition=stats.repetition_share(choices),
        too_long=comparison.too_long,
        interleaved=comparison.interleaved,
        lossy=method.header is not None and method.header.lossy,
        notes=comparison.notes,
    )


def _passes(choices: Sequence[Choice]) -> dict[str, Any]:
    """What the passes were like, by the names of a summary."""
    from evaluation.judge import stats

    return {
        "mat": stats.mean_accept_length(choices),
        "passes": stats.pass_count(choices),
        **{f"{work}_seconds_per_pass": stats.seconds_per_pass(choices, f"{work}_time") for work in WORKS},
        "hit_rate": stats.hit_rate(choices),
        "prepared_per_pass": stats.prepared_per_pass(choices),
        "nodes_per_pass": stats.nodes_per_pass(choices),
    }


def _title_words(header: RunHeader | None) -> str:
    """What was run, in words for a title, threads as the baseline had them; says so where it is not known."""
    if header is None:
        return "conditions unknown: no run header"
    words = [header.pair, header.benchmark, header.dtype, sampling_words(header.sampling)]
    words.append(f"at most {header.max_new_tokens} new tokens")
    return ", ".join(words + ([counted(header.threads, "thread")] if header.threads else []))


def _floor(*runs: Run) -> float | None:
    """Tokens per second if each token cost one reading of the target's weights, where a header has measured it."""
    seconds = [run.header.floor_seconds_per_token for run in runs if run.header]
    return next((1 / s for s in seconds if s), None)
