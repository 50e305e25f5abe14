"""One training run of a draft: its data in order, steps, validations and checkpoints. Used by train_draft.py."""

import dataclasses
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaForCausalLM

from methods.errors import UserError
from methods.training.data import Document, frequent_tokens, length_batches, pad, read_answers, split
from methods.training.recipe import CHANGEABLE, Recipe, learning_rate
from methods.training.report import write_report
from methods.training.sorted import SortedDraft, chosen_layers
from methods.training.teacher import Targets, Teacher


@dataclass
class Progress:
    """Where in the data a run stands: the next optimiser step of a chunk of an epoch."""

    tokens: int = 0
    epoch: int = 0
    chunk: int = 0
    step: int = 0


class Trainer:
    """Loads what the folder `out` holds of the run; `train` goes on to the planned tokens or until `stop`."""

    def __init__(self, recipe: Recipe, target: LlamaForCausalLM, out: Path) -> None:
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
        tokens_N = state["draft"]["tokens_N"] if state else self._vocabulary(target)
        random.Random(recipe.seed).shuffle(self.training)
        if recipe.most_answers:
            del self.training[recipe.most_answers :]
        self.planned = recipe.tokens
        if recipe.epochs:
            self.planned = round(recipe.epochs * sum(document.positions for document in self.training))
        self._prepare(target, tokens_N)
        if state:
            self._restore(state)

    def _vocabulary(self, target: LlamaForCausalLM) -> Tensor:
        if not 0 < self.recipe.vocabulary < target.config.vocab_size:
            return torch.arange(target.config.vocab_size)
        ends = target.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return frequent_tokens(self.training, self.recipe.vocabulary, [end for end in ends if end is not None])

    def _prepare(self, target: LlamaForCausalLM, tokens_N: Tensor) -> None:
        layers = chosen_layers(self.recipe.layers, target.config.num_hidden_layers)
        draft = SortedDraft(target.float(), layers, self.recipe.exits, tokens_N)
        if self.recipe.precision == "bf16":
            target.bfloat16()
        target.to(self.accelerator.device).eval()
        self.tokens_N = tokens_N
        self.teacher = Teacher(target, tokens_N, self.out / "teacher", self.recipe.kept, self.recipe.micro_tokens)
        optimizer = torch.optim.AdamW(draft.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.draft, self.optimizer = self.accelerator.prepare(draft, optimizer)

    # data -------------------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
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

    def _chunk_steps(self, start: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        recipe, at = self.recipe, self.progress
        documents = self.training[start : start + recipe.chunk]
        targets = self._targets(start, documents) if recipe.targets == "distill" else None
        seed = f"{recipe.seed} {at.epoch} {start}"
        batches = length_batches([document.positions for document in documents], recipe.micro_tokens, seed)
        size = max(recipe.batch_tokens // recipe.micro_tokens, self.accelerator.num_processes)
        groups = [batches[i : i + size] for i in range(0, len(batches), size)]
        while at.step < len(groups):
            at.step += 1
            group = groups[at.step - 1]
            tokens = sum(documents[i].positions for indices in group for i in indices)
            yield tokens, [self._batch(documents, targets, indices) for indices in self._own(group)]

    def _own(self, group: Sequence[list[int]]) -> list[list[int]]:
        """This process's part; a last group that is too small for all is filled up from its beginning."""
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        return [group[i % len(group)] for i in range(rank, -(-len(group) // count) * count, count)]

    def _targets(self, start: int, documents: Sequence[Document]) -> Targets:
        """The first process computes what is not cached yet, the others wait."""
        name = f"train-{start:07d}-{len(documents)}"
        with self.accelerator.main_process_first():
            return self.teacher.targets(name, documents)

    def _batch(self, documents: Sequence[Document], targets: Targets | None, indices: Sequence[int]) -> dict[str, Any]:
        rows = [documents[i].tokens[:-1] for i in indices]
        width = max(map(len, rows))
        where_M = torch.cat([torch.arange(len(row)) + line * width for line, row in enumerate(rows)])
        if targets is None:
            next_M = torch.tensor([token for i in indices for token in documents[i].tokens[1:]])
            ids_M = torch.searchsorted(self.tokens_N, next_M).clamp(max=len(self.tokens_N) - 1)
            ids_MK, probs_MK = ids_M[:, None], (self.tokens_N[ids_M] == next_M).float()[:, None]
        else:
            rows_M = torch.cat([torch.arange(targets.starts[i], targets.starts[i + 1]) for i in indices])
            ids_MK, probs_MK = targets.ids_PK[rows_M].long(), targets.probs_PK[rows_M].float()
        exits = len(self.recipe.exits) if self.recipe.objective == "soft" else 1
        tensors = {"tokens_BL": pad(rows, width), "where_M": where_M, "ids_MK": ids_MK, "probs_MK": probs_MK}
        return {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()} | {"exits": exits}

    # training ---------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """To the planned tokens, or until `stop`; a checkpoint is written at the end either way."""
        if not self.progress.tokens:
            self._log([], 0.0)
        losses: list[float] = []
        logged, log_time, save_time = self.progress.tokens, time.monotonic(), time.monotonic()
        for tokens, batches in self.steps():
            losses.append(self._step(tokens, batches))
            seen, now = self.progress.tokens, time.monotonic()
            end = self.stopped or seen >= self.planned
            if end or seen // self.recipe.validate_every > logged // self.recipe.validate_every:
                self._log(losses, (seen - logged) / (now - log_time))
                logged, log_time, losses = seen, time.monotonic(), []
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

    def _step(self, tokens: int, batches: Sequence[dict[str, Any]]) -> float:
        self.draft.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.done)
        total = 0.0
        for batch in batches:
            loss = self.draft(**batch).mean() / len(batches)
            self.accelerator.backward(loss)
            total += loss.item()
        self.accelerator.clip_grad_norm_(self.draft.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.tokens += tokens
        return total

    def agreement(self) -> list[float]:
        """Per exit, the share of held-out answer positions where its best token is the target's greedy token."""
        targets = self.teacher.targets("held-out", self.held_out, greedy=True)
        batches = length_batches([document.positions for document in self.held_out], self.recipe.micro_tokens, 0)
        hits = torch.cat([self._hits(targets, indices) for indices in batches], dim=1)
        return hits.float().mean(1).tolist()

    def _hits(self, targets: Targets, indices: Sequence[int]) -> Tensor:
        rows = [self.held_out[i].tokens[:-1] for i in indices]
        tokens_BL = pad(rows, max(map(len, rows))).to(self.accelerator.device)
        self.draft.eval()
        with self.accelerator.autocast():
            found_EBL = self.accelerator.unwrap_model(self.draft).predictions(tokens_BL).cpu()
        hits = []
        for line, i in enumerate(indices):
            answer = slice(max(self.held_out[i].start - 1, 0), len(rows[line]))
            greedy = targets.greedy_P[targets.starts[i] : targets.starts[i + 1]]
            hits.append(found_EBL[:, line, answer] == greedy[answer])
        return torch.cat(hits, dim=1)

    def _log(self, losses: Sequence[float], speed: float) -> None:
        if not self.accelerator.is_main_process:
            return
        agreement = zip(self.recipe.exits, self.agreement(), strict=True)
        line = {
            "tokens": self.progress.tokens,
            "loss": round(sum(losses) / len(losses), 4) if losses else None,
            "agreement": {str(number): round(share, 4) for number, share in agreement},
            "learning_rate": learning_rate(self.recipe, self.done),
            "tokens_per_second": round(speed, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        print(json.dumps(line), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        write_report(self.out, self.accelerator.unwrap_model(self.draft).costs)

    # checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Replace the checkpoint at once, so that a run killed while writing still has the last one."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "progress": dataclasses.asdict(self.progress),
            "draft": self.accelerator.unwrap_model(self.draft).state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.out / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.out / "checkpoint.pt")

    def _stored(self) -> dict[str, Any] | None:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        mine, before = dataclasses.asdict(self.recipe), state["recipe"]
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
