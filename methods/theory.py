"""What acceptance and timing alone predict: closed forms, and a small simulation of two ranks. Pure functions.

Every drafted token is accepted with the same chance `alpha`, whatever came before it: the i.i.d. model of Leviathan et
al. 2023, "Fast Inference from Transformers via Speculative Decoding", section 3. `window` (gamma) is the number of
tokens drafted per round, and `c` a target pass's time in draft tokens. Speedups are over autoregressive decoding.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SCHEDULES = ("pearl", "draft-then-verify")
SCHEDULES_OF_PEARL = PAPER, WITHOUT_PRE_VERIFY, BRANCHING = "paper", "without-pre-verify", "branches"
ROUNDING = 1e-9  # draft tokens: one that arrives at the very moment of a ruling has arrived

Fate = Callable[[int], bool]  # of a place of an answer


class _Times(NamedTuple):
    """Seconds of a draft token, a target pass, a message; and what each row of a pass beyond its first adds."""

    draft: float
    verify: float
    link: float
    row: float = 0.0


def draft_then_verify_tokens(alpha: float, window: float) -> float:
    """Tokens per target pass: 1 + a + ... + a^window (Leviathan et al. 2023, equation 1)."""
    _check(alpha, window)
    return _geometric_sum(alpha, window + 1)


def draft_then_verify_speedup(alpha: float, window: float, c: float) -> float:
    """Leviathan et al. 2023, theorem 3.8. Their c is a draft token's time in target passes: the inverse of ours."""
    _check(alpha, window, c)
    return draft_then_verify_tokens(alpha, window) / (1 + window / c)


def pearl_tokens(alpha: float, window: float, hits: float = 0.0) -> float:
    """Tokens per target pass of PEARL (Liu et al. 2025), (1 - a^g) / ((1 - a) (1 + a - a^g)) for a window g.

    Its rounds are a Markov chain. With D empty a pass verifies one token, commits one token either way, and leaves D
    full with chance a. With D full, g - 1 tokens, it verifies g; it commits S = 1 + a + ... + a^(g-1) on average,
    since the correction of a rejected token counts and there is no bonus token, and leaves D full with chance a^g.
    So D is full in a / (1 + a - a^g) of all passes, and 1 + a - a^g = a + (1 - a) S.

    `hits`: the chance h that behind a rejection a whole window had been prepared (`--branches`). Then D is that window,
    g tokens, and the next pass verifies g + 1.
    """
    _check(alpha, window, hits=hits)
    rejected = pearl_rejections(alpha, window, hits)
    empty, full, prepared = (_geometric_sum(alpha, judged) for judged in (1, window, window + 1))
    return rejected * ((1 - hits) * empty + hits * prepared) + (1 - rejected) * full


def pearl_rejections(alpha: float, window: float, hits: float = 0.0) -> float:
    """The share r of PEARL's passes that reject: (1 - a^g) / (1 + a - a^g - h a (1 - a^g)).

    As many passes begin behind a rejection, with D empty or, in h of them, prepared; all others with D full. So
    r = r ((1 - h) (1 - a) + h (1 - a^(g+1))) + (1 - r) (1 - a^g), which is solved for r. At a = 1 none rejects, in the
    long run."""
    _check(alpha, window, hits=hits)
    lost = -math.expm1(window * math.log(alpha)) if alpha else 1.0  # 1 - a^g
    return lost / (alpha + lost - hits * alpha * lost)


def pearl_speedup(alpha: float, window: float, c: float, hits: float = 0.0) -> float:
    """A round takes the longer of one target pass and `window` draft tokens; branches are prepared in what is left."""
    _check(alpha, window, c)
    return pearl_tokens(alpha, window, hits) / max(window / c, 1)


def schedule_seconds(
    alpha: float, window: float, draft_seconds: float, verify_seconds: float, hits: float
) -> dict[str, float]:
    """Expected seconds per token of PEARL by each of its SCHEDULES_OF_PEARL. Without pre-verify a window is awaited
    behind each rejection, so that every pass that follows one verifies a whole window and the next one's first token;
    branches are the same but for the wait, where they hit, and the paper's pre-verify where they do not. With a window
    of 1 nothing is left behind a pass that rejects nothing either."""
    _check(alpha, window, verify_seconds / draft_seconds, hits)
    beside = max(verify_seconds, window * draft_seconds)
    waits, tokens = pearl_rejections(alpha, window, 1.0), pearl_tokens(alpha, window, 1.0)
    if window == 1:
        waits, tokens = 1.0, 1 + alpha
    seconds = (
        beside / pearl_tokens(alpha, window),
        (beside + waits * window * draft_seconds) / tokens,
        beside / pearl_tokens(alpha, window, hits),
    )
    return dict(zip(SCHEDULES_OF_PEARL, seconds, strict=True))


def sharing_seconds(one: float, other: float, slowdown: float) -> float:
    """How long two pieces of work take, of so many seconds each by itself, that begin together and read one memory.

    As long as both run, each takes `slowdown` times as long; what is left of the longer one then goes on alone. Where
    each reads at the rate of a core by itself, that is the rate of two such cores over that of the memory."""
    if not slowdown >= 1:
        raise ValueError(f"the slowdown of work beside other work is at least 1, not {slowdown}")
    return max(one, other) + (slowdown - 1) * min(one, other)


def run_length(alpha: float) -> float:
    """Tokens accepted between two rejections, the correction not counted: what PEARL's code calls accepted tokens."""
    _check(alpha)
    return alpha / (1 - alpha) if alpha < 1 else math.inf


def best_window(alpha: float, c: float) -> int:
    """The window at which draft-then-verify is fastest, the shortest of equals.

    The speedup is a concave function of the window over a linear one: it rises to one peak, then falls.
    """
    _check(alpha, c=c)
    if alpha == 1 and c > 1:
        raise ValueError(f"at alpha = 1 and c = {c} no window is best for draft-then-verify: a longer one is faster")
    speedup = draft_then_verify_speedup
    return next(g for g in itertools.count(1) if speedup(alpha, g + 1, c) <= speedup(alpha, g, c))


def break_even_c(alpha: float, hits: float = 0.0) -> float:
    """From c = 1 up to this c, PEARL with window c beats draft-then-verify with its best window; above, it loses.

    PEARL's window is c itself, a whole number or not; draft-then-verify's is whole. Never at either end: at alpha = 0
    only draft-then-verify pays for drafting, and at alpha = 1 PEARL reaches c, draft-then-verify only approaches it.
    Nor if all outcomes were prepared, `hits` of 1.
    """
    _check(alpha, hits=hits)
    if alpha in (0, 1) or hits == 1:
        return math.inf
    low, high = 1.0, 2.0
    while _pearl_wins(alpha, high, hits):
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _pearl_wins(alpha, middle, hits) else (low, middle)
    return low


@dataclass(frozen=True)
class Simulated:
    """One simulated run. Busy and waiting seconds are summed over the replicas, which wait for the last of them."""

    seconds: float
    tokens: int  # committed: each replica's last pass may bring more than its share
    passes: int
    draft_busy: float  # rejected tokens included
    draft_waited: float
    verify_busy: float
    verify_waited: float

    @property
    def tokens_per_second(self) -> float:
        """Of all replicas together."""
        return self.tokens / self.seconds


def simulate(
    schedule: str,
    alpha: float,
    window: int | None,
    draft_seconds: float,
    verify_seconds: float,
    link_seconds: float,
    tokens: int,
    seed: int,
    replicas: int = 1,
    pre_verify: bool = True,
    post_verify: bool = True,
    hits: float = 0.0,
) -> Simulated:
    """Decode `tokens` tokens, shared evenly by `replicas` pairs of a draft and a target rank.

    `schedule` is "pearl" or "draft-then-verify". The times are of one draft token, one target pass and one message
    either way; with a link of 0 the two ranks of draft-then-verify may as well be one device. A `window` of None is
    PEARL's free window: the draft goes on until it hears of a rejection, each token a message. `pre_verify` and
    `post_verify` switch off parts of PEARL with a number as window: without the first, the target waits for a window
    while D is empty; without the second, the draft waits while D is verified, and the pass yields the bonus token.
    Without both it is draft-then-verify. `hits`: the chance that a whole window had been prepared behind the outcome of
    a pass whose draft does not go on; preparing takes time that the draft would have waited.
    """
    _check(alpha, 1 if window is None else window, hits=hits)
    _check_simulation(schedule, _Times(draft_seconds, verify_seconds, link_seconds), tokens, replicas)
    pre_verify, post_verify = (pre_verify, post_verify) if schedule == "pearl" else (False, False)
    if window is None and not (pre_verify and post_verify):
        raise ValueError("only PEARL with pre-verify and post-verify has a free window (None): give a number")
    if hits and (window is None or schedule != "pearl"):
        raise ValueError("only PEARL with a number as window has branches that can hit")
    rng = random.Random(seed)
    times = _Times(draft_seconds, verify_seconds, link_seconds)

    def kept(place: int) -> bool:
        return rng.random() < alpha

    def hit(place: int) -> bool:
        return hits > 0 and rng.random() < hits

    pairs = []
    for pair in range(replicas):
        rounds = _fixed(times, window, kept, hit, pre_verify, post_verify) if window else _free(times, kept)
        pairs.append(_decode(rounds, (tokens + pair) // replicas))
    return _together(pairs, verify_seconds)


def known_rounds(
    kept: Fate,
    window: int,
    draft_seconds: float,
    verify_seconds: float,
    tokens: int,
    pre_verify: bool,
    post_verify: bool,
    hit: Fate = lambda place: False,
    row_seconds: float = 0.0,
    link_seconds: float = 0.0,
) -> list["Round"]:
    """The rounds of one answer of `tokens` tokens behind the prefill's, where it is known what becomes of each draft:
    what `simulate` draws by chance. `kept(place)`: whether the token that is drafted for that place of the answer, from
    0 on, will be kept; `hit(place)`: whether the target's own token there is one for which a window had been prepared.
    A pass takes `row_seconds` more for each row beyond its first."""
    times = _Times(draft_seconds, verify_seconds, link_seconds, row_seconds)
    return _decode(_fixed(times, window, kept, hit, pre_verify, post_verify), tokens)


class Round(NamedTuple):
    """From one ruling of the target to its next. `judged` drafted tokens, of which so many are `accepted`."""

    seconds: float
    draft_busy: float
    tokens: int
    judged: int
    accepted: int


def _fixed(times: _Times, window: int, kept: Fate, hit: Fate, pre_verify: bool, post_verify: bool) -> Iterator[Round]:
    """In lockstep: the draft begins a window when the target has asked for it, and a ruling needs the whole window.
    One that was prepared is there at once."""
    draft, verify, link, row = times
    left = place = 0  # tokens of D; of the answer
    while True:
        chain = left or (0 if pre_verify else window)
        before = chain - left  # drafted before the pass, during which the target waits
        beside = window if post_verify or chain == 0 else 0  # drafted during the pass, which rules on the first of them
        begin = before * draft + 2 * link if before else 0.0
        arrive = begin + beside * draft + 2 * link if beside else 0.0
        drafted = chain + min(beside, 1)  # and ruled on
        accepted, tokens = _accepted(kept, place, drafted, chain)
        seconds = max(begin + verify + chain * row, arrive)
        yield Round(seconds, (before + beside) * draft, tokens, drafted, accepted)
        goes_on = beside and accepted == drafted
        place += tokens
        left = beside - 1 if goes_on else window if hit(place - 1) else 0


def _accepted(kept: Fate, place: int, drafted: int, chain: int) -> tuple[int, int]:
    """Of so many drafted tokens, the first for this place, those that are accepted; and the tokens that a pass of the
    first `chain` of them commits."""
    accepted = next((n for n in range(drafted) if not kept(place + n)), drafted)
    return accepted, min(accepted, chain) + 1


def _free(times: _Times, kept: Fate) -> Iterator[Round]:
    """The draft never waits. A ruling takes what has arrived by the end of the pass, or waits for the first token.

    A token in progress is finished when the draft hears of a rejection: a forward cannot be called off.
    """
    draft, verify, link, _ = times
    left, waited, place = 0, link, 0
    begun = link  # when the draft began the first token that is not taken yet; the last ruling is time 0
    while True:
        seconds = max(verify, begun + draft + link)
        fresh = math.floor((seconds - link - begun) / draft + ROUNDING)
        stale = math.ceil((seconds + link - begun) / draft - ROUNDING)
        accepted, tokens = _accepted(kept, place, left + 1, left)
        yield Round(seconds, seconds - waited, tokens, left + 1, accepted)
        place += tokens
        begun += (fresh if accepted > left else stale) * draft - seconds
        left, waited = fresh - 1 if accepted > left else 0, 0.0


def _decode(rounds: Iterator[Round], tokens: int) -> list[Round]:
    """One pair's rounds until it has committed that many tokens."""
    done: list[Round] = []
    while tokens > 0:
        done.append(next(rounds))
        tokens -= done[-1].tokens
    return done


def _together(pairs: list[list[Round]], verify_seconds: float) -> Simulated:
    rounds = [one for pair in pairs for one in pair]
    seconds = max(sum(one.seconds for one in pair) for pair in pairs)
    draft_busy, verify_busy = sum(one.draft_busy for one in rounds), len(rounds) * verify_seconds
    return Simulated(
        seconds=seconds,
        tokens=sum(one.tokens for one in rounds),
        passes=len(rounds),
        draft_busy=draft_busy,
        draft_waited=len(pairs) * seconds - draft_busy,
        verify_busy=verify_busy,
        verify_waited=len(pairs) * seconds - verify_busy,
    )


def _pearl_wins(alpha: float, c: float, hits: float) -> bool:
    return pearl_speedup(alpha, c, c, hits) > draft_then_verify_speedup(alpha, best_window(alpha, c), c)


def _geometric_sum(ratio: float, terms: float) -> float:
    """1 + ratio + ... of that many terms, precise up to the limits 0 and 1; `terms` may lie between whole numbers."""
    if ratio in (0, 1):
        return terms if ratio else 1.0
    return -math.expm1(terms * math.log(ratio)) / (1 - ratio)


def _check(alpha: float, window: float = 1, c: float = 1, hits: float = 0) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the chance that a drafted token is accepted, from 0 to 1, not {alpha}")
    if not window >= 1:
        raise ValueError(f"the window is the number of tokens drafted per round, at least 1, not {window}")
    if not c > 0:
        raise ValueError(f"c is a target pass's time over a draft token's time, above 0, not {c}")
    if not 0 <= hits <= 1:
        raise ValueError(f"hits are the chance that an outcome was prepared, from 0 to 1, not {hits}")


def _check_simulation(schedule: str, times: _Times, tokens: int, replicas: int) -> None:
    draft, verify, link, _ = times
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule '{schedule}'; known: {', '.join(SCHEDULES)}")
    if not (draft > 0 and verify > 0 and link >= 0):
        raise ValueError(f"a token and a pass take more than 0 seconds, a message at least 0, not {times[:3]}")
    if not (tokens >= 1 and replicas >= 1):
        raise ValueError(f"tokens and replicas are at least 1, not {tokens} and {replicas}")
