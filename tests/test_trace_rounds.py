"""A round's time by hand."""

import pytest
from trace_rounds import RoundSeconds, rounds

from evaluation.answers.trace import TracedSpan


def test_a_round_is_what_one_rank_or_the_other_does_and_what_nobody_does() -> None:
    spans = [
        TracedSpan("draft", "draft", 0.5, 6.0),
        TracedSpan("target", "verify", 1.0, 5.0),
        TracedSpan("target", "wait", 5.0, 7.0),
        TracedSpan("target", "verify", 7.0, 8.0),
        TracedSpan("draft", "draft", 9.0, 10.0),
        TracedSpan("target", "verify", 9.5, 12.0),
        TracedSpan("target", "verify", 12.5, 13.0),
    ]
    assert rounds(spans) == [pytest.approx(RoundSeconds(8.5, 5.5, 5.0, 2.0, 2.0))]


def test_draft_then_verify_is_cut_at_its_passes() -> None:
    spans = [
        TracedSpan("target", "draft", 0.0, 1.0),
        TracedSpan("target", "verify", 1.0, 3.0),
        TracedSpan("target", "draft", 3.25, 5.0),
        TracedSpan("target", "verify", 5.0, 7.0),
    ]
    assert rounds(spans) == [pytest.approx(RoundSeconds(4.0, 1.75, 2.0, 0.0, 0.25))]
