"""What of two answer files is left out of a comparison, or is not known, and how a reader is told."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.answers.header import RunHeader
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import UNCATEGORIZED, Answer, Choice
from methods.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from evaluation.answers.run import Run

SHORTEST = 1e-9  # seconds: no clock tells shorter ones
Turn = tuple[QuestionId, int, int]  # question, turn, repeat


def left_out_notes(
    method: "Run", base: "Run", wanted: set[QuestionId], too_long: Mapping[Turn, bool], paired: int
) -> list[str]:
    """Of the questions `wanted`: what is missing, failed, without a partner or too long. `paired`: turns compared."""
    common = method.finished & base.finished & wanted
    told = [_missing(run, wanted) for run in (method, base)]
    told += [_unpaired(run, common, paired, too_long) for run in (method, base)]
    return [note for note in told if note] + too_long_notes(too_long, base.header, method.header)


def too_long_notes(turns: Mapping[Turn, bool], *headers: RunHeader | None) -> list[str]:
    """How many questions and later turns are left out because they do not fit the context. `turns`: whether each
    turn is."""
    fits: dict[QuestionId, bool] = {}
    for (question, _, _), too_long in turns.items():
        fits[question] = fits.get(question, False) or not too_long
    later = sum(too_long for (question, _, _), too_long in turns.items() if fits[question])
    lengths = {header.context_length for header in headers if header and header.context_length}
    context = f"the context of {min(lengths):,} tokens" if lengths else "the context"
    counts = (list(fits.values()).count(False), len(fits), "question"), (later, len(turns), "turn")
    return [
        f"left out: {count} of {_counted(total, word)} {'does' if count == 1 else 'do'} not fit {context}"
        for count, total, word in counts
        if count
    ]


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _missing(run: "Run", wanted: set[QuestionId]) -> str | None:
    missing, failed = len(wanted - run.questions), len((wanted & run.questions) - run.finished - run.too_long)
    why = " and ".join(f"{count} {word}" for count, word in ((missing, "missing"), (failed, "failed")) if count)
    return f"left out: {missing + failed} of {len(wanted)} questions, {why} in {run.path}" if why else None


def _unpaired(run: "Run", common: set[QuestionId], paired: int, too_long: Mapping[Turn, bool]) -> str | None:
    """Of the questions that both have finished: turns that fit, with nothing to compare them with."""
    keys = ((q, t, choice.index) for q in common for choice in run.answers[q].choices for t in range(len(choice.turns)))
    turns = sum(not too_long[key] for key in keys)
    why = "whose repeat failed or which the other file lacks"
    return f"left out: {turns - paired} of {turns} turns in {run.path}, {why}" if turns > paired else None


def share_categories(method: "Run", base: "Run") -> "tuple[Run, Run]":
    """Both with the categories that one of them has, where the other's script writes none."""
    known = {q: a.category for run in (base, method) for q, a in run.answers.items() if not _uncategorized(a)}

    def named(run: "Run") -> "Run":
        lacking = {q: a for q, a in run.answers.items() if _uncategorized(a) and q in known}
        return replace(run, answers=run.answers | {q: replace(a, category=known[q]) for q, a in lacking.items()})

    return named(method), named(base)


def turns_too_long(method: "Run", base: "Run", wanted: set[QuestionId]) -> dict[Turn, bool]:
    """Of every (question, turn, repeat) of either run, whether it does not fit the context in one of them."""
    found: dict[Turn, bool] = {}
    for question, answer in (item for run in (method, base) for item in run.answers.items() if item[0] in wanted):
        for choice in answer.choices:
            for turn in range(len(choice.turns)):
                key = question, turn, choice.index
                found[key] = found.get(key, False) or choice.too_long(turn)
    return found


def nothing_to_compare(method: "Run", base: "Run", wanted: set[QuestionId]) -> str:
    """Why not one turn can be compared, as a sentence."""
    if too_long := (method.too_long | base.too_long) & wanted:
        note = too_long_notes({(q, 0, 0): q in too_long for q in wanted}, base.header, method.header)[0]
        return f"no speed: {note.removeprefix('left out: ')}; take shorter questions, or a target of longer context"
    return f"no question was finished in both {method.path} and {base.path}; run the failed ones again"


def refuse_zeros(method: "Run", base: "Run", pairs: "pd.DataFrame") -> None:
    """UserError where a turn has no time or no tokens."""
    for run, ending in ((method, ""), (base, "_base")):
        for name, unit, least in (("tokens", "new tokens", 0), ("time", "seconds", SHORTEST)):
            for row in pairs[~(pairs[name + ending] > least)].head(1).to_dict("records"):  # NaN too
                place = f"{run.path}: question {row['question']!r}, turn {row['turn'] + 1}"
                raise UserError(
                    f"{place} has {row[name + ending]:g} {unit}, but a speed needs more than 0; "
                    "remove that line and measure the question again"
                )


def lacking_notes(method: "Run", base: "Run", choices: Sequence[Choice]) -> list[str]:
    """What the files of other scripts do not say, or say otherwise. `choices`: of the method, those compared."""
    uncategorized = [run.path for run in (method, base) if any(map(_uncategorized, run.answers.values()))]
    told = [f"no categories in {path}, nor in the other file" for path in uncategorized]
    note = _other_counts(method.path, choices)
    return [*told, note] if note else told


def _uncategorized(answer: Answer) -> bool:
    return answer.category == UNCATEGORIZED


def _other_counts(path: Path, choices: Sequence[Choice]) -> str | None:
    """Some of Spec-Bench's scripts do not count the prefill's token among the accept lengths, or count cut-off ones;
    Medusa's do not record them."""
    lengths, tokens = (sum(sum(getattr(c, key)) for c in choices) for key in ("accept_lengths", "new_tokens"))
    if not lengths:
        return f"no MAT: {path} does not record accept lengths"
    told = f"MAT is as recorded: in {path} accept lengths sum to {lengths}, new tokens to {tokens}"
    return told if lengths != tokens else None
