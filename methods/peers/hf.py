"""Transformers' own decoding loops on the same prompts and stop rules: the outside measure of our baseline.

They are reference rows: their arithmetic differs from the engine's, so in low precision their output need not be equal.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from methods.base import Generation, Limits, Step
from methods.engine.config import ModelConfig
from methods.engine.loader import DTYPES, Checkpoint, plan_layers
from methods.engine.sampling import Sampling
from methods.engine.trained_draft import is_trained_draft
from methods.errors import UserError
from methods.models import Models


class Passes(BaseStreamer):
    """What `generate` reports while it runs: first the prompt, then the tokens of each pass, with the time."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens.append(value.flatten().tolist())
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class HuggingFace:
    """`PreTrainedModel.generate` with fixed extra arguments, such as prompt lookup."""

    def __init__(self, model: PreTrainedModel, **arguments: Any) -> None:
        self.model: Any = model  # its generate() is typed as a tensor
        self.arguments = arguments

    def _prepare(self, most: int) -> None:
        """Called before an answer of at most that many tokens."""

    def generate(self, prompt_T: Sequence[int], sampling: Sampling, limits: Limits) -> Generation:
        answer = Generation()
        room = self.model.config.max_position_embeddings - len(prompt_T) + 1  # the last token needs no position
        if room < 1:
            answer.finish = "context"
            return answer
        most = min(limits.max_new_tokens, room)
        self._prepare(most)
        torch.manual_seed(sampling.seed)
        passes = Passes()
        begin = time.perf_counter()
        self.model.generate(
            torch.tensor([prompt_T], device=self.model.device),
            attention_mask=torch.ones(1, len(prompt_T), dtype=torch.long, device=self.model.device),
            max_new_tokens=most,
            eos_token_id=sorted(limits.eos_ids) or None,
            pad_token_id=min(limits.eos_ids, default=0),
            streamer=passes,
            **_sampling_arguments(sampling),
            **self.arguments,
        )
        answer.wall_time = time.perf_counter() - begin
        answer.prefill_time = passes.times[1] - begin
        for tokens, end in zip(passes.tokens[1:], passes.times[1:], strict=True):
            answer.add(Step(tokens), limits, end - begin)
        answer.finish = answer.finish or "context"
        return answer


class Assisted(HuggingFace):
    """Assisted generation (Gante 2023) with a constant window of `gamma` tokens, as `sps` has it."""

    def __init__(self, model: PreTrainedModel, assistant: PreTrainedModel, gamma: int, **tokenizers: Any) -> None:
        super().__init__(model, assistant_model=assistant, **tokenizers)
        self.gamma, self.draft = gamma, assistant.generation_config
        self.draft.num_assistant_tokens_schedule = "constant"
        self.draft.assistant_confidence_threshold = 0.0

    def _prepare(self, most: int) -> None:
        """Drafts beyond the answer's end are of no use, and where it goes through text Transformers drafts them all."""
        self.draft.num_assistant_tokens = min(self.gamma, most)


def _sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    if sampling.greedy:
        return {"do_sample": False}
    chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return {"do_sample": True, **chosen}


def _quiet() -> None:
    """Keep Transformers' loading bars and remarks out of the run's own output; errors still show."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _load(checkpoint: Checkpoint, models: Models) -> PreTrainedModel:
    """The checkpoint as Transformers itself loads it."""
    _quiet()
    return _from_folder(checkpoint, checkpoint.config, models)


def _from_folder(checkpoint: Checkpoint, shape: ModelConfig, models: Models, **arguments: Any) -> PreTrainedModel:
    """Loaded to where it stays: of a large model there is no room on the host."""
    if models.devices[0].type == "cuda":
        arguments["device_map"] = device_map(checkpoint.source, shape, models)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=DTYPES[models.dtype], **arguments)
    return model.eval()


def device_map(source: str, config: ModelConfig, models: Models) -> dict[str, str]:
    """The GPU of each part of a model, in Transformers' words: where room is left beside the target of our own rows.
    Raises UserError where there is none."""
    models.target_first()
    name = f"a second copy of {source}, which rows named hf- need,"
    places = plan_layers(name, config, DTYPES[models.dtype], models.devices, models.rows_of(config))
    first, *_, last = map(str, [places[0], *places])
    if first == last:
        return {"": first}
    ends = {"model.embed_tokens": first, "model.rotary_emb": first, "model.norm": last}
    layers = {f"model.layers.{number}": str(place) for number, place in enumerate(places)}
    return {**ends, **layers, "lm_head": first if config.tied else last}


def _load_draft(models: Models) -> PreTrainedModel:
    """The pair's draft for Transformers; of a "first-K" draft the target's first layers."""
    checkpoint = models.draft_checkpoint
    if is_trained_draft(checkpoint) or models.draft_bits is not None:
        raise UserError(f"Transformers cannot run the draft {models.draft_source}; leave out hf-assisted")
    if models.draft_layers is None:
        return _load(checkpoint, models)
    _quiet()
    config = AutoConfig.from_pretrained(checkpoint.folder)
    config.num_hidden_layers = models.draft_layers
    short = replace(checkpoint.config, layers=models.draft_layers)
    return _from_folder(checkpoint, short, models, config=config)


def build_generate(models: Models) -> HuggingFace:
    return HuggingFace(_load(models.target_checkpoint, models))


def build_assisted(models: Models, gamma: int) -> Assisted:
    assistant = _load_draft(models)
    target = _load(models.target_checkpoint, models)
    tokenizers = {}
    if assistant.config.vocab_size != target.config.vocab_size:  # padded differently: Transformers goes through text
        names = ("tokenizer", "assistant_tokenizer")
        checkpoints = (models.target_checkpoint, models.draft_checkpoint)
        tokenizers = {name: checkpoint.tokenizer for name, checkpoint in zip(names, checkpoints, strict=True)}
    return Assisted(target, assistant, gamma, **tokenizers)


def build_pld(models: Models, gamma: int, max_ngram: int) -> HuggingFace:
    model = _load(models.target_checkpoint, models)
    return HuggingFace(model, prompt_lookup_num_tokens=gamma, max_matching_ngram_size=max_ngram)
