"""PEARL's `--schedule auto`: what is chosen by known times. That it settles and changes no output is tested in
test_pearl.py."""

import pytest

from methods.pearl.schedule import BRANCHES, AutoSchedule, Parts
from methods.theory import BRANCHING, PAPER, WITHOUT_PRE_VERIFY, schedule_seconds


def after_warm_up(
    alpha: float, draft: float, verify: float, hits: float, window: int, branches: int = BRANCHES
) -> AutoSchedule:
    """What is chosen behind three answers with these times, of 1000 judged tokens."""
    schedule = AutoSchedule(branches)
    for answer in range(3):
        assert (schedule.chosen is None) is (answer < (3 if branches else 2))
        schedule.drafted(window, draft * window)
        schedule.drafted(0, 0.0)  # the context was full: says nothing
        rejected = round(1000 * (1 - alpha))
        schedule.verified(verify, 1000 - rejected, False, None)
        for i in range(rejected):
            hit = None if schedule.parts.branches == 0 else i < hits * rejected
            schedule.verified(verify, 0, True, hit)
        schedule.answered(window)
    return schedule


@pytest.mark.parametrize(
    "alpha, draft, verify, hits, window, chosen",
    [
        (0.9, 1.0, 4.0, 0.0, 4, PAPER),  # drafting as slow as verifying: nothing is to be waited for
        (0.5, 1.0, 20.0, 0.0, 4, WITHOUT_PRE_VERIFY),  # a head: drafting takes hardly anything
        (0.7, 1.0, 6.0, 0.95, 4, BRANCHING),
    ],
)
def test_the_schedule_with_the_shortest_expected_time_is_chosen(
    alpha: float, draft: float, verify: float, hits: float, window: int, chosen: str
) -> None:
    seconds = schedule_seconds(alpha, window, draft, verify, hits)
    assert min(seconds, key=lambda name: seconds[name]) == chosen
    assert after_warm_up(alpha, draft, verify, hits, window).chosen == chosen


def test_where_no_branches_can_be_prepared_two_schedules_are_tried() -> None:
    schedule = AutoSchedule(0)
    tried = []
    for _ in range(2):
        tried.append(schedule.parts)
        schedule.answered(3)  # an answer of one token: there was no round
    assert tried == [Parts(True, 0), Parts(False, 0)] and schedule.chosen is None
    assert after_warm_up(0.7, 1.0, 6.0, 0.95, 4, branches=0).chosen in (PAPER, WITHOUT_PRE_VERIFY)
