"""One training run of a draft: its data in order, steps, validations and checkpoints; a kind of draft adds its own.

Used by train.py.
"""

import dataclasses
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from methods.errors import UserError
from methods.training.data import Document, frequent_tokens, length_batches, read_answers, split
from methods.training.recipe import CHANGEABLE, Recipe, learning_rate

Batch = dict[str, Any]


@dataclass
class Progress:
    """Where in the data a run stands: the next optimiser step of a chunk of an epoch. `best`: the longest accept length
    so far; `worse`: validations since then."""

    tokens: int = 0
    epoch: int = 0
    chunk: int = 0
    step: int = 0
    best: float = 0.0
    worse: int = 0


class Trainer(ABC):
    """Loads what the folder `out` holds of the run; `train` goes on to the planned tokens or until `stop`."""

    def __init__(self, recipe: Recipe, out: Path, vocabulary: int, ends: Sequence[int]) -> None:
        """`vocabulary`: the target's size; `ends`: tokens that every draft must know."""
        self.recipe, self.out = recipe, out
        self.accelerator = Accelerator(mixed_precision=recipe.precision)
        self.progress = Progress()
        self.stopped = False
        documents = read_answers([Path(path) for path in recipe.answers], recipe.length)
        self.training, self.held_out = split(documents, recipe.held_out, recipe.seed)
        self.held_out = self.held_out[: recipe.validation_answers]
        if not self.training or not self.held_out:
            raise UserError(
                f"expected answers to several prompts, got {len(documents)} answers: too few for a held-out split"
            )
        state = self._stored()
        self.tokens_N: Tensor = state["draft"]["tokens_N"] if state else self._vocabulary(vocabulary, ends)
        random.Random(recipe.seed).shuffle(self.training)
        if recipe.most_answers:
            del self.training[recipe.most_answers :]
        self.planned = recipe.tokens
        if recipe.epochs:
            self.planned = round(recipe.epochs * sum(document.positions for document in self.training))
        torch.manual_seed(recipe.seed)
        draft = self.build()
        trained = [parameter for parameter in draft.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.draft, self.optimizer = self.accelerator.prepare(draft, optimizer)
        if state:
            self._restore(state)

    def _vocabulary(self, size: int, ends: Sequence[int]) -> Tensor:
        if not 0 < self.recipe.vocabulary < size:
            return torch.arange(size)
        return frequent_tokens(self.training, self.recipe.vocabulary, ends)

    # what a kind of draft is -----------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The draft at its start, for the tokens `tokens_N`; called with its batches it returns losses. Its state has
        `tokens_N` too."""

    @abstractmethod
    def teach(self, start: int, documents: Sequence[Document]) -> Any:
        """What the target says of a chunk, the documents from `start` on."""

    @abstractmethod
    def batch(self, documents: Sequence[Document], taught: Any, indices: Sequence[int]) -> Batch:
        """The arguments of the draft for some documents of a chunk."""

    @abstractmethod
    def validate(self) -> dict[str, Any]:
        """What the held-out answers say of the draft, for the log; with `accept_length` a run can end early."""

    def hopeless(self) -> bool:
        """Whether to end before the planned tokens, by the validations so far."""
        return False

    @abstractmethod
    def report(self) -> None:
        """Write what shows the run, from its log."""

    # data -------------------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[int, list[Batch]]]:
        """For each optimiser step from where the run stands, without end: its tokens and this process's batches."""
        at = self.progress
        while True:
            chunks = list(range(0, len(self.training), self.recipe.chunk))
            if at.epoch:  # the first epoch goes in order: so it starts with the chunks that the teacher did already
                random.Random(f"{self.recipe.seed} {at.epoch}").shuffle(chunks)
            while at.chunk < len(chunks):
                yield from self._chunk_steps(chunks[at.chunk])
                at.chunk, at.step = at.chunk + 1, 0
            at.epoch, at.chunk = at.epoch + 1, 0

    def _chunk_steps(self, start: int) -> Iterator[tuple[int, list[Batch]]]:
        recipe, at = self.recipe, self.progress
        documents = self.training[start : start + recipe.chunk]
        taught = self.teach(start, documents)
        seed = f"{recipe.seed} {at.epoch} {start}"
        batches = length_batches([document.positions for document in documents], recipe.micro_tokens, seed)
        size = max(recipe.batch_tokens // recipe.micro_tokens, self.accelerator.num_processes)
        groups = [batches[i : i + size] for i in range(0, len(batches), size)]
        while at.step < len(groups):
            at.step += 1
            group = groups[at.step - 1]
            tokens = sum(documents[i].positions for indices in group for i in indices)
            yield tokens, [self.batch(documents, taught, indices) for indices in self._own(group)]

    def _own(self, group: Sequence[list[int]]) -> list[list[int]]:
        """This process's part; a last group that is too small for all is filled up from its beginning."""
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        return [group[i % len(group)] for i in range(rank, -(-len(group) // count) * count, count)]

    # training ---------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """To the planned tokens, or until `stop`; a checkpoint is written at the end either way."""
        if not self.progress.tokens:
            self._log([], 0.0)
        elif self.done == 1:
            return
        losses: list[float] = []
        logged, log_time, save_time = self.progress.tokens, time.monotonic(), time.monotonic()
        for tokens, batches in self.steps():
            losses.append(self._step(tokens, batches))
            seen, now = self.progress.tokens, time.monotonic()
            end = self.stopped or seen >= self.planned
            if end or seen // self.recipe.validate_every > logged // self.recipe.validate_every:
                self._log(losses, (seen - logged) / (now - log_time))
                logged, log_time, losses = seen, time.monotonic(), []
                end = end or self.hopeless()
            if end or now - save_time > self.recipe.save_every:
                self.save()
                save_time = time.monotonic()
            if end:
                return

    @property
    def done(self) -> float:
        """Share of the planned tokens."""
        return min(self.progress.tokens / self.planned, 1.0)

    def stop(self, *_: object) -> None:
        """Also as a signal handler: end after the step that is running."""
        self.stopped = True

    def _step(self, tokens: int, batches: Sequence[Batch]) -> float:
        self.draft.train()
        torch.manual_seed(self.recipe.seed + self.progress.tokens)  # a resumed run draws what a whole one would
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.done)
        total = 0.0
        for batch in batches:
            loss = self.draft(**batch).mean() / len(batches)
            self.accelerator.backward(loss)
            total += loss.item()
        clip_by = {"norm": self.accelerator.clip_grad_norm_, "value": self.accelerator.clip_grad_value_}
        clip_by[self.recipe.clip_by](self.draft.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.tokens += tokens
        return total

    def _log(self, losses: Sequence[float], speed: float) -> None:
        """Validate. Every process does, so that all of them know when to end."""
        found = self.validate()
        if "accept_length" in found:
            self._compare(found["accept_length"])
        if not self.accelerator.is_main_process:
            return
        line = {
            "tokens": self.progress.tokens,
            "loss": round(sum(losses) / len(losses), 4) if losses else None,
            **found,
            "learning_rate": learning_rate(self.recipe, self.done),
            "tokens_per_second": round(speed, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        print(json.dumps(line), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report()

    def _compare(self, accept_length: float) -> None:
        """Keep the weights if none before were accepted for longer."""
        if accept_length > self.progress.best:
            self.progress.best, self.progress.worse = accept_length, 0
            self._write("best.pt")
        else:
            self.progress.worse += 1

    # checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Replace the checkpoint, which a run goes on from."""
        self._write("checkpoint.pt", optimizer=self.optimizer.state_dict())

    def _write(self, name: str, **more: Any) -> None:
        """Replace a file at once, so that a run killed while writing still has the last one."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "progress": dataclasses.asdict(self.progress),
            "draft": self.accelerator.unwrap_model(self.draft).state_dict(),
        }
        partial = self.out / "checkpoint.partial"
        torch.save(state | more, partial)
        partial.replace(self.out / name)

    def _stored(self) -> dict[str, Any] | None:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        mine, before = dataclasses.asdict(self.recipe), state["recipe"]
        if set(mine) != set(before):
            raise UserError(f"the run in {self.out} is of another kind of draft: choose another --out")
        other = [
            f"{name} {before.get(name)}" for name in mine if name not in CHANGEABLE and mine[name] != before.get(name)
        ]
        if other:
            raise UserError(f"the run in {self.out} has {', '.join(other)}: use the same options, or another --out")
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.accelerator.unwrap_model(self.draft).load_state_dict(state["draft"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
