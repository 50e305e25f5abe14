"""What every kind of golden shares: how an agreement is told, files read, tensors compared, and whole generations."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.base import Limits, generate
from methods.drafters.base import Drafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.speculative import Speculative
from methods.target import Outcome

TOLERANCE = 1e-4  # of numbers in fp32
GAP = 1e-5  # between neighbours of a ranking: below it, another order of sums may change their order


@dataclass(frozen=True)
class Agreement:
    """`compared` things of one kind; `difference`: the first, None where all agree."""

    what: str
    compared: int
    difference: str | None = None


def tensors_agree(what: str, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> Agreement:
    """Of (name, got, expected) all are as close as fp32 allows."""
    compared, worst = 0, 0.0
    for name, got, expected in pairs:
        compared += 1
        if got.shape != expected.shape:
            return Agreement(what, compared, f"{name} has shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        worst = float((got.double() - expected.double()).abs().max())
        if not worst <= TOLERANCE:
            return Agreement(what, compared, f"{name} is off by {worst:.2g}")
    return Agreement(what, compared)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def golden_models(folder: Path, head: str = "head") -> Models:
    """The target beside the folder, with the folder's head, in fp32."""
    return Models(str(folder.parent / "target"), str(folder / head), "float32", [torch.device("cpu")])


def target_agrees(folder: Path, models: Models) -> Agreement:
    """Plain greedy decoding of the target."""
    from methods.autoregressive import Autoregressive

    rows = read_lines(folder / "greedy.jsonl")
    for number, row in enumerate(rows, 1):
        limits = Limits(frozenset(), len(row["output"]))
        got = generate(Autoregressive(models.target), row["prompt"], Sampling(), limits).token_ids
        if got != row["output"]:
            return Agreement("greedy outputs of the target", number, _parting(number, got, row["output"]))
    return Agreement("greedy outputs of the target", len(rows))


class Recorder(Drafter):
    """Another drafter, whose trees are kept."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter, self.taps = drafter, drafter.taps
        self.trees: list[TokenTree] = []

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.trees = []
        self.drafter.begin(prompt_T, sampling, features_TF)

    def propose(self, room: int) -> TokenTree:
        self.trees.append(self.drafter.propose(room))
        return self.trees[-1]

    def settle(self, outcome: Outcome) -> None:
        self.drafter.settle(outcome)


def generations_agree(
    folder: Path, models: Models, drafter_of: Callable[[dict[str, Any]], Drafter]
) -> Iterator[Agreement]:
    """Whole greedy generations: every tree, every accept length, every token.

    The published loops return the root and the kept drafts of each step, and not the last bonus token; they are cut
    neither at their limit nor at EOS. Ours is run as far as they went. `accept_length` counts kept drafts."""
    rows = read_lines(folder / "traces.jsonl")
    trees = lengths = tokens = 0
    parted: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        recorder = Recorder(drafter_of(row))
        method = Speculative(models.target, recorder)
        answer = generate(method, row["prompt"], Sampling(), Limits(frozenset(), len(row["output"]) + 1))
        ours = {
            "outputs": answer.token_ids[: len(row["output"])],
            "accept lengths": [length - 1 for length in answer.accept_lengths[1:]][: len(row["accept_length"])],
        }
        theirs = {"outputs": row["output"], "accept lengths": row["accept_length"]}
        ours["accept lengths"][-1:] = theirs["accept lengths"][-1:]  # the last pass is cut by the limit
        for what, got in ours.items():
            if got != theirs[what]:
                parted.setdefault(what, _parting(number, got, theirs[what]))
        if difference := _trees_part(row, recorder.trees):
            parted.setdefault("trees", f"generation {number}, {difference}")
        trees += min(len(recorder.trees), len(row["drafts"]))
        lengths, tokens = lengths + len(row["accept_length"]), tokens + len(row["output"])
    yield Agreement("trees of whole generations", trees, parted.get("trees"))
    yield Agreement("accept lengths", lengths, parted.get("accept lengths"))
    yield Agreement("tokens of whole generations", tokens, parted.get("outputs"))


def _trees_part(row: dict[str, Any], trees: Sequence[TokenTree]) -> str | None:
    """Where the first tree differs whose ranking was not too close to tell."""
    for step, (tree, draft, gap) in enumerate(
        zip(trees, row["drafts"], row["min_topk_gap_per_draft"], strict=False), 1
    ):
        got = {"tokens": tree.tokens_N.tolist(), "parents": tree.parents_N.tolist()}
        if gap > GAP and any(got[key] != draft[key] for key in got if key in draft):
            return f"step {step}: {got}, not { ({key: draft[key] for key in got if key in draft}) }"
    return None


def _parting(number: int, got: Sequence[int], expected: Sequence[int]) -> str:
    """Where two lists part."""
    pairs = zip(got, expected, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(expected)))
    ours, theirs = list(got[place : place + 3]), list(expected[place : place + 3])
    return f"generation {number}, number {place + 1}: {ours}, not {theirs}"
