"""A pair's draft model, wherever its weights come from: a model of its own, the target's first K layers, the target in
8 or 4 bits, or what scripts/train.py exports. Loaded once for all methods that have the same."""

import copy
import filecmp
from dataclasses import replace
from pathlib import Path

import torch

from methods.engine.config import ModelConfig
from methods.engine.decoder import PROBE_TOKENS, Decoder
from methods.engine.loader import DTYPES, Checkpoint, plan_layers
from methods.engine.low_bits import LowBitWeights, frequent_tokens
from methods.engine.schema import enough_memory
from methods.engine.trained_draft import check_tokens, is_trained_draft, load_draft
from methods.engine.transformer import Transformer
from methods.engine.weights import TOKENS, Weights
from methods.errors import UserError, shown
from methods.models import DRAFT_MODEL, Models
from methods.paths import ROOT


def check(models: Models) -> None:
    """Refuse a draft that cannot be this target's, by what its files say."""
    if models.draft_layers is not None:
        _check_layers(models, models.draft_layers)
    if models.draft_head is not None and not 0 < models.draft_head <= models.vocabulary:
        wanted = f"a draft that knows 1 to {models.vocabulary} of the target's tokens"
        raise UserError(f"expected {wanted}, got {models.draft_source}")
    if models.draft_head is not None:
        _ = ranked_tokens(models)
    if not models.draft_is_target and not is_trained_draft(models.draft_checkpoint):  # that has the target's own tokens
        check_same_tokenizer(models.target_checkpoint, models.draft_checkpoint)


def draft_decoder(models: Models) -> Decoder:
    """The draft with a cache of its own."""

    def load() -> Decoder:
        decoder = recorded(Decoder(draft_model(models), models.max_length, exact=False))
        if models.keep_prompts:
            decoder.keep_prompts()
        return decoder

    return models.once("draft decoder", load)


def recorded(decoder: Decoder) -> Decoder:
    """The same, its passes recorded where they can be."""
    decoder.record()
    return decoder


def draft_model(models: Models) -> Transformer:
    """The draft, where most room is left beside the target; where both are loaded it shares what it can."""
    return models.once(DRAFT_MODEL, lambda: _loaded(models))


def _loaded(models: Models) -> Transformer:
    check(models)
    with enough_memory(f"for the draft {models.draft_source}"):
        model = _load(models)
    Decoder(model, PROBE_TOKENS).probe_numbers(f"the draft {models.draft_source}")
    return model


def _load(models: Models) -> Transformer:
    checkpoint = models.draft_checkpoint
    if models.draft_layers is not None:
        return _first_layers(models, models.draft_layers)
    if models.draft_bits is not None:
        return _low_bits(models, models.draft_bits)
    if is_trained_draft(checkpoint) and not checkpoint.is_scripted:
        config = models.target_checkpoint.config
        return load_draft(checkpoint, config, models.embedding_VD, models.dtype, models.draft_device)
    models.target_first()
    return checkpoint.transformer(models.dtype, models.devices, models.rows_of(checkpoint.config))


def _check_layers(models: Models, count: int) -> None:
    most = models.target_checkpoint.config.layers - 1
    if not most:
        raise UserError("a target of one layer has no first layers to draft with; choose another draft")
    if not 0 < count <= most:
        raise UserError(f"expected a draft of 1 to {most} of the target's layers, got {models.draft_source}")


def _low_bits(models: Models, bits: int) -> Transformer:
    checkpoint, count = models.target_checkpoint, models.draft_head
    tokens_R = None
    if count is not None:
        tokens_R = frequent_tokens(models.vocabulary, count, checkpoint.eos_token_ids, ranked_tokens(models))
    weights = LowBitWeights(checkpoint.weights, models.embedding_VD, bits, tokens_R)
    return Transformer(checkpoint.config, weights, DTYPES[models.dtype], _target_devices(models, checkpoint.config))


def _target_devices(models: Models, config: ModelConfig) -> list[torch.device]:
    """Of the layers of a draft that is made of the target's: the target's own, or where that is on another rank, or on
    several, as they fit."""
    if models.has_whole_target:
        return models.target.model.devices
    models.target_first()
    dtype = DTYPES[models.dtype]
    return plan_layers(f"the draft {models.draft_source}", config, dtype, models.devices, models.rows_of(config))


def ranked_tokens(models: Models) -> list[int]:
    """The target's tokens, the most frequent first, as far as the pair's file has them (scripts/frequent_tokens.py);
    none where it has no file."""
    if models.frequent is None:
        return []
    path = Path(models.frequent).expanduser()
    path = path if path.is_file() else ROOT / path
    if not path.is_file():
        raise UserError(f"expected the most frequent tokens in the file {shown(models.frequent)}, found none")
    weights = Weights(path.parent, path.name)
    if TOKENS not in weights:
        raise UserError(f"expected {TOKENS} in {path}, found none; write it with scripts/frequent_tokens.py")
    check_tokens(weights[TOKENS], models.vocabulary, str(path))
    return [int(token) for token in weights[TOKENS]]


def _first_layers(models: Models, count: int) -> Transformer:
    checkpoint = models.target_checkpoint
    if models.has_whole_target:
        return first_layers(models.target.model, count)
    short = replace(checkpoint.config, layers=count)
    return Transformer(short, checkpoint.weights, DTYPES[models.dtype], _target_devices(models, short))


def first_layers(model: Transformer, count: int) -> Transformer:
    """A draft of the target's first layers with its final norm and head; shares the target's weights."""
    short = copy.copy(model)
    short.config = replace(model.config, layers=count)
    short.layers, short.devices = model.layers[:count], model.devices[:count]
    return short


def check_same_tokenizer(target: Checkpoint, draft: Checkpoint) -> None:
    """A draft must know every token of the target by the same id. It may know more (CodeLlama's infilling tokens),
    and the models' sizes may differ (Qwen2.5's padding)."""
    if _same_files(target.folder, draft.folder):
        return
    ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    differing = [token for token, number in ours.items() if theirs.get(token) != number]
    if not differing:
        return
    example = min(differing, key=ours.__getitem__)
    raise UserError(
        f"the draft {draft.source} has another vocabulary than the target {target.source}: {len(differing)} tokens "
        f"differ, for example {example!r}; choose a draft of the same tokenizer"
    )


def _same_files(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same tokenizer files. Then none need be loaded, which takes a second. What
    cannot be read is not the same: loading it says why."""
    names = ("tokenizer.json", "tokenizer_config.json")
    try:
        return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)
    except OSError:
        return False
