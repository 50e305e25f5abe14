"""SAM-Decoding: the automaton against brute force, how much is copied and from where, and the drafter before others."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from methods import BASELINE, DRAFTERS, get_method
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_drafter, build_method
from methods.drafters.either import Either
from methods.drafters.sam import SamDrafter
from methods.drafters.suffix_automaton import SuffixAutomaton
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.target import Pearl
from methods.speculative import Speculative
from methods.target import Outcome
from tests.host_time import HOST_LIMIT, usual

CPU = [torch.device("cpu")]
GREEDY = Sampling()
BEHIND = [name for name, spec in DRAFTERS.items() if spec.parts is not None and spec.parts[0].name == "sam"]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1, 5], [(7 * i) % 40 + 1 for i in range(80)], [8, 8, 8]]
pytestmark = pytest.mark.usefixtures("one_thread")


def occurrence(text: list[int], more: list[int]) -> tuple[int, int]:
    """The longest suffix of both that is in the text before, and the index behind its first occurrence."""
    whole = [*text, *more]
    for length in range(len(whole), 0, -1):
        for end in range(length, len(text) + bool(more)):
            if text[end - length : end] == whole[-length:]:
                return length, end
    return 0, 0


@pytest.mark.parametrize("letters", [1, 2, 3, 6])
def test_the_automaton_knows_the_longest_suffix_that_has_occurred(letters: int) -> None:
    drawn = random.Random(letters)
    for _ in range(150):
        text: list[int] = []
        first, latest = SuffixAutomaton(latest=False), SuffixAutomaton(latest=True)
        for _ in range(10):
            more = [drawn.randrange(letters) for _ in range(drawn.randint(1, 4))]
            expected = occurrence(text, more)
            assert first.match(more) == expected
            length, end = latest.match(more)
            assert (
                length == expected[0] and text[end - length : end] == [*text, *more][len(text) + len(more) - length :]
            )
            for automaton in (first, latest):
                automaton.extend(more)
            text += more
            assert first.match() == occurrence(text, []) and first.states <= 2 * len(text)
            assert latest.match()[1] < len(text)


def test_the_latest_occurrence_is_where_the_match_was_last() -> None:
    for latest, end in ((False, 2), (True, 5)):
        text = SuffixAutomaton(latest)
        text.extend([1, 2, 3, 1, 2, 4, 1, 2])
        assert text.match() == (2, end)


def settled(drafter: SamDrafter, prompt: list[int], *tokens: int) -> SamDrafter:
    drafter.begin(prompt, GREEDY, None)
    drafter.settle(Outcome([*tokens], [0]))
    return drafter


def test_the_longer_the_match_the_more_is_copied() -> None:
    text = [*range(10, 40), 99]
    for matched in (1, 2, 3, 5):
        *prompt, last = [*text, *text[:matched]]
        for share, longest, most in ((4.0, None, 4 * matched), (1.5, None, int(1.5 * matched)), (4.0, 6, 6)):
            draft = settled(SamDrafter(1, share, longest, False), prompt, last).draft(100)
            assert draft.tokens_G == text[matched : matched + min(most, 4 * matched)] and draft.q_GV is None
            few = settled(SamDrafter(1, share, longest, False), prompt, last).draft(1)
            assert few.tokens_G == text[matched : matched + 1]
        assert bool(settled(SamDrafter(3, 4.0, None, False), prompt, last).draft(9).tokens_G) == (matched >= 3)


def test_nothing_is_copied_where_nothing_has_occurred() -> None:
    assert settled(SamDrafter(1, 4.0, None, False), [1, 2, 3], 4).draft(9).tokens_G == []
    assert settled(SamDrafter(1, 4.0, None, False), [1], 4).draft(0).tokens_G == []


@pytest.mark.parametrize("latest", [False, True])
def test_behind_the_end_of_the_text_a_period_goes_on(latest: bool) -> None:
    draft = settled(SamDrafter(1, 4.0, None, latest), [7, 1, 2, 3, 1, 2], 3).draft(8)
    assert draft.tokens_G == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_draft_in_parts_is_the_same_and_ends_where_it_would() -> None:
    prompt = [*range(10, 40), 10]
    whole = settled(SamDrafter(1, 4.0, None, False), prompt, 11).draft(100).tokens_G
    parts = settled(SamDrafter(1, 4.0, None, False), prompt, 11)
    assert [*parts.draft(3).tokens_G, *parts.draft(2).tokens_G, *parts.draft(9).tokens_G] == whole and len(whole) == 8
    parts.confirm(Outcome(whole[:3], [0], leaf_kept=True))  # now five have matched
    assert parts.drafted == whole[3:] and parts.draft(100).tokens_G == [*range(20, 35)]


def test_behind_the_drafts_of_another_it_copies_where_the_text_matches() -> None:
    drafter = settled(SamDrafter(2, 4.0, None, False), [*range(10, 40), 10, 11], 12)
    drafter.take([13, 14])
    assert drafter.draft(3).tokens_G == [15, 16, 17]
    drafter = settled(SamDrafter(2, 4.0, None, False), [*range(10, 40), 10, 11], 12)
    drafter.take([99, 20, 21])  # a match of drafts alone
    assert drafter.draft(3).tokens_G == []


# before another drafter -----------------------------------------------------------------------------------------------


def alone(models: Models, prompt: list[int]) -> list[int]:
    """The target's own tokens."""
    return generate(build_method(get_method(BASELINE), models, {}), prompt, GREEDY, Limits(frozenset(), 60)).token_ids


@pytest.fixture(scope="module")
def models(tiny: Path, weights: dict[str, Path]) -> Models:
    return Models(str(tiny), None, "bfloat16", CPU, drafts={kind: str(path) for kind, path in weights.items()})


def test_it_comes_before_every_other_drafter() -> None:
    others = [name for name, spec in DRAFTERS.items() if spec.parts is None and name != "sam"]
    assert [f"sam-{name}" for name in others] == BEHIND


@pytest.mark.parametrize("name", BEHIND)
def test_output_is_the_targets_own_and_both_draft(models: Models, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = get_method(f"{name}@matched=1")
    method = build_method(spec, models.of_kind(spec.weights), {})
    assert isinstance(method, Speculative) and isinstance(method.drafter, Either)
    copied: list[int] = []
    propose = method.drafter.first.propose

    def counted(room: int) -> TokenTree:
        tree = propose(room)
        copied.append(tree.drafted)
        return tree

    monkeypatch.setattr(method.drafter.first, "propose", counted)
    for prompt in PROMPTS:
        copied.clear()
        got = generate(method, prompt, GREEDY, Limits(frozenset(), 60))
        assert got.token_ids == alone(models, prompt) and 0 in copied and any(copied)


@pytest.mark.parametrize("source", ["first-2", "int8", "int4"])
def test_a_draft_in_the_targets_cache_leaves_what_was_copied_there(tiny: Path, source: str) -> None:
    """It would read the copied tokens again, and put its own keys and values in place of the target's."""
    ours = Models(str(tiny), source, "bfloat16", CPU)
    for prompt in PROMPTS:
        method = build_method(get_method("sam-model@matched=1@alpha=9"), ours, {})
        assert generate(method, prompt, GREEDY, Limits(frozenset(), 60)).token_ids == alone(ours, prompt)


def test_the_size_that_is_sought_is_that_of_trees(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of copied chains; and once found it is asked of the other drafter alone."""
    method = build_method(get_method("sam-recycling@matched=1"), models, {})
    assert isinstance(method, Speculative) and isinstance(method.drafter, Either) and method.sought
    judged: list[TokenTree] = []
    monkeypatch.setattr(method.sought, "judged", lambda tree, *_: judged.append(tree))
    generate(method, PROMPTS[1], GREEDY, Limits(frozenset(), 60))
    assert judged and not any(tree.is_chain for tree in judged)
    method.drafter.limit(3, 2)
    assert (method.drafter.wanted(9), method.drafter.other.wanted(9), method.drafter.other.levels) == (9, 3, 2)


@pytest.mark.parametrize("name", ["sam", "recycling", "rest", "sam-recycling", "sam-eagle3", "sam-rest"])
def test_the_order_of_questions_does_not_matter(models: Models, name: str) -> None:
    found = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 2, 0]):
        spec = get_method(f"{name}@nodes=7" if "nodes" in get_method(name).options else name)
        method = build_method(spec, models.of_kind(spec.weights), {})
        answers = {i: generate(method, PROMPTS[i], GREEDY, Limits(frozenset(), 40)) for i in order}
        found.append([(answers[i].drafted, answers[i].accept_lengths) for i in range(3)])
    assert found[0] == found[1] == found[2]


def test_pearl_drafts_by_both_in_one_chain(models: Models) -> None:
    spec = get_method("pearl-sam-model@matched=1@gamma=4")
    theirs = Models(models.target_source, models.drafts["model"], models.dtype, CPU, drafts_only=True)
    drafter = build_chain_drafter(spec, theirs, {})
    with local_draft_rank({spec.name: drafter}) as (link, ready):
        models.link = link
        method = build_method(spec, models, {})
        assert isinstance(method, Pearl)
        method.meet(ready[spec.name])
        got = generate(method, PROMPTS[1], GREEDY, Limits(frozenset(), 60))
    assert got.token_ids == alone(models, PROMPTS[1]) and max(got.drafted) > 1


def test_a_round_costs_little_behind_4096_tokens() -> None:
    """Less than 3% of a pass: of processor time, as others may share the machine."""
    drawn = random.Random(0)
    phrases = [[drawn.randrange(49152) for _ in range(12)] for _ in range(60)]
    text = [token for _ in range(400) for token in drawn.choice(phrases)]

    def rounds() -> Iterator[float]:
        drafter = settled(SamDrafter(1, 4.0, None, False), text[:4096], text[4096])
        for place in range(4097, 4097 + 60 * 4, 4):
            begin = time.thread_time()
            drafter.draft(15)
            drafter.settle(Outcome(text[place : place + 4], [0]))
            yield time.thread_time() - begin

    assert usual(rounds) < HOST_LIMIT


def test_options_reach_the_drafter() -> None:
    none = Models("", None, "float32", [])
    drafter = build_drafter(get_method("sam@matched=3@alpha=1.5@longest=9@occurrence=latest"), none, {})
    assert isinstance(drafter, SamDrafter)
    assert (drafter.least, drafter.share, drafter.longest, drafter.latest) == (3, 1.5, 9, True)
    drafter = build_drafter(get_method("sam"), none, {})
    assert isinstance(drafter, SamDrafter) and drafter.longest is None
