"""What the theory asks of a run, as measured: acceptance rate, window, c. And what it then predicts.

What the files of a run cannot tell is not guessed: `LeftOut` says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from evaluation.answers.record import Choice
from evaluation.judge import stats
from evaluation.judge.acceptance import Drafts
from evaluation.judge.groups import LeftOut, Result
from evaluation.judge.windows import typical_windows
from methods import theory
from methods.pearl.window import Windows

PEARL, DRAFT_THEN_VERIFY = theory.SCHEDULES
NOTHING, PRE_VERIFY, POST_VERIFY, BOTH = "nothing", "pre-verify", "post-verify", "both"  # what PEARL can be without
SIMULATED_TOKENS = 20_000
SEED = 0


@dataclass(frozen=True)
class Pace:
    """Mean times of a run's parts, and how much of the draft was accepted. `window`: None where it is free. `hits`: how
    often PEARL's branches had what was needed."""

    alpha: float
    window: int | None
    draft_seconds: float  # of a drafted token
    verify_seconds: float  # of a target pass, prefill not counted
    hits: float = 0.0

    @property
    def c(self) -> float:
        """A target pass's time in draft tokens."""
        return self.verify_seconds / self.draft_seconds


def schedule(result: Result) -> str | None:
    """Whether the run drafts while it verifies or before; None where no model drafts a chain, or it is a reference."""
    header = result.header
    if header.draft is None or header.shape != "chain" or header.loop not in ("turns", "pearl"):
        return None
    return PEARL if header.loop == "pearl" and result.without != BOTH else DRAFT_THEN_VERIFY


def window(result: Result) -> int | None:
    """Tokens drafted per round, as given or as the run has settled on; where that has changed, as its passes show, but
    for those behind a rejection. None where it is free."""
    gamma = result.options["gamma"]
    if gamma == "auto":
        gamma = (result.header.settled or {}).get("gamma", gamma)
    if gamma == "auto":
        raise LeftOut(f"the header of {result.method} does not say on which window it has settled")
    if isinstance(gamma, list):
        middle = round(fmean(map(int, gamma)))
        return typical_windows(result.choices, result.without not in (PRE_VERIFY, BOTH), Windows(middle, middle)).later
    return None if gamma == "free" else int(gamma)


def rounds(choices: Sequence[Choice]) -> int:
    """Target passes behind the prefill, which is the first of each turn."""
    return sum(max(steps - 1, 0) for choice in choices for steps in choice.decoding_steps or [])


def pace(results: Sequence[Result]) -> Pace:
    """Of one run, or of several as if they were one, such as those of a sweep: `window` is the first's then."""
    choices = [choice for result in results for choice in result.choices]
    if any(c.draft_time is None or c.verify_time is None or c.proposed is None for c in choices):
        raise LeftOut(f"the files of {results[0].method} do not record the time of drafting and verifying")
    drafting, verifying = (sum(sum(getattr(c, key)) for c in choices) for key in ("draft_time", "verify_time"))
    passes, tokens = rounds(choices), sum(sum(choice.proposed or []) for choice in choices)
    alpha = Drafts.of(choices).acceptance_rate
    if alpha is None or not (passes and tokens and drafting):
        raise LeftOut(f"{results[0].method} drafted nothing, or its files do not record what was accepted")
    hits = stats.hit_rate(choices) or 0.0
    return Pace(alpha, window(results[0]), drafting / tokens, verifying / passes, hits)


def predicted_speedup(result: Result, measured: Pace) -> float:
    """What the i.i.d. model gives at the measured acceptance rate, window and c: in closed form where there is one."""
    alpha, size, c = measured.alpha, measured.window, measured.c
    if schedule(result) == DRAFT_THEN_VERIFY and size is not None and not measured.hits:
        return theory.draft_then_verify_speedup(alpha, size, c)
    left_out = result.without
    if left_out == NOTHING and size is not None:
        return theory.pearl_speedup(alpha, size, c, measured.hits)
    times = measured.draft_seconds, measured.verify_seconds, 0.0
    parts = {"pre_verify": left_out not in (PRE_VERIFY, BOTH), "post_verify": left_out not in (POST_VERIFY, BOTH)}
    simulated = theory.simulate(PEARL, alpha, size, *times, SIMULATED_TOKENS, SEED, **parts, hits=measured.hits)
    return simulated.tokens_per_second * measured.verify_seconds


def predicted_over_baseline(result: Result, measured: Pace) -> float:
    """The same over the baseline as it was measured, whose passes may take another time than the run's own."""
    return predicted_speedup(result, measured) / (measured.verify_seconds * baseline_rate(result))


def predicted_rate(result: Result, measured: Pace) -> Callable[[float], float] | None:
    """Tokens per second by the window, at the measured acceptance rate, c and hits; None where there is no closed
    form."""
    alpha, c = measured.alpha, measured.c
    if schedule(result) == DRAFT_THEN_VERIFY and not measured.hits:
        return lambda size: theory.draft_then_verify_speedup(alpha, size, c) / measured.verify_seconds
    if result.without == NOTHING:
        return lambda size: theory.pearl_speedup(alpha, size, c, measured.hits) / measured.verify_seconds
    return None


@cache
def decode_speedup(result: Result) -> stats.Speedup:
    """The measured speedup with prefill left out of both sides, which the theory does not know, and its interval."""
    if result.base is None:
        raise LeftOut(f"{result.method} has no baseline beside it")
    pairs = result.pairs
    if stats.decode_speedup(pairs) is None:
        raise LeftOut(f"the files of {result.method} or of its baseline do not record the time of prefill")
    columns = {"tokens": "decode_tokens", "time": "decode_time"}
    columns |= {f"{name}_base": f"{column}_base" for name, column in columns.items()}
    return stats.speedup(pairs.assign(**{name: pairs[column] for name, column in columns.items()}))


def baseline_rate(result: Result) -> float:
    """Tokens per second of the baseline, prefill left out."""
    return float(result.pairs["decode_tokens_base"].sum() / result.pairs["decode_time_base"].sum())


@dataclass(frozen=True)
class Rate:
    """Tokens per second, prefill left out, with the interval of the speedup times the baseline's rate."""

    tokens_per_second: float
    low: float | None
    high: float | None
    baseline: float


def decode_rate(result: Result) -> Rate:
    """The run's speedup and the interval of that, times its own baseline's rate."""
    speedup, base = decode_speedup(result), baseline_rate(result)
    low, high = (None if end is None else end * base for end in (speedup.low, speedup.high))
    return Rate(speedup.ratio * base, low, high, base)


def advantage(alpha: float, c: float) -> float:
    """PEARL's speedup with a window as long as a pass, over draft-then-verify's with its best."""
    best = theory.draft_then_verify_speedup(alpha, theory.best_window(alpha, c), c)
    return theory.pearl_speedup(alpha, max(c, 1.0), c) / best
