"""Lookahead decoding: its window as a tree, its pool, its seed, and what it keeps."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.proof.audit import auditing
from evaluation.proof.tiny_pair import enumerate_method
from methods import get_method
from methods.base import Generation, Limits, generate
from methods.build import build_method
from methods.drafters.lookahead import Lookahead, LookaheadDrafter, NgramPool, Window, WindowSize, fitting
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.speculative import Speculative
from methods.target import Outcome
from tests.goldens import GOLDENS
from tests.host_time import HOST_LIMIT, usual

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [3, 1, 4, 1, 5, 9, 2]
TEXT = "lookahead@columns=3@ngram=3@guesses=4@pool=text"
NUCLEUS = Sampling(1.0, top_p=0.95)


@pytest.fixture
def target(tiny: Path) -> Models:
    return Models(str(tiny), None, "float32", [torch.device("cpu")])


def answered(models: Models, name: str, prompt: list[int], tokens: int, sampling: Sampling) -> Generation:
    return generate(build_method(get_method(name), models, {}), prompt, sampling, Limits(frozenset(), tokens))


def sees(row: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the token of a row and column sees another one (Fu et al. 2024, figure 2): of the first row all columns
    up to its own, and of the others its own column, down to itself."""
    (level, column), (below, at) = row, other
    return at <= column if below == 0 else at == column and below <= level


def said(lookahead: Lookahead, tree: TokenTree) -> list[int]:
    """By a model that says 7 t + 1 behind a token t."""
    return ((7 * tree.tokens_N[lookahead.newest] + 1) % 50).tolist()


@pytest.mark.parametrize("columns, length", [(1, 2), (1, 4), (4, 2), (4, 3), (7, 5)])
def test_the_window_sees_as_in_the_paper(columns: int, length: int) -> None:
    lookahead = Lookahead(columns, length, NgramPool(3))
    lookahead.begin(PROMPT, Sampling().generator("window"))
    for passed in range(length + 3):
        guesses = lookahead.guesses(5)
        tree = lookahead.tree([5], guesses, 10**6)
        judged = tree.judged or 0
        assert judged == len(TokenTree.of(5, guesses).tokens_N) and tree.drafted == judged - 1
        width = columns + max(0, length - 2 - passed)  # a column is dropped by each pass that adds a row
        rows = [[5, *lookahead.rows[0]], *lookahead.rows[1:]]
        assert len(rows) == min(passed + 1, length - 1) and all(len(row) == width for row in rows)
        places = [(level, column) for level, row in enumerate(rows) for column in range(len(row))]
        nodes = [0, *range(judged, len(tree.tokens_N))]
        assert tree.tokens_N[nodes].tolist() == [token for row in rows for token in row]
        assert tree.depth_N[nodes].tolist() == [level + column for level, column in places]
        assert tree.visible_NN[nodes][:, nodes].tolist() == [[sees(one, other) for other in places] for one in places]
        assert not tree.visible_NN[nodes, 1:judged].any()
        lookahead.learn(said(lookahead, tree))
    assert lookahead.full


def test_columns_become_ngrams_of_what_the_model_says() -> None:
    """This one looks at the last token alone, so that each n-gram is what it would say."""
    lookahead = Lookahead(4, 4, NgramPool(3))
    lookahead.begin(PROMPT, Sampling().generator("window"))
    for _ in range(4):
        firsts = [11, *lookahead.rows[0]]
        lookahead.learn(said(lookahead, lookahead.tree([11], lookahead.guesses(11), 10**6)))
    for first in firsts[1:]:  # the first column has the text's token, where this model may have said another
        ngram = [first]
        for _ in range(3):
            ngram.append((7 * ngram[-1] + 1) % 50)
        assert tuple(ngram[1:]) in lookahead.guesses(first)


def test_the_pool_keeps_those_seen_last() -> None:
    numbers, pool = random.Random(0), NgramPool(3)
    seen: dict[int, list[tuple[int, ...]]] = {}
    for _ in range(400):
        first, ngram = numbers.randrange(3), (numbers.randrange(5), 0)
        pool.add(first, ngram)
        seen[first] = [other for other in seen.get(first, []) if other != ngram] + [ngram]
        assert pool.behind(first) == seen[first][-3:]
    assert pool.behind(9) == []


def test_a_whole_guess_yields_n_tokens() -> None:
    """The published code has at most N - 1 of a pass: see the golden, whose outputs these are."""
    models = Models(str(GOLDENS / "target"), None, "float32", [torch.device("cpu")])
    prompt = [1, 77, 84, 90, 45, 66, 61, 85, 13, 127, 50, 57]
    plain, ours = (
        answered(models, name, prompt, 100, Sampling())
        for name in ("autoregressive", "lookahead@columns=15@ngram=5@guesses=15")
    )
    assert ours.token_ids == plain.token_ids
    assert ours.accept_lengths.count(5) > 3 and max(ours.accept_lengths) == 5
    assert len(ours.accept_lengths) < 50, "the published code takes 50 passes"


def proposals(models: Models, name: str, prompts: list[list[int]], sampling: Sampling) -> list[list[Any]]:
    """Every tree that a method proposes for each prompt, one after the other."""
    method = build_method(get_method(name), models, {})
    assert isinstance(method, Speculative)
    found: list[list[Any]] = []
    propose = method.drafter.propose

    def recorded(room: int) -> TokenTree:
        tree = propose(room)
        found[-1].append((tree.tokens_N.tolist(), tree.parents_N.tolist(), tree.judged))
        return tree

    method.drafter.propose = recorded  # type: ignore[method-assign]
    for prompt in prompts:
        found.append([])
        generate(method, prompt, sampling, Limits(frozenset(), 30))
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_repeat_with_the_seed_whatever_was_answered_before(target: Models, temperature: float) -> None:
    """Nor does the global generator matter."""
    prompts = [PROMPT, [7, 7, 8], [(5 * i) % 90 + 1 for i in range(50)]]
    sampling = Sampling(temperature, seed=4)
    in_order = proposals(target, TEXT, prompts, sampling)
    random.seed(5)
    torch.manual_seed(5)
    assert proposals(target, TEXT, prompts[::-1], sampling) == in_order[::-1]
    other = proposals(target, TEXT, prompts, Sampling(temperature, seed=5))
    assert all(one[0] != two[0] for one, two in zip(in_order[::2], other[::2], strict=True))


@pytest.mark.parametrize("room", range(30))
def test_a_tree_fits_the_room(room: int) -> None:
    """The window is scored as a whole or not at all, and then it stays as it is; guesses are cut."""
    lookahead = Lookahead(3, 3, NgramPool(4))
    lookahead.begin(PROMPT, Sampling().generator("window"))
    for _ in range(3):
        lookahead.learn(said(lookahead, lookahead.tree([11], [], 100)))
    lookahead.pool.add(11, (1, 2))
    rows = [list(row) for row in lookahead.rows]
    whole = lookahead.tree([11], lookahead.guesses(11), 100)
    tree = lookahead.tree([11], lookahead.guesses(11), room)
    nodes = len(tree.tokens_N)
    assert nodes == (len(whole.tokens_N) if room >= len(whole.tokens_N) - 1 else min(whole.judged or 0, room + 1))
    assert tree.tokens_N.equal(whole.tokens_N[:nodes]) and tree.parents_N.equal(whole.parents_N[:nodes])
    assert lookahead.rows == rows and bool(lookahead.newest) == (nodes == len(whole.tokens_N))


def test_a_tree_may_begin_with_text_that_the_model_has_not_read() -> None:
    lookahead = Lookahead(3, 3, NgramPool(4))
    lookahead.begin(PROMPT, Sampling().generator("window"))
    one, three = (lookahead.tree(text, [(1, 2), (1, 3)], 100) for text in ([11], [8, 9, 11]))
    assert three.tokens_N.tolist() == [8, 9, *one.tokens_N.tolist()] and three.judged == (one.judged or 0) + 2
    assert three.parents_N.tolist() == [-1, 0, *(parent + 2 for parent in one.parents_N.tolist())]


@pytest.mark.parametrize("name", ["lookahead@pool=text", "lookahead@columns=1@pool=text"])
def test_guesses_leave_the_targets_distribution(name: str) -> None:
    found = enumerate_method(get_method(name), {}, NUCLEUS)
    assert found.difference < 1e-12 and found.answers == 22
    assert found.runs > enumerate_method(get_method("autoregressive"), {}, NUCLEUS).runs, "else nothing was guessed"


def broken_decisions(models: Models) -> Iterator[int]:
    """Of audited runs: passes, guesses that were tried, and decisions that break the rule."""
    method = build_method(get_method(TEXT), models, {})
    with auditing() as found:
        for seed in range(20):
            generate(method, PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), 40))
    yield from (found.passes, found.tried, len(found.broken))


def test_decisions_beside_a_window_follow_the_rule(target: Models) -> None:
    passes, tried, broken = broken_decisions(target)
    assert passes > 300 and tried > 100 and broken == 0


def test_keeping_a_node_of_the_window_is_caught(target: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenTree, "drafted", property(lambda tree: len(tree.tokens_N) - 1))
    assert list(broken_decisions(target))[-1] > 0


def host_seconds(logits_NV: torch.Tensor) -> Iterator[float]:
    """Of rounds behind a context of 4096 tokens."""
    drafter = LookaheadDrafter(Window(WindowSize(7, 5, 7)), from_text=True)
    drafter.begin([(7 * i * i) % 900 for i in range(4096)], Sampling(), None)
    drafter.settle(Outcome([900], [0]))
    for number in range(60):
        begin = time.thread_time()
        tree = drafter.propose(1000)
        proposed = time.thread_time()
        outcome = Outcome([number % 9, number], [0], logits_NV=logits_NV[: len(tree.tokens_N)])
        settle = time.thread_time()
        drafter.settle(outcome)
        yield time.thread_time() - settle + proposed - begin


def test_a_round_takes_the_host_little_time() -> None:
    logits_NV = torch.randn(64, 49152, generator=torch.Generator().manual_seed(0))
    assert usual(lambda: host_seconds(logits_NV)) < HOST_LIMIT


@pytest.mark.parametrize(
    "rows, given, expected",
    [
        (64, {}, (7, 5, 8)),  # W and N of the paper for a model of 7B
        (32, {}, (3, 5, 4)),
        (16, {}, (3, 3, 4)),
        (8, {}, (1, 3, 2)),
        (1, {}, (1, 3, 1)),
        (8, {"ngram": 2}, (3, 2, 4)),
        (8, {"columns": 2, "guesses": 9}, (2, 3, 9)),
    ],
)
def test_a_window_fits_into_the_rows_that_cost_little(
    rows: int, given: dict[str, int], expected: tuple[int, int, int]
) -> None:
    size = fitting(rows, **given)
    assert tuple(size) == expected
    if rows >= 8 and "guesses" not in given:  # below that not even the smallest does
        assert 1 + (size.columns + size.guesses) * (size.ngram - 1) <= rows


def test_what_was_chosen_is_told_and_what_was_given_stays(target: Models) -> None:
    def settled(name: str) -> dict[str, int | str]:
        method = build_method(get_method(name), target, {})
        assert isinstance(method, Speculative)
        return method.settled()

    assert settled("lookahead") == settled("sam-lookahead") == {"columns": 1, "ngram": 3, "guesses": 2}
    assert settled("lookahead@columns=4") == {"ngram": 3, "guesses": 1}


def test_a_window_that_no_context_has_room_for_costs_nothing(target: Models) -> None:
    limits = Limits(frozenset(), 12)
    method = build_method(get_method("lookahead@columns=1000000000@ngram=1000000000"), target, {})
    expected = generate(build_method(get_method("autoregressive"), target, {}), PROMPT, Sampling(), limits)
    assert generate(method, PROMPT, Sampling(), limits).token_ids == expected.token_ids
