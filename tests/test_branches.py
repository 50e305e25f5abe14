"""PEARL's branches: what drafters prepare, for which outcomes, in which time; and the output is the target's own."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.launch.config import parse
from evaluation.launch.flags import all_options
from methods import BASELINE, METHODS, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters.base import BranchingDrafter, Draft, Place
from methods.engine.link import Link, LinkError, LocalLink
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.pearl.branches import TOGETHER, Preparation, Prospect, Spare, prepare, prospects
from methods.pearl.draft import local_draft_rank
from methods.pearl.messages import Branch, Order, Prepare, Prepared, Ready, Window
from methods.pearl.target import Pearl
from methods.target import Outcome, Target
from tests.test_pearl import GREEDY, PROMPTS, with_weights

pytestmark = pytest.mark.usefixtures("one_thread")

PEARLS = [name for name, spec in METHODS.items() if spec.loop == "pearl"]
BRANCHING = [name for name in PEARLS if (drafter := METHODS[name].drafter) and drafter.branching]
WITHOUT = ("nothing", "pre-verify", "post-verify", "both")
TOKENS = 30
FEW, MANY = 2, 100  # passes of the draft in a round: some windows stay short, all are whole


@pytest.fixture(scope="module")
def models(tiny: Path) -> Models:
    return Models(str(tiny), None, "float32", [torch.device("cpu")])


@pytest.fixture(scope="module")
def drafts(weights: dict[str, Path]) -> dict[str, str]:
    """The draft model is made of the target's own layers, so that it is often right."""
    return {kind: str(path) for kind, path in (weights | {"model": weights["sorted"]}).items()}


def drafter_of(name: str, models: Models, drafts: dict[str, str], **options: Any) -> BranchingDrafter:
    """It has begun with a prompt and knows the first token. Its draft has a cache of its own."""
    spec = METHODS[name]
    own = Models(models.target_source, drafts[spec.weights], "float32", models.devices)
    drafter = build_chain_drafter(spec, own, options)
    assert isinstance(drafter, BranchingDrafter)
    target = Target(models.target, drafter.taps)
    first, features_TF = target.start(PROMPTS[7], GREEDY)
    drafter.begin(PROMPTS[7], GREEDY, features_TF)
    drafter.settle(first)
    return drafter


def test_the_table_says_which_drafters_can(models: Models, drafts: dict[str, str]) -> None:
    assert BRANCHING == ["pearl", "pearl-sd2", "pearl-eagle", "pearl-eagle2", "pearl-eagle3"]
    for name in PEARLS:
        spec = METHODS[name]
        drafter = build_chain_drafter(spec, with_weights(models, spec, drafts), {})
        assert isinstance(drafter, BranchingDrafter) == (name in BRANCHING), name


@pytest.mark.parametrize("name", BRANCHING)
def test_behind_its_own_drafts_it_prepares_what_it_drafts_there(
    name: str, models: Models, drafts: dict[str, str]
) -> None:
    """So the tree sees what the chain sees. Exits are chosen for a whole pass, so there is but one."""
    options = {"exit": 3} if name == "pearl-sd2" else {}
    drafter = drafter_of(name, models, drafts, **options)
    drafted = drafter.draft(6).tokens_G
    preparation = Preparation(drafter, [Prospect(1.0, n, drafted[n]) for n in range(4)], 2)
    for tokens in (1, 2):
        assert preparation.goes_on()
        found = preparation.grow()
        assert found == [Branch(n, drafted[n], drafted[n + 1 : n + 1 + tokens]) for n in range(4)]
    assert not preparation.goes_on()
    before = list(drafter.drafted)
    again = drafter_of(name, models, drafts, **options)
    assert before == drafted and drafter.draft(3).tokens_G == again.draft(9).tokens_G[6:], "its drafts are as they were"


@pytest.mark.parametrize("name", BRANCHING)
@pytest.mark.parametrize("count", [1, 3])
def test_it_goes_on_behind_what_it_has_prepared_as_behind_its_drafts(
    name: str, count: int, models: Models, drafts: dict[str, str]
) -> None:
    """Prepared is what it drafted anyway; so a draft that was confirmed, and one that was taken, are the same."""
    options = {"exit": 3} if name == "pearl-sd2" else {}
    drafter, other = (drafter_of(name, models, drafts, **options) for _ in range(2))
    kept = drafter.draft(6).tokens_G[:2]
    preparation = Preparation(drafter, [Prospect(0.5, 0, 77), Prospect(0.4, 1, kept[1])], 3)
    while preparation.goes_on():
        preparation.grow()
    outcome = Outcome(kept, [0, 1], features_behind(models, drafter, kept))
    drafter.settle(outcome)
    found = preparation.take(outcome.tokens, count)
    depths_G = [3 + i if drafter.taps else 0 for i in range(count)]
    assert found.depths(count, bool(drafter.taps)) == depths_G, "one was kept, one is another's"
    assert (found.draft(count).tokens_G, len(drafter.drafted)) == (drafter.drafted, count)
    other.draft(2 + count)
    other.confirm(outcome)
    assert other.drafted == drafter.drafted
    for ours, theirs in zip(drafter.places(count, 2), other.places(count, 2), strict=True):
        assert [token for token, _ in ours.others] == [token for token, _ in theirs.others]
        assert ours.chance == pytest.approx(theirs.chance, rel=1e-4)
    assert drafter.draft(3).tokens_G == other.draft(3).tokens_G


def features_behind(models: Models, drafter: BranchingDrafter, tokens: list[int]) -> torch.Tensor | None:
    """What chose these tokens behind the prompt's first one, if the drafter reads it."""
    target = Target(models.target, drafter.taps)
    target.start(PROMPTS[7], GREEDY)
    return target.score(TokenTree.chain([drafter.pending, *tokens[:-1]])).features_NF


def test_the_likeliest_outcomes_come_first() -> None:
    places = [Place(0.5, [(1, 0.3), (2, 0.1)]), Place(0.8, [(3, 0.15)]), Place(0.9, [(4, 0.09), (5, 0.01)])]
    found = [(prospect.accepted, prospect.token) for prospect in prospects(places)]
    assert found == [(0, 1), (0, 2), (1, 3), (2, 4), (2, 5)]
    assert [prospect.chance for prospect in prospects(places)] == pytest.approx([0.3, 0.1, 0.075, 0.036, 0.004])


@pytest.mark.parametrize("name", BRANCHING)
def test_places_are_told_with_the_likeliest_other_tokens(name: str, models: Models, drafts: dict[str, str]) -> None:
    drafter = drafter_of(name, models, drafts)
    drafted = drafter.draft(4).tokens_G
    for count in (1, 3):
        places = drafter.places(count, 2)
        assert len(places) == count
        for token, place in zip(drafted, places, strict=False):
            others, chances = [other for other, _ in place.others], [chance for _, chance in place.others]
            assert token not in others and len(set(others)) == len(others) <= 2
            assert len(others) == 2 or place.chance > 1 - 1e-5  # a sharp head leaves them nothing
            assert [place.chance, *chances, 0.0] == sorted([place.chance, *chances, 0.0], reverse=True)
            assert 0 not in chances and place.chance + sum(chances) <= 1 + 1e-5


class Counting(BranchingDrafter):
    """It drafts 10, 11, ...; behind any other token it prepares that token's double, and so on."""

    def __init__(self, spare: int = 99) -> None:
        super().__init__()
        self.pending, self.rows, self.left = 5, list[int](), spare

    def begin(self, *_: Any) -> None: ...

    def settle(self, outcome: Outcome) -> None: ...

    def draft(self, n: int) -> Draft:
        found = list(range(10 + len(self.drafted), 10 + len(self.drafted) + n))
        self.drafted += found
        return Draft(found)

    @property
    def spare(self) -> int:
        return self.left

    def places(self, count: int, others: int) -> list[Place]:
        return [Place(0.6, [(50 + i, 0.1 / 2**i) for i in range(others)]) for _ in range(count)]

    def branch(self, tree: TokenTree, known: int) -> Draft:
        self.rows.append(len(tree.tokens_N) - known)
        return Draft([2 * token for token in tree.tokens_N[known:].tolist()])

    def adopt(self, *_: Any) -> None: ...


def test_outcomes_share_passes_and_the_less_likely_wait() -> None:
    drafter = Counting()
    drafter.draft(5)
    preparation = prepare(drafter, Prepare(4, 2), 2, drafting=True)
    assert preparation is not None
    found = []
    while preparation.goes_on():
        found.append(preparation.grow())
    assert drafter.rows == [TOGETHER, TOGETHER, 4, 4]  # twelve outcomes at three places
    assert found[0][0] == Branch(0, 50, [100]) and found[1][0] == Branch(0, 50, [100, 200])
    assert len(drafter.drafted) == 5


def test_where_the_draft_waits_it_looks_one_token_ahead_and_its_own_token_is_an_outcome() -> None:
    drafter = Counting()
    drafter.draft(2)
    preparation = prepare(drafter, Prepare(2, 1), 2, drafting=False)
    assert preparation is not None and preparation.goes_on()
    found = {(branch.accepted, branch.token) for branch in preparation.grow()}
    assert found == {(0, 50), (0, 51), (1, 50), (1, 51), (2, 12), (2, 50)}


def test_nothing_is_prepared_without_room() -> None:
    drafter = Counting(spare=5)
    assert prepare(drafter, Prepare(2, 3), 0, drafting=True) is None, "nothing was drafted"
    drafter.draft(2)
    preparation = prepare(drafter, Prepare(2, 3), 0, drafting=True)
    assert preparation is not None
    while preparation.goes_on():
        preparation.grow()
    assert drafter.rows == [2, 2], "a third pass would need six nodes"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the draft's rank reads the time from."""
    now = [100.0]
    monkeypatch.setattr("methods.pearl.branches.time.perf_counter", lambda: now[0])
    yield now


def test_passes_fit_by_earlier_rounds_and_passes_alone(clock: list[float]) -> None:
    spare = Spare()
    spare.begin()
    assert not spare.fits, "nothing is known yet"
    for seconds in (10, 10, 500, 10):
        spare.end(clock[0] + seconds)
    assert spare.fits
    spare.took(4)
    for elapsed, fits in ((5, True), (6, True), (7, False)):
        clock[0] = 100.0 + elapsed
        assert spare.fits == fits
    clock[0] = 200.0
    spare.begin()
    assert spare.fits
    for _ in range(9):
        spare.end(203.0)
    assert not spare.fits, "rounds are shorter now"


def test_a_number_of_passes_may_be_given_instead() -> None:
    spare = Spare(2)
    for _ in range(2):
        spare.begin()
        assert spare.fits
        spare.took(1e9)
        assert spare.fits
        spare.took(1e9)
        assert not spare.fits


class Watched:
    """A draft rank in this process, and the target's rank that goes with it."""

    def __init__(self, link: Link, ready: dict[str, Ready], models: Models, drafts: dict[str, str]) -> None:
        self.link, self.ready, self.models, self.drafts = link, ready, models, drafts
        self.known: dict[tuple[int, ...], list[int]] = {}

    def build(self, name: str, **options: Any) -> Pearl:
        spec = get_method(name)
        models = with_weights(self.models, spec, self.drafts)
        models.link = self.link
        method = build_method(spec, models, options)
        assert isinstance(method, Pearl)
        method.meet(self.ready[name])
        return method

    def plain(self, prompt: list[int]) -> list[int]:
        """What the target alone answers."""
        if tuple(prompt) not in self.known:
            alone = build_method(METHODS[BASELINE], self.models, {})
            self.known[tuple(prompt)] = generate(alone, prompt, GREEDY, Limits(frozenset(), TOKENS)).token_ids
        return self.known[tuple(prompt)]

    def answer(self, name: str, prompt: list[int], sampling: Sampling = GREEDY, **options: Any) -> Generation:
        return generate(self.build(name, **options), prompt, sampling, Limits(frozenset(), TOKENS))


@pytest.fixture(scope="module", params=[FEW, MANY])
def watched(request: pytest.FixtureRequest, models: Models, drafts: dict[str, str]) -> Iterator[Watched]:
    drafters = {
        n: build_chain_drafter(s, with_weights(models, s, drafts), {}) for n, s in METHODS.items() if n in PEARLS
    }
    with local_draft_rank(drafters, request.param) as (link, ready):
        yield Watched(link, ready, models, drafts)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All messages of both ranks."""
    messages: list[Any] = []
    send = LocalLink.send

    def sends(self: LocalLink, message: Any) -> None:
        messages.append(message)
        send(self, message)

    monkeypatch.setattr(LocalLink, "send", sends)
    return messages


@pytest.mark.parametrize("name", BRANCHING)
@pytest.mark.parametrize("window", [1, 3, "auto"])
def test_greedy_output_is_the_targets_own(watched: Watched, name: str, window: int | str) -> None:
    hits = 0
    for prompt, without, count in product((PROMPTS[7], PROMPTS[80]), WITHOUT, (1, 3)):
        got = watched.answer(name, prompt, gamma=window, branches=count, without=without)
        assert got.token_ids == watched.plain(prompt), (prompt, without, count)
        hits += sum(one.hit is True for one in got.branches)
    assert hits, "else nothing is tested"


@pytest.mark.parametrize("name", BRANCHING)
def test_a_run_at_a_temperature_can_be_repeated(watched: Watched, name: str) -> None:
    runs = [watched.answer(name, PROMPTS[7], Sampling(1.0, seed=s), gamma=3, branches=3) for s in (1, 1, 2)]
    assert runs[0].token_ids == runs[1].token_ids != runs[2].token_ids
    assert [one.hit for one in runs[0].branches] == [one.hit for one in runs[1].branches]


def test_without_branches_nothing_else_is_said(watched: Watched, seen: list[Any]) -> None:
    got = watched.answer("pearl", PROMPTS[7], gamma=3, branches=0)
    assert got.branches == [] and not [message for message in seen if isinstance(message, Prepared)]
    orders = [message for message in seen if isinstance(message, Order)]
    assert len(orders) == len(got.nodes) and all(order.prepare is None and order.taken == 0 for order in orders)


def test_a_hit_costs_no_round_that_verifies_one_token(watched: Watched, seen: list[Any]) -> None:
    """What was prepared for the outcome is scored in the next pass, and is what the draft drafts there itself."""
    got = watched.answer("pearl", PROMPTS[7], gamma=3, branches=3)
    plain = watched.answer("pearl", PROMPTS[7], gamma=3)
    hits = [number for number, one in enumerate(got.branches[:-1]) if one.hit]
    assert len(hits) >= 2 and len(got.nodes) < len(plain.nodes)
    for number in hits:
        windows = got.nodes[number + 2] - 1  # behind the prefill's, and behind the pass whose outcome was a hit
        assert 1 <= windows <= 3 and got.branches[number + 1].hidden > 0
    for number, one in enumerate(got.branches[:-1]):
        assert one.hit is not False or (got.nodes[number + 2] == 1 and got.branches[number + 1].hidden == 0)
    orders = [message for message in seen if isinstance(message, Order) and message.taken]
    assert len(orders) == len(hits)


def test_outcomes_are_counted(watched: Watched) -> None:
    got = watched.answer("pearl", PROMPTS[7], gamma=3, branches=3)
    kept = [a == d for a, d in zip(got.accepted[1:], got.drafted[1:], strict=True)]
    assert [one.hit is None for one in got.branches] == kept
    # Of three tokens each at up to four places: those of a window that was prepared, and the next one's first.
    assert max(one.prepared for one in got.branches) in (TOGETHER, 12)
    assert min(one.prepared for one in got.branches) >= 3
    assert got.seconds("prepare") > 0
    assert got.proposed == sum(span.tokens for span in got.spans if span.work == "draft")


def test_the_target_takes_no_window_but_the_one_that_was_told(models: Models) -> None:
    here, there = LocalLink.pair("target", "draft")
    method = Pearl(models.target, here, "pearl", 3, True, True, branches=1)
    method._round, method._ahead = 4, [7, 8]
    there.send(Window(4, [7, 9], None, 0.0, 0.0, [], 0))
    with pytest.raises(LinkError, match=r"the window of round 4 that was prepared .* lost step"):
        method._collect_ahead([])
    there.send(Prepared(5, [], 0.0, 0.0))
    with pytest.raises(LinkError, match="lost step"):
        method._next_window([])


@pytest.mark.parametrize("name", [name for name in PEARLS if name not in BRANCHING and "toy" not in name])
def test_who_cannot_prepare_says_so_at_once(name: str, models: Models, drafts: dict[str, str]) -> None:
    with pytest.raises(UserError, match="cannot prepare branches: leave out --branches, or set it for those that can"):
        parse([f"{name}@branches=1", "smollm2-135m"])
    spec = METHODS[name]
    with pytest.raises(UserError, match="cannot prepare branches"):
        build_method(spec, with_weights(models, spec, drafts), {"branches": 1})
    assert parse([f"{name}@branches=0", "smollm2-135m"]).methods[-1] == f"{name}@branches=0"


def test_free_has_no_time_for_branches(watched: Watched) -> None:
    with pytest.raises(UserError, match="--gamma auto or a number beside --branches, got free"):
        watched.build("pearl", gamma="free", branches=1)


def test_the_flag_is_of_trees_too_and_says_both() -> None:
    assert "nodes expanded per level of the tree" in all_options()["branches"]
    assert "other tokens at each place of PEARL's drafts" in all_options()["branches"]
    config = parse(["pearl-eagle3", "smollm2-135m", "--branches", "2"])
    options = {spec.name: config.options_of(spec) for spec in config.specs}
    assert options["pearl-eagle3"]["branches"] == options["eagle3"]["branches"] == 2
    config = parse(["pearl-eagle3", "smollm2-135m"])
    assert "branches" not in config.options_of(get_method("pearl-eagle3")), "the paper's PEARL, as its headers say it"
    assert config.options_of(get_method("pearl-eagle3@branches=2"))["branches"] == 2
