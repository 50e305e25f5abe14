"""Prompt lookup's goldens: drafts of a text, and generations.

The published loop drafts token 100 where it has found nothing, which counts as no draft.
"""

from collections.abc import Iterator

from evaluation.proof.golden.agreement import Agreement, same
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import Compared, greedy
from evaluation.proof.golden.rooted import gone_through, passes, started
from methods.drafters.lookup import LookupDrafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Outcome

NGRAM, WINDOW = "max_ngram_size", "num_pred_tokens"


class Published(LookupDrafter):
    """With the published match, and its window."""

    def __init__(self, max_ngram: int, window: int) -> None:
        super().__init__(max_ngram, first=True)
        self.window = window

    def propose(self, room: int) -> TokenTree:
        return super().propose(min(room, self.window))


def check(golden: Golden) -> Iterator[Agreement]:
    """Drafts of every text and pass, accept lengths and outputs."""
    yield same("drafts of texts", _cases(golden))
    yield greedy(golden)
    settings: dict[str, Compared] = {}
    for number, trace in enumerate(golden.lines("traces.jsonl"), 1):
        found = settings.setdefault(f"{trace[NGRAM]}-grams, {trace[WINDOW]} tokens", Compared())
        drafter = Published(trace[NGRAM], trace[WINDOW])
        target = started(golden, drafter, trace["prompt"])
        gone = gone_through(f"line {number}", passes(target, drafter, trace), trace, trace["accept_length"], found)
        for (place, tree), draft in zip(gone, trace["drafts"], strict=True):
            found.trees.append((place, list(tree.tokens[1:]), draft))
    for setting, found in settings.items():
        yield from found.agreements(setting)


def _cases(golden: Golden) -> Iterator[tuple[str, object, object]]:
    for number, case in enumerate(golden.lines("lookup_cases.jsonl"), 1):
        *text, last = case["input_ids"]
        drafter = Published(case[NGRAM], case[WINDOW])
        drafter.begin(text, Sampling(), None)
        drafter.settle(Outcome([last], [0]))
        yield f"line {number}", drafter.propose(case[WINDOW]).tokens[1:], case["draft"]
