"""PEARL's two ranks, as two threads that talk over a socket: exactness, invariants, and the distribution of samples."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from methods import BASELINE, METHODS, MethodSpec, get_method
from methods.base import Generation, Limits, Span, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters.base import ChainDrafter
from methods.drafters.language_model import ModelDrafter
from methods.engine.link import Close, Link, LinkError
from methods.engine.sampling import Sampling
from methods.engine.socket_link import SocketLink
from methods.errors import UserError
from methods.models import Models
from methods.pearl.branches import Spare
from methods.pearl.draft import _Answer, serve
from methods.pearl.messages import KINDS, Begin, Order, Ready, Row, RowWanted, Window
from methods.pearl.schedule import BRANCHES
from methods.pearl.target import Pearl
from methods.pearl.window import ANSWERS, LONGEST_WINDOW, Windows
from methods.theory import SCHEDULES_OF_PEARL
from tests.tiny import VOCABULARY

CPU = [torch.device("cpu")]
PEARLS = [name for name, spec in METHODS.items() if spec.loop == "pearl"]
# Of drafters that are two as one, one stands for all where windows are tried in many ways.
ALONE = [name for name in PEARLS if (drafter := METHODS[name].drafter) and drafter.parts is None]
SHORT = [*ALONE, "pearl-sam-eagle3"]
WINDOWS = (1, 2, 3, 6, "auto", "free")
CELLS = [(name, window) for name in PEARLS for window in (WINDOWS if name in SHORT else (3, "auto"))]
ABLATIONS = ("pre-verify", "post-verify", "both")
PROMPTS = {1: [5], 2: [5, 9], 7: [3, 1, 4, 1, 5, 9, 2], 80: [(7 * i) % 90 + 1 for i in range(80)]}
GREEDY = Sampling()


def two_ends(patience: float = 30.0) -> list[SocketLink]:
    """A link's target end and draft end in this process."""
    names = "rank 0 (target)", "rank 1 (draft)"
    ends = socket.socketpair()
    return [SocketLink(ends[0], names, patience, KINDS), SocketLink(ends[1], names[::-1], patience, KINDS)]


@dataclass
class Pair:
    """The models of the target's rank, and the drafters of the draft's rank, which serves it from another thread."""

    target: Models
    drafts: dict[str, str]  # kind of weights -> where they lie
    ready: dict[str, Ready]
    link: Link
    options: dict[str, Any]
    known: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def plain(self, prompt: list[int], tokens: int) -> list[int]:
        """What the target alone answers, computed once for all methods."""
        found = self.known.get(tuple(prompt), [])
        if len(found) < tokens:
            found = self.known[tuple(prompt)] = self.answer(BASELINE, prompt, Limits(frozenset(), tokens)).token_ids
        return found[:tokens]

    def answer(
        self, name: str, prompt: list[int], limits: Limits, sampling: Sampling = GREEDY, **options: Any
    ) -> Generation:
        return generate(self.build(name, **options), prompt, sampling, limits)

    def build(self, name: str, **options: Any) -> Any:
        spec = get_method(name)
        method = build_method(spec, with_weights(self.target, spec, self.drafts), self.options | options)
        if isinstance(method, Pearl):
            method.meet(self.ready[spec.name])
        return method


def with_weights(models: Models, spec: MethodSpec, drafts: dict[str, str]) -> Models:
    """With those that the method needs."""
    return models.with_draft(drafts[spec.weights]) if spec.weights else models


class Rank(threading.Thread):
    """The draft's rank; what it raises is raised by `end`."""

    def __init__(self, link: Link, models: Models, drafts: dict[str, str], options: dict[str, Any]) -> None:
        super().__init__()
        self.link, self.models, self.drafts, self.options = link, models, drafts, options
        self.error: BaseException | None = None

    def run(self) -> None:
        torch.set_num_threads(1)
        try:
            serve(self.link, {name: self._drafter(METHODS[name]) for name in PEARLS})
        except BaseException as error:
            self.error = error

    def _drafter(self, spec: MethodSpec) -> ChainDrafter:
        return build_chain_drafter(spec, with_weights(self.models, spec, self.drafts), self.options)

    def end(self) -> None:
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def paired(
    target: Path, weights: dict[str, Path], dtype: str, length: int | None = None, **options: Any
) -> Iterator[Pair]:
    ends = two_ends()
    sources = str(target), None, dtype, CPU, length
    drafts = {kind: str(path) for kind, path in weights.items()}
    ours, theirs = Models(*sources, link=ends[0]), Models(*sources, link=ends[1], drafts_only=True)
    rank = Rank(ends[1], theirs, drafts, options)
    rank.start()
    ready = {name: ends[0].receive("its drafter") for name in PEARLS}
    assert ready["pearl-toy-head"].taps and not ready["pearl"].taps
    yield Pair(ours, drafts, ready, ends[0], options)
    ends[0].send(Close())
    assert ends[0].receive("its farewell") == Close()
    rank.end()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pair(request: pytest.FixtureRequest, tiny: Path, weights: dict[str, Path]) -> Iterator[Pair]:
    """The tiny target with a draft made of its own layers wherever a method can use it."""
    drafts = weights | {"model": weights["sorted"]}
    yield from paired(tiny, drafts, request.param)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name, window", CELLS)
def test_greedy_output_is_the_targets_own(pair: Pair, name: str, window: int | str) -> None:
    for prompt in (PROMPTS[1], PROMPTS[7], PROMPTS[80]):
        got = pair.answer(name, prompt, Limits(frozenset(), 40), gamma=window)
        assert got.token_ids == pair.plain(prompt, 40)
        assert sum(got.accept_lengths) == 40


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("without", ABLATIONS)
@pytest.mark.parametrize("window", [1, 3, "auto"])
def test_ablations_are_lossless_too(pair: Pair, name: str, without: str, window: int | str) -> None:
    for prompt in (PROMPTS[1], PROMPTS[80]):
        got = pair.answer(name, prompt, Limits(frozenset(), 30), gamma=window, without=without)
        assert got.token_ids == pair.plain(prompt, 30)


@pytest.mark.parametrize("window", [3, "free"])
def test_answers_end_with_the_first_eos_and_at_the_limit(pair: Pair, window: int | str) -> None:
    whole = pair.answer(BASELINE, PROMPTS[7], Limits(frozenset(), 30)).token_ids
    for end in range(1, 30):
        got = pair.answer("pearl", PROMPTS[7], Limits(frozenset({whole[end - 1]}), 30), gamma=window)
        assert got.token_ids == whole[: whole.index(whole[end - 1]) + 1]
        assert got.finish == "eos"
        cut = pair.answer("pearl", PROMPTS[7], Limits(frozenset(), end), gamma=window)
        assert (cut.token_ids, cut.finish) == (whole[:end], "length")


@pytest.mark.parametrize("name", PEARLS)
def test_sampling_repeats_with_the_seed_and_only_then(pair: Pair, name: str) -> None:
    runs = [pair.answer(name, PROMPTS[7], Limits(frozenset(), 30), Sampling(1.0, seed=s), gamma=3) for s in (1, 1, 2)]
    assert runs[0].token_ids == runs[1].token_ids != runs[2].token_ids


def test_prompts_that_fill_the_context(tiny: Path, weights: dict[str, Path]) -> None:
    """A context of 80 tokens: the last one is decided without being put into the cache."""
    for pair in paired(tiny, weights, "float32", 80):
        for window in (1, 5, "free"):
            for length in (60, 77, 78, 79, 80, 81):
                prompt = [(7 * i) % 90 + 1 for i in range(length)]
                got = pair.answer("pearl", prompt, Limits(frozenset(), 500), gamma=window)
                assert got.token_ids == pair.answer(BASELINE, prompt, Limits(frozenset(), 500)).token_ids
                assert (got.finish, len(got.token_ids)) == ("context", 0 if length > 80 else 81 - length)


def test_a_draft_with_a_shorter_context_leaves_the_target_alone(
    tmp_path: Path, tiny: Path, weights: dict[str, Path]
) -> None:
    from tests.tiny import save_draft

    short = tmp_path / "draft"
    short.mkdir()
    save_draft(short, tiny, max_position_embeddings=32)
    for pair in paired(tiny, weights | dict.fromkeys(("model", "sorted"), short), "float32"):
        for window in (4, "free"):
            for without in ("nothing", *ABLATIONS) if window == 4 else ("nothing",):
                limits = Limits(frozenset(), 60)
                got = pair.answer("pearl", PROMPTS[7], limits, gamma=window, without=without)
                assert got.token_ids == pair.answer(BASELINE, PROMPTS[7], limits).token_ids
                assert got.drafted[-1] == 0


@pytest.mark.parametrize(
    "without, lengths",
    [
        ("nothing", [1, 1, *[4] * 9]),  # the first window's first token is verified alone
        ("pre-verify", [1, 5, *[4] * 8]),  # its four and the next one's first, then whole windows
        ("post-verify", [1, 1, 4, 1, 4, 1, 4, 1, 4, 1, 4, 1]),  # a token, the three behind it and one of the target's
        ("both", [1, *[5] * 7]),
    ],
)
def test_a_perfect_draft_is_kept_whole(tiny: Path, without: str, lengths: list[int]) -> None:
    """The same weights: accept lengths are what the schedule allows."""
    ends = two_ends()
    models = Models(str(tiny), str(tiny), "float32", CPU, link=ends[0])
    drafters = {
        "pearl": build_chain_drafter(
            METHODS["pearl"], Models(str(tiny), str(tiny), "float32", CPU, drafts_only=True), {}
        )
    }
    rank = threading.Thread(target=serve, args=(ends[1], drafters))
    rank.start()
    ends[0].receive("its drafter")
    pearl = build_method(METHODS["pearl"], models, {"gamma": 4, "without": without})
    got = generate(pearl, PROMPTS[7], GREEDY, Limits(frozenset(), sum(lengths)))
    ends[0].send(Close())
    rank.join(60)
    assert got.accept_lengths == lengths
    assert got.accepted == got.drafted


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(
    "options",
    [{"gamma": 3}, {"gamma": "free"}, {"gamma": 3, "without": "pre-verify"}, {"gamma": 2, "without": "post-verify"}],
)
def test_each_token_passes_the_target_once_and_none_is_unverified(
    pair: Pair, name: str, options: dict[str, Any]
) -> None:
    method: Pearl = pair.build(name, **options)
    decoder, prompt = method.target.decoder, PROMPTS[7]
    committed: list[int] = []
    commit = decoder.commit

    def counting(path_A: Any) -> None:
        committed.append(len(path_A))
        commit(path_A)

    decoder.commit = counting  # type: ignore[method-assign]
    try:
        tokens = [method.start(prompt, GREEDY)]
        for _ in range(12):
            step = method.step()
            tokens += step.tokens
            assert decoder.length == len(prompt) + len(tokens) - 1  # all but the pending token
            assert method.target.pending == tokens[-1]
            assert len(step.tokens) - step.accepted in (0, 1)  # a token of the target's own, or none
        method.finish()
    finally:
        del decoder.commit
    assert sum(committed) == len(tokens) - 1
    assert tokens == pair.answer(BASELINE, prompt, Limits(frozenset(), len(tokens))).token_ids


def test_auto_settles_when_every_window_was_tried(pair: Pair) -> None:
    method: Pearl = pair.build("pearl", gamma="auto")
    long = Limits(frozenset(), 20)
    empty = Limits(frozenset(range(VOCABULARY)), 20)  # an answer of one token: nothing is drafted
    for limits in (empty, empty, long):
        assert method.settled() == {}
        generate(method, PROMPTS[7], GREEDY, limits)
    settled = method.settled()
    assert set(settled) == {"gamma", "first"} and all(1 <= int(window) <= LONGEST_WINDOW for window in settled.values())
    assert method.window == settled["first"], "nothing is drafted before an answer's first round"


@pytest.mark.parametrize("name", ["pearl-medusa", "pearl-hydra"])
def test_auto_settles_over_heads_that_end_their_chain(pair: Pair, name: str) -> None:
    method: Pearl = pair.build(name, gamma="auto")
    for _ in range(ANSWERS):
        generate(method, PROMPTS[7], GREEDY, Limits(frozenset(), 30))
    assert all(1 <= int(window) <= 3 for window in method.settled().values())  # the tiny heads are three


def test_the_first_window_behind_a_rejection_is_another_one(pair: Pair) -> None:
    """A target that rejects everything is behind a rejection in every round; one that keeps everything only once."""
    method: Pearl = pair.build("pearl", gamma="auto")
    assert method.auto is not None
    method.auto.chosen = Windows(2, 5)
    asked: list[int] = []
    order = method._order

    def watched(window: int, stop: bool = False) -> None:
        asked.append(window)
        order(window, stop)

    method._order = watched  # type: ignore[method-assign]
    got = generate(method, PROMPTS[7], GREEDY, Limits(frozenset(), 30))
    behind = [True] + [kept < judged for kept, judged in zip(got.accepted[1:], got.drafted[1:], strict=True)]
    assert asked[:-1] == [2 if first else 5 for first in behind[:-1]] and set(asked[:-1]) == {2, 5}


def test_free_needs_both_modes(pair: Pair) -> None:
    with pytest.raises(UserError, match="--gamma auto or a number beside --without pre-verify"):
        pair.build("pearl", gamma="free", without="pre-verify")


def test_spans_tell_what_both_ranks_did(pair: Pair) -> None:
    got = pair.answer("pearl", PROMPTS[7], Limits(frozenset(), 20), gamma=3)
    for rank, works in (("target", {"verify", "wait"}), ("draft", {"draft"})):
        spans = sorted((s for s in got.spans if s.rank == rank), key=lambda s: s.begin)
        assert {span.work for span in spans} == works
        assert all(one.end <= other.begin for one, other in pairwise(spans))
    assert got.seconds("verify") + got.seconds("wait") < got.wall_time


MESSAGES: list[Any] = [
    Begin("pearl-sd2", True, [5, 0, 49151], Sampling(0.7, 20, 0.95, 2**56 - 1)),
    Begin("pearl", False, list(range(300)), GREEDY),
    Order(7, [3, 4, 2**40], True, 5, False, None),
    Order(8, [], False, 0, True, torch.randn(3, 4).bfloat16()),
    Order(9, list(range(200)), False, 0, False, torch.randn(200, 16)),
    Window(7, [1, 2**40], [0.1, 1 / 3], 1.25, 2.5, [], 300),
    RowWanted(2**33),
    Row(5, torch.rand(7, dtype=torch.float64)),
    Window(9, [], None, 1.0, 2.0, [], 0),
    Ready("pearl-sd2", [3, -1]),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_arrive_as_they_were(message: Any) -> None:
    here, there = two_ends()
    there.send(message)
    assert str(here.receive("it")) == str(message)
    here.send(message)
    assert str(there.receive("it")) == str(message)
    for end in (here, there):
        end.send(Close())


def test_no_probabilities_travel_when_greedy(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Window] = []
    take = Pearl._take

    def watching(self: Pearl, window: Window, spans: list[Span]) -> None:
        seen.append(window)
        take(self, window, spans)

    monkeypatch.setattr(Pearl, "_take", watching)
    pair.answer("pearl", PROMPTS[7], Limits(frozenset(), 20), gamma=3)
    assert seen and all(window.q_G is None for window in seen)
    pair.answer("pearl", PROMPTS[7], Limits(frozenset(), 20), Sampling(1.0, seed=1), gamma=3)
    assert any(window.q_G is not None for window in seen)


@pytest.mark.parametrize("options", [{"gamma": 3}, {"gamma": 3, "branches": 2}, {"gamma": "free"}])
def test_rows_are_kept_until_their_drafts_are_judged(
    pair: Pair, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, int]] = []
    send = _Answer._send

    def watching(self: _Answer, *window: Any) -> None:
        send(self, *window)
        kept.append((len(self.rows), len(self.drafter.drafted)))

    monkeypatch.setattr(_Answer, "_send", watching)
    pair.answer("pearl", PROMPTS[7], Limits(frozenset(), 60), Sampling(1.0, seed=1), **options)
    assert len(kept) > 10
    assert all(rows == drafted for rows, drafted in kept)


def test_only_the_row_that_was_asked_for_is_taken() -> None:
    here, there = two_ends()
    asked = _Answer(there, object.__new__(ModelDrafter), Begin("pearl", False, [5], GREEDY), Spare())
    asked.rows = {3: torch.ones(2), 4: torch.zeros(2)}
    with pytest.raises(LinkError, match="lost step"):
        asked._tell(RowWanted(5))
    method = object.__new__(Pearl)
    method.link, method._round, method._patience = here, 3, 1.0
    asked._tell(RowWanted(3))
    assert torch.equal(method._fetch(3, []), torch.ones(2))
    asked._tell(RowWanted(3))
    with pytest.raises(LinkError, match="the row of draft 4"):
        method._fetch(4, [])
    for end in (here, there):
        end.send(Close())


def test_a_silent_peer_is_named_and_a_wrong_round_refused() -> None:
    here, there = two_ends(patience=0.2)
    with pytest.raises(
        LinkError, match=r"rank 0 \(target\) waited 0.2 seconds for the draft of round 3 of rank 1 \(draft\)"
    ):
        here.receive("the draft of round 3")
    there.send(Window(9, [1], None, 0.0, 0.0, [], 0))
    method = object.__new__(Pearl)
    method.link, method._round, method.free = here, 3, False
    with pytest.raises(LinkError, match="lost step"):
        method._take(here.receive("the draft"), [])
    for end in (here, there):
        end.send(Close())


def test_a_peer_that_hangs_is_noticed_where_it_has_all_the_time_in_the_world() -> None:
    here, there = two_ends(patience=0.4)
    sleeper = threading.Timer(
        1.5, there.send, [Ready("pearl", [])]
    )  # far beyond the patience, but there are signs of life
    sleeper.start()
    assert here.receive("its drafter", None) == Ready("pearl", [])
    there._closed.set()  # no more of them
    with pytest.raises(LinkError, match=r"rank 0 \(target\) waited .* seconds for a prompt of rank 1 \(draft\)"):
        here.receive("a prompt", None)


@pytest.mark.parametrize("gamma", ["auto", 3])
@pytest.mark.parametrize("name", ["pearl", "pearl-medusa", "pearl-eagle3"])
def test_auto_settles_on_a_schedule_and_changes_no_output(pair: Pair, name: str, gamma: int | str) -> None:
    method: Pearl = pair.build(name, gamma=gamma, schedule="auto")
    assert method.schedule is not None
    tried = []
    for _ in range(4):
        tried.append(method.schedule.parts)
        assert generate(method, PROMPTS[7], GREEDY, Limits(frozenset(), 40)).token_ids == pair.plain(PROMPTS[7], 40)
        assert (method.pre_verify, method.branches) == method.schedule.parts
    branching = METHODS[name].drafter.branching  # type: ignore[union-attr]
    assert tried[:2] == [(True, 0), (False, 0)] and (tried[2] == (True, BRANCHES) or not branching)
    assert method.settled()["schedule"] in SCHEDULES_OF_PEARL


@pytest.mark.parametrize("options", [{"gamma": "free"}, {"without": "pre-verify"}])
def test_what_auto_chooses_must_not_be_given(pair: Pair, options: dict[str, str]) -> None:
    with pytest.raises(UserError, match="--schedule auto without --gamma free and without --without"):
        pair.build("pearl", schedule="auto", **options)
