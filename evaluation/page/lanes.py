"""An answer as the browser replays it: pass by pass, each with its tokens, their text and their origin."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from evaluation.answers.record import Choice
from evaluation.page.messages import Pass
from evaluation.page.origins import origins
from evaluation.page.pieces import Pieces, alone

MICROSECONDS = 6  # digits behind a second's point
Json = dict[str, Any]


@dataclass
class Lane:
    """The answer of one method, as it comes. `loop`: of the method's row."""

    loop: str | None
    tokenizer: Any
    passes: int = 0
    pieces: Pieces = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = Pieces(self.tokenizer)

    def add(self, passes: Iterable[Pass]) -> list[Json]:
        """Passes as the browser has them: `e` the end, `t` tokens (id, text, origin), `d` drafted, `a` accepted, `n`
        nodes; `s` spans and `g` the drafts, where they are known."""
        return [self._pass(each) for each in passes]

    def _pass(self, each: Pass) -> Json:
        letters = origins(self.loop, len(each.tokens), each.drafted, each.accepted, each.nodes, self.passes == 0)
        self.passes += 1
        tokens = list(zip(each.tokens, self.pieces.add(each.tokens), letters, strict=True))
        told = {"e": round(each.end, MICROSECONDS), "t": tokens, "d": each.drafted, "a": each.accepted, "n": each.nodes}
        if each.spans:
            told["s"] = [[r, w, round(b, MICROSECONDS), round(e, MICROSECONDS), n] for r, w, b, e, n in each.spans]
        if len(each.tree_N) > 1:
            told["g"] = self._drafts(each)
        return told

    def _drafts(self, each: Pass) -> Json:
        """What was judged behind the pending token: ids and texts; of a tree each one's parent (0: the pending token);
        and which were kept."""
        parents = {"p": each.parents_N[1:]} if each.parents_N else {}
        ids = each.tree_N[1:]
        return {"i": ids, "x": alone(self.tokenizer, ids), "k": kept_nodes(each), **parents}


def kept_nodes(each: Pass) -> list[int]:
    """The nodes that were kept, from 1 on: those of the path, and a leaf behind it that no row was scored of."""
    kept = list(each.path[1:])
    return kept + [len(each.path)] * (each.accepted - len(kept))


def passes_of(choice: Choice, turn: int) -> Iterator[Pass]:
    """The passes of a turn as an answer file has them; without their times they are spread evenly over the turn's."""
    counts = choice.decoding_steps or [len(choice.accept_lengths)]
    begin = sum(counts[:turn])
    lengths = choice.accept_lengths[begin : begin + counts[turn]]
    ids = choice.token_ids[turn] if choice.token_ids else []
    place = 0
    for number, (end, length) in enumerate(zip(ends_of(choice, turn, len(lengths)), lengths, strict=True)):
        tokens = list(ids[place : place + length])
        drafted, accepted, nodes = (_count(choice, key, turn, number) for key in ("drafted", "accepted", "nodes"))
        yield Pass(end, tokens, drafted, accepted, nodes, [])
        place += length


def _count(choice: Choice, key: str, turn: int, number: int) -> int:
    turns = getattr(choice, key)
    return turns[turn][number] if turns else int(key == "nodes")


def ends_of(choice: Choice, turn: int, passes: int) -> Sequence[float]:
    """When each pass ended, in seconds from the beginning of the answer."""
    if choice.pass_time:
        return list(accumulate(choice.pass_time[turn]))
    wall, prefill = choice.wall_time[turn], choice.prefill_time[turn] if choice.prefill_time else 0.0
    return [prefill + (wall - prefill) * number / max(1, passes - 1) for number in range(passes)]
