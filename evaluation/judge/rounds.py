"""What happens in the rounds of a run: what a pass keeps, who waits for whom, what a trace shows of each."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluation.answers.trace import TracedSpan, Turn
from evaluation.judge.acceptance import drafts_of, run_lengths
from evaluation.judge.fit import rounds
from evaluation.judge.groups import LeftOut, Result


def quantities(result: Result) -> dict[str, list[tuple[int, int, float]]]:
    """(value, count, share) of each quantity."""
    choices = result.choices
    lengths = Counter(length for choice in choices for length in choice.accept_lengths)
    drafts = drafts_of(result.run, choices)
    runs = Counter(length for choice in choices if drafts.chains for length in run_lengths(choice))
    positions = zip(drafts.tried_by_position, drafts.conditional_acceptance or [], strict=False)
    return {
        "accept length": _shares(lengths),
        "run length": _shares(runs),
        "draft position": [(n, tried, share) for n, (tried, share) in enumerate(positions, start=1)],
    }


def _shares(counts: Counter[int]) -> list[tuple[int, int, float]]:
    total = sum(counts.values())
    return [(n, counts[n], counts[n] / total) for n in range(min(counts, default=0), max(counts, default=-1) + 1)]


@dataclass(frozen=True)
class RoundTimes:
    """Mean seconds of a round, and how much of it each side works and waits."""

    total: float
    busy: dict[str, float]
    waits: dict[str, float]

    def waiting_share(self, side: str) -> float:
        return self.waits[side] / self.total


def round_times(result: Result) -> RoundTimes:
    """On one device the two take turns: the target waits while the draft drafts. The draft waits all other time."""
    choices, count = result.choices, rounds(result.choices)
    times = [choice.prefill_time and choice.draft_time and choice.verify_time for choice in choices]
    if not count or not all(times):
        raise LeftOut(f"the files of {result.method} do not record the times of its rounds")

    def mean(key: str) -> float:
        return sum(sum(getattr(choice, key) or []) for choice in choices) / count

    total, verify = mean("wall_time") - mean("prefill_time"), mean("verify_time")
    draft = mean("draft_time") + mean("prepare_time")
    target_waits = mean("wait_time") if own_rank(result) else draft
    return RoundTimes(total, {"draft": draft, "target": verify}, {"draft": total - draft, "target": target_waits})


@dataclass(frozen=True)
class Round:
    """One target pass of a traced answer, with the tokens that it decided."""

    spans: list[TracedSpan]
    tokens: int
    rejected: bool

    def dropped(self, span: TracedSpan) -> bool:
        """Drafted on another device, beside a pass that rejected what it would have followed."""
        passes = [s for s in self.spans if s.work == "verify"]
        beside = span.rank == "draft" and span.end > passes[0].begin and span.begin < passes[-1].end
        return span.work == "draft" and self.rejected and beside


def first_rounds(result: Result, turn: Turn, spans: Sequence[TracedSpan], most: int) -> list[Round]:
    """The first rounds of an answer, at most that many."""
    choice, at = result.run.answers[turn[0]].choices[0], turn[1]
    behind_prefill = sum((choice.decoding_steps or [])[:at]) + 1
    lengths = choice.accept_lengths[behind_prefill : behind_prefill + most]
    judged, kept = ([] if turns is None else turns[at][1:] for turns in (choice.drafted, choice.accepted))
    parts = _by_round(spans) if all(span.round is not None for span in spans) else _by_work(spans, own_rank(result))
    found = [Round(s, n, k < j) for s, n, j, k in zip(parts, lengths, judged, kept, strict=False)]
    return [one for one in found if any(span.work == "verify" for span in one.spans)]


def _by_round(spans: Iterable[TracedSpan]) -> list[list[TracedSpan]]:
    found: dict[int | None, list[TracedSpan]] = {}
    for span in spans:
        found.setdefault(span.round, []).append(span)
    return list(found.values())


def _by_work(spans: Iterable[TracedSpan], two_ranks: bool) -> list[list[TracedSpan]]:
    """Of older traces. Two ranks end a round by deciding, the second span of verifying; a single rank ends it by
    telling its drafter."""
    found: list[list[TracedSpan]] = [[]]
    for span in spans:
        found[-1].append(span)
        works = [s.work for s in found[-1]]
        if works.count("verify") == 2 if two_ranks else works[-2:] == ["verify", "draft"]:
            found.append([])
    return found


def own_rank(result: Result) -> bool:
    """Whether the draft has a rank of its own."""
    return (result.header.ranks or 1) > 1
