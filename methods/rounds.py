"""What a whole answer takes by PEARL, round by round: the first window behind a prompt or a rejection apart from the
others, and an answer that ends. Pure functions, as those of theory.py, whose model of drafts they share: each is kept
with the same chance `alpha` (Leviathan et al. 2023, section 3; PEARL: Liu et al., ICLR 2025).

Legend: F windows behind a rejection, W other windows, both from 1 on; R rows of a pass.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def answer_seconds(
    alpha: float, tokens: int, both_RW: Floats, before_F: Floats, pre_verify: bool, hits: float = 0.0
) -> Floats:
    """Mean seconds that PEARL needs behind the prefill for so many tokens, [F, W], by the chain of `pearl_tokens` in
    theory.py: nothing is drafted at first, nor behind a rejection.

    `alpha`: the chance that a drafted token is kept. both_RW: seconds of a pass of R rows beside a draft of W tokens;
    before_F: those that the first window takes before its pass, without `pre_verify`. `hits`: the chance that behind a
    rejection a first window had been prepared (`--branches`)."""
    windows = np.arange(1, both_RW.shape[1] + 1)
    first_FW, later_FW = np.meshgrid(windows, windows, indexing="ij")
    seconds_later_FW, judge_later = both_RW[later_FW - 1, later_FW - 1], _Judge(alpha, later_FW)
    # A window that is ready is judged whole, and the first token of the next one; else its first token alone is judged
    # by a pass of one row while it is drafted (pre-verify), or it is awaited.
    seconds_ready_FW, judge_ready = both_RW[first_FW, later_FW - 1], _Judge(alpha, first_FW + 1)
    alone_FW, before_FW = both_RW[0][first_FW - 1], before_F[first_FW - 1]
    seconds_first_FW, judge_first = both_RW[first_FW - 1, later_FW - 1], _Judge(alpha, first_FW)
    if not pre_verify:  # a window of one token leaves nothing to verify: the next one is awaited, too
        seconds_later_FW[:, 0], judge_later = before_F[0] + both_RW[1, 0], _Judge(alpha, np.maximum(later_FW, 2))
    # Seconds for n tokens: when nothing is drafted, when a first window is, when a later one is, behind a rejection.
    empty, first, later, rejected = (np.zeros((tokens + 1, *first_FW.shape)) for _ in range(4))
    for n in range(1, tokens + 1):
        ready_FW = seconds_ready_FW + judge_ready(n, rejected, later) if hits or not pre_verify else 0.0
        first[n] = seconds_first_FW + judge_first(n, rejected, later)
        verified_FW = alone_FW + alpha * first[n - 1] + (1 - alpha) * rejected[n - 1]
        empty[n] = verified_FW if pre_verify else before_FW + ready_FW
        rejected[n] = (1 - hits) * empty[n] + hits * ready_FW
        later[n] = seconds_later_FW + judge_later(n, rejected, later)
    return empty[tokens]


class _Judge:
    """A pass that judges `count_FW` drafted tokens: the mean seconds of what follows, called for n = 1, 2, ... tokens
    that are wanted."""

    def __init__(self, alpha: float, count_FW: npt.NDArray[np.int_]) -> None:
        self.alpha, self.count_FW = alpha, count_FW
        self.all_FW = alpha**count_FW
        self.rejected_FW = np.zeros(count_FW.shape)  # sum of alpha^k rejected[n - 1 - k] over the k kept ones

    def __call__(self, n: int, rejected: Floats, later: Floats) -> Floats:
        beyond_FW = _at(rejected, n - 1 - self.count_FW) * self.all_FW
        self.rejected_FW = rejected[n - 1] + self.alpha * self.rejected_FW - beyond_FW
        return (1 - self.alpha) * self.rejected_FW + self.all_FW * _at(later, n - self.count_FW)


def _at(seconds: Floats, n_FW: npt.NDArray[np.int_]) -> Floats:
    """[F, W]: of every pair of windows what it needs for its own n; nothing for none."""
    rows, columns = np.indices(n_FW.shape)
    found: Floats = seconds[np.maximum(n_FW, 0), rows, columns]
    return found
