"""Two runs side by side: whether they may be compared, and their pairs of measurements."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.answers.header import Role
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import Answer, Choice
from evaluation.answers.run import Run, launch_of
from evaluation.judge.categories import _belongs, _groups
from evaluation.judge.left_out import (
    lacking_notes,
    left_out_notes,
    nothing_to_compare,
    refuse_zeros,
    share_categories,
    turns_too_long,
)
from evaluation.judge.wording import shares_of_machine, valued
from methods.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PairedRuns:
    """A method's run beside the baseline's, and what a reader must know about the two."""

    method: Run
    baseline: Run
    pairs: "pd.DataFrame"  # as `stats.pair_answers` gives it, with a column "group"
    questions: set[QuestionId]  # that were to be compared, whether or not they could be
    too_long: int  # of these questions: how many do not fit the context
    interleaved: bool
    notes: list[str]

    def lines(self, group: str) -> tuple[list[Answer], list[Answer]]:
        """What both files hold of the questions in a group, failed answers and those without a partner included."""
        runs = [run.answers.items() for run in (self.method, self.baseline)]
        ours, theirs = ([a for q, a in run if q in self.questions and _belongs(a.category, group)] for run in runs)
        return ours, theirs


def pair(method: Run, base: Run, question_ids: Collection[QuestionId] | None = None) -> PairedRuns:
    """Put the measurements of two runs side by side, on all questions of either or on `question_ids` alone. Raises
    UserError, one sentence, where a comparison would mean nothing."""
    from evaluation.judge.stats import KEYS, pair_answers

    method, base = share_categories(method, base)
    if not method.questions & base.questions:
        example = " and ".join(repr(next(iter(run.answers))) for run in (method, base))
        raise UserError(
            f"{method.path} and {base.path} have no question in common (they begin with {example}); "
            "name two answer files of the same benchmark"
        )
    notes = [*_compare_headers(method, base), *method.notes, *base.notes]
    wanted = method.questions | base.questions if question_ids is None else set(question_ids)
    common = method.finished & base.finished & wanted
    pairs = pair_answers(*([run.answers[q] for q in run.answers if q in common] for run in (method, base)))
    too_long = turns_too_long(method, base, wanted)
    pairs = pairs[[not too_long[turn] for turn in zip(*(pairs[key] for key in KEYS), strict=True)]]
    if pairs.empty:
        raise UserError(nothing_to_compare(method, base, wanted))
    refuse_zeros(method, base, pairs)
    notes += left_out_notes(method, base, wanted, too_long, len(pairs))
    pairs, lacking = in_every_launch(pairs)
    notes += lacking
    pairs["group"] = _groups(pairs["category"])
    notes += lacking_notes(method, base, paired_choices(method, pairs))
    unfit = len((method.too_long | base.too_long) & wanted)
    return PairedRuns(method, base, pairs, wanted, unfit, _interleaved(method, base), notes)


def in_every_launch(pairs: "pd.DataFrame") -> "tuple[pd.DataFrame, list[str]]":
    """The measurements of the questions that every launch has finished, and a note on the others. UserError where there
    is no such question."""
    launches = pairs["repeat"].map(launch_of)
    of_question = launches.groupby(pairs["question"], sort=False).nunique()
    whole = of_question[of_question == launches.nunique()].index
    if whole.empty:
        raise UserError("no question was finished in every launch; run the failed ones again")
    missing = len(of_question) - len(whole)
    told = f"left out: {missing} of {len(of_question)} questions, which not every launch has finished"
    return pairs[pairs["question"].isin(whole)].reset_index(drop=True), [told] if missing else []


def _compare_headers(method: Run, base: Run) -> list[str]:
    """Notes on conditions that differ or are unknown. UserError where the work or the machine was another."""
    notes = []
    if method.header is None or base.header is None:
        missing = " and ".join(str(run.path) for run in (method, base) if run.header is None)
        notes.append(
            f"conditions not checked: no run header beside {missing}, so whether times include prefill is unknown"
        )
    else:
        differences = method.header.differences(base.header, Role.WORK | Role.MACHINE).items()
        if fatal := [f"{k} is {valued(one)} in one, {valued(other)} in the other" for k, (one, other) in differences]:
            raise UserError(
                f"{method.path} and {base.path} cannot be compared: {', '.join(fatal)}; measure both the same way"
            )
        shares = shares_of_machine(method.header, base.header)  # may differ on purpose: told, not refused
        notes += [f"not the same share of the machine: {share}" for share in shares]
    if method.header and method.header.lossy:
        notes.append(f"{method.label} is lossy: its output does not have the target's distribution")
    if method.header and method.header.read_once:
        notes.append(
            "the target read each prompt once for all methods, before the clock ran, and a draft model once, within "
            "the first answer that it drafted: for equality, not for speed"
        )
    if not _interleaved(method, base):
        apart = any(run.header is not None and run.header.apart for run in (method, base))
        why = "a server answered after the other methods" if apart else "the files are not of one launch"
        notes.append(f"not interleaved: {why}, so drift of the machine is not in the interval")
    return notes


def _interleaved(method: Run, base: Run) -> bool:
    """Whether one launch measured both, taking turns: then the machine was the same for both, question by question."""
    ours, theirs = method.header, base.header
    return ours is not None and theirs is not None and ours.same_launch(theirs) and ours.apart == theirs.apart


def paired_choices(run: Run, pairs: "pd.DataFrame") -> list[Choice]:
    paired = set(zip(pairs["question"], pairs["repeat"], strict=True))
    return [c for q, answer in run.answers.items() for c in answer.choices if (q, c.index) in paired]
