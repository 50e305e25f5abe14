"""Categories of questions, and the groups in which they are judged."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


CONVERSATION = "multi-turn conversation"


MT_BENCH = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})


SPEC_BENCH_ORDER = (CONVERSATION, "translation", "summarization", "qa", "math_reasoning", "rag")


def _groups(categories: "pd.Series[str]") -> "pd.Series[str]":
    """Each row's group: MT-bench's categories are one where several of them occur, the others stand for themselves."""
    conversation = categories.isin(MT_BENCH)
    return categories.mask(conversation, CONVERSATION) if categories[conversation].nunique() > 1 else categories


def _belongs(category: str, group: str) -> bool:
    return group in (category, OVERALL) or (group == CONVERSATION and category in MT_BENCH)


OVERALL = "overall"
