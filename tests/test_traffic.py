"""Bytes of weights that are read: by a pass, by a draft that is left early, and as draft-then-verify tells of them."""

from pathlib import Path

import pytest
import torch

from methods import get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.draft_model import draft_model
from methods.drafters.sd2.exits import StagedDecoder
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.traffic import moment
from methods.engine.trained_draft import exits_of
from methods.models import Models

PROMPT = [3, 1, 4, 1, 5, 9, 2]


def pair(tiny: Path, draft: str | Path) -> Models:
    return Models(str(tiny), str(draft), "float32", [torch.device("cpu")])


@pytest.mark.parametrize("draft", ["int8", "int4", "int4-50", "first-2"])
@pytest.mark.usefixtures("operators")
def test_a_pass_reads_every_weight_once_however_many_rows_it_has(tiny: Path, draft: str) -> None:
    model = draft_model(pair(tiny, draft))
    decoder = Decoder(model)
    decoder.prefill(PROMPT)
    for tokens in ([1], [2, 3, 4]):
        before = moment().read
        decoder.extend(tokens)
        assert moment().read - before == model.weight_bytes


def test_a_draft_that_is_left_early_reads_less(tiny: Path, tiny_sorted: Path) -> None:
    models = pair(tiny, tiny_sorted)
    model, exits = draft_model(models), exits_of(models.draft_checkpoint)
    decoder = StagedDecoder(model, exits, threshold=0.0)  # always confident at the first exit
    decoder.prefill(PROMPT)
    before = moment().read
    decoder.extend([1])
    assert moment().read - before == model.bytes_up_to(exits[0]) < model.weight_bytes


def test_draft_then_verify_tells_what_its_drafter_has_read(tiny: Path) -> None:
    models = pair(tiny, "first-2")
    method = build_method(get_method("sps"), models, {"gamma": 3})
    answer = generate(method, PROMPT, Sampling(), Limits(frozenset(), 20))
    assert answer.draft_bytes == answer.proposed * draft_model(models).weight_bytes > 0
    nothing = generate(build_method(get_method("pld"), models, {}), PROMPT, Sampling(), Limits(frozenset(), 20))
    assert nothing.draft_bytes == 0 < nothing.proposed
