"""What a run of scripted models must have measured, by theory.py, and whether it has.

Every pass is waited for until a deadline, and which drafts are kept is known. So theory tells how many passes each
answer takes, and how long, to the microsecond; what the answer files say beyond it is the harness's own. A machine that
does something else meanwhile makes waits end late, which each wait notes by itself: that is told apart.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median, quantiles

from evaluation.answers.calibration import Calibrated, Disturbance, Verdict
from evaluation.answers.record import Choice
from evaluation.answers.run import Run
from evaluation.answers.trace import TracedSpan
from evaluation.judge.equality import compare
from evaluation.judge.summary import summarize
from methods import BASELINE
from methods.engine.script import FIRST, SECOND, Script
from methods.theory import Round, known_rounds

PASS_SECONDS, ROW_SECONDS, DRAFT_SECONDS, LINK_SECONDS = 20e-3, 0.25e-3, 4e-3, 1e-3
EXACT, NEAR = 0.01, 0.03  # of a speedup, by which it may differ from the theory's: on a quiet machine, on a busy one
QUIET = 0.003  # share of the time for which waits are late
EXPLAINED = 5  # times that share may be missing, where ranks wait for each other too
SLOWEST = 1.9e-3  # seconds that the quickest rounds may take beyond their waits,
FEWEST_ROUNDS = 5  # of so many that they tell something,
BUSIEST = 0.03  # where waits are late for no more than this share
CLOCK = 1e-6  # seconds by which two readings of clocks and sums of them may differ


@dataclass(frozen=True)
class Case:
    """A method that is calibrated, as a command line names it: how it drafts. `window`: tokens of a chain, or levels of
    a tree whose nodes have two children each; 0: nothing is drafted."""

    name: str
    window: int = 0
    pre_verify: bool = False
    post_verify: bool = False
    ranks: int = 1
    tree: bool = False
    branches: bool = False

    @property
    def nodes(self) -> int:
        """Drafted tokens of a pass."""
        return 2 ** (self.window + 1) - 2 if self.tree else self.window

    def rounds(self, script: Script) -> list[Round]:
        """Of the answer to a script, behind the prompt."""
        tokens = script.tokens - 1
        if not self.window:
            return [Round(PASS_SECONDS, 0.0, 1, 0, 0)] * tokens
        best = SECOND if self.tree else FIRST
        return known_rounds(
            lambda place: script.card(place + 1) <= best,
            self.window,
            DRAFT_SECONDS,
            PASS_SECONDS + ROW_SECONDS * (self.nodes - self.window),
            tokens,
            self.pre_verify,
            self.post_verify,
            lambda place: self.branches and script.card(place + 1) == SECOND,
            ROW_SECONDS,
            LINK_SECONDS if self.ranks > 1 else 0.0,
        )

    def prefill_seconds(self, script: Script) -> float:
        """The draft reads the prompt behind the target, but where it has a rank of its own."""
        drafts = self.window and self.ranks == 1
        return script.prompt * (PASS_SECONDS + (DRAFT_SECONDS if drafts else 0.0))

    def seconds(self, script: Script) -> float:
        return self.prefill_seconds(script) + sum(round.seconds for round in self.rounds(script))


def _pearl(window: int, without: str = "", branches: bool = False) -> Case:
    name = f"pearl@gamma={window}" + (f"@without={without}" if without else "@branches=1" if branches else "")
    pre_verify, post_verify = without not in ("pre-verify", "both"), without not in ("post-verify", "both")
    return Case(name, window, pre_verify, post_verify, ranks=2, branches=branches)


CASES = (
    Case(BASELINE),
    Case("sps@gamma=3", 3),
    Case("sd2-tree@branches=2@depth=2@nodes=6", 2, tree=True),
    _pearl(4),
    _pearl(4, "pre-verify"),
    _pearl(4, "post-verify"),
    _pearl(4, "both"),
    _pearl(2, branches=True),
)


@dataclass(frozen=True)
class Measured:
    """A case as it was run, beside what theory says. `spans`: of each script, in order; `stolen`: the share of the
    cores' time that their host has taken."""

    case: Case
    scripts: Sequence[Script]
    run: Run
    base: Run
    spans: Sequence[Sequence[TracedSpan]]
    disturbed: Sequence[Disturbance]
    stolen: float

    @property
    def choices(self) -> list[Choice]:
        return [self.run.answers[number].choices[0] for number in range(1, len(self.scripts) + 1)]

    @cached_property
    def rounds(self) -> list[list[Round]]:
        return [self.case.rounds(script) for script in self.scripts]

    @cached_property
    def excess(self) -> list[tuple[float, float]]:
        """Of each round: the seconds that it should take, and how many more it took, but for what its waits were
        late."""
        found = []
        for rounds, spans in zip(self.rounds, self.spans, strict=True):
            for round, (begin, end) in zip(rounds, round_times(spans), strict=False):
                late = sum(late_within(noted, begin, end) for noted in self.disturbed)
                found.append((round.seconds, end - begin - round.seconds - late))
        return found

    @property
    def lost(self) -> float:
        """The share of the answers' time for which waits were late, of both ranks together."""
        late = seconds = 0.0
        for spans in self.spans:
            begin, end = min(s.begin for s in spans), max(s.end for s in spans)
            seconds += end - begin
            late += sum(late_within(noted, begin, end) for noted in self.disturbed)
        return late / seconds


def round_times(spans: Sequence[TracedSpan]) -> list[tuple[float, float]]:
    """When each round of an answer began, at the end of the one before, and ended, by the target's rank."""
    ends: dict[int, float] = {}
    ours = [span for span in spans if span.rank == "target" and span.round]
    for span in ours:
        ends[span.round or 0] = max(ends.get(span.round or 0, span.end), span.end)
    before = min((span.begin for span in ours), default=0.0)
    times = [before, *(ends[number] for number in sorted(ends))]
    return list(pairwise(times))


def late_within(noted: Disturbance, begin: float, end: float) -> float:
    """Seconds for which waits were late that had to end in that time."""
    first, last = bisect_left(noted.ends, begin), bisect_right(noted.ends, end)
    return sum(noted.late[first:last])


def judge(measured: Measured, base_lost: float) -> Calibrated:
    """Put what was measured beside what theory says. `base_lost`: of the baseline, whose time is in the speedup."""
    case, summary = measured.case, summarize(measured.run, measured.base)
    tokens, seconds = sum(script.tokens for script in measured.scripts), sum(map(case.seconds, measured.scripts))
    theory, printed = sum(map(CASES[0].seconds, measured.scripts)) / seconds, summary.speedup
    if case.name == BASELINE:
        theory, printed = tokens / seconds, summary.tokens_per_second
    rounds = [round for answer in measured.rounds for round in answer]
    faults = [*_faults(measured), *_arithmetic(measured, summary.speedup)]
    lost = measured.stolen + measured.lost + (0 if case.name == BASELINE else base_lost)
    return Calibrated(
        method=case.name,
        theory=theory,
        printed=printed,
        mat_theory=tokens / (len(rounds) + len(measured.scripts)),
        mat=summary.mat or 0.0,
        overhead=median(excess for _, excess in measured.excess),
        passes=1 + sum(round.draft_busy for round in rounds) / DRAFT_SECONDS / len(rounds),
        lost=measured.lost,
        faults=faults,
        verdict=verdict_of(printed / theory - 1, lost, bool(faults)),
    )


def verdict_of(deviation: float, lost: float, faulty: bool) -> Verdict:
    """What a speedup that is so far from theory's says of the harness, where waits were late, or the host took the
    cores, for such a share of the time. What the machine cannot explain is the harness's."""
    if faulty:
        return "wrong"
    if abs(deviation) <= EXACT:
        return "exact"
    if lost < QUIET or abs(deviation) > max(NEAR, EXACT + EXPLAINED * lost):
        return "wrong"
    return "near" if abs(deviation) <= NEAR else "busy"


def settled(verdicts: Sequence[Verdict], attempts: int) -> bool:
    """Whether the last of these is what there is to say, of at most so many attempts. One that comes out right is
    believed, one that comes out wrong if a second one does too."""
    return verdicts[-1] in ("exact", "near") or verdicts.count("wrong") == 2 or len(verdicts) >= attempts


def _faults(measured: Measured) -> Iterator[str]:
    """What cannot be, however busy the machine is."""
    comparison = compare(measured.run, measured.base)
    if not comparison.equal:
        yield f"output: {comparison.line}"
    for number, choice in enumerate(measured.choices, 1):
        script, rounds = measured.scripts[number - 1], measured.rounds[number - 1]
        for fault in (*_counts(measured.case, script, rounds, choice), *_times(measured.case, script, rounds, choice)):
            yield f"script {number}: {fault}"
    yield from _slow(measured)


def _counts(case: Case, script: Script, rounds: Sequence[Round], choice: Choice) -> Iterator[str]:
    """Tokens, passes and drafts are known. Branches may come too late, all or their last tokens: then there are more
    passes, or fewer drafts."""
    passes, expected = len(choice.accept_lengths), len(rounds) + 1
    judged = case.nodes * len(rounds) if case.tree else sum(round.judged for round in rounds)
    if case.branches and (passes > expected or sum((choice.drafted or [[0]])[0]) < judged):
        return
    accepted = sum(round.accepted for round in rounds)
    for what, wanted, came in (
        ("tokens", script.tokens, choice.new_tokens[0]),
        ("passes", expected, passes),
        ("judged drafts", judged, sum(choice.drafted[0]) if choice.drafted else None),
        ("accepted drafts", accepted, sum(choice.accepted[0]) if choice.accepted else None),
    ):
        if came != wanted:
            yield f"expected {wanted} {what}, got {came}"


def _times(case: Case, script: Script, rounds: Sequence[Round], choice: Choice) -> Iterator[str]:
    """Nothing takes less time than its waits, and no part more than the whole."""
    assert choice.prefill_time is not None and choice.verify_time is not None
    prefill, wall, verified = choice.prefill_time[0], choice.wall_time[0], choice.verify_time[0]
    parts = [verified, (choice.wait_time or [0.0])[0], (choice.draft_time or [0.0])[0] if case.ranks == 1 else 0.0]
    passes = len(rounds) * PASS_SECONDS
    for what, least, came in (
        ("the prompt takes", case.prefill_seconds(script), prefill),
        ("the answer takes", case.seconds(script), wall),
        ("its passes take", passes, verified),
        ("its rounds take", sum(parts), wall - prefill),
    ):
        if came < least - CLOCK * (1 + len(rounds)):
            yield f"{what} {least:.4f} seconds at least, got {came:.4f}"


def _slow(measured: Measured) -> Iterator[str]:
    """Rounds of one kind of which even the quickest are slow."""
    if measured.lost > BUSIEST:
        return
    kinds: dict[float, list[float]] = {}
    for seconds, excess in measured.excess:
        kinds.setdefault(round(seconds, 6), []).append(excess)
    for seconds, found in kinds.items():
        if len(found) >= FEWEST_ROUNDS and (quick := quantiles(found, n=10)[0]) > SLOWEST:
            yield f"rounds of {seconds * 1e3:.2f} ms take {quick * 1e3:.2f} ms more, even the quickest"


def _arithmetic(measured: Measured, printed: float) -> Iterator[str]:
    """The verdict's figure is the ratio of the sums that stand in the files."""
    rates = [
        sum(answer.choices[0].new_tokens[0] for answer in run.answers.values())
        / sum(answer.choices[0].wall_time[0] for answer in run.answers.values())
        for run in (measured.run, measured.base)
    ]
    if abs(printed / (rates[0] / rates[1]) - 1) > 1e-9:
        yield f"the files say a speedup of {rates[0] / rates[1]:.4f}, the verdict {printed:.4f}"
