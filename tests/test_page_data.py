"""What the page makes of passes, answers and folders, without its server."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from evaluation.answers.record import Answer, read_answers
from evaluation.launch.worker import to_choice
from evaluation.page.files import LESSONS
from evaluation.page.lanes import Lane, passes_of
from evaluation.page.messages import Passes
from evaluation.page.origins import origins
from evaluation.page.pieces import Pieces
from evaluation.page.replay import write_replay
from evaluation.page.runs import Runs
from evaluation.page.worker import PART, Watch, chances
from methods import get_method
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.target import Pearl
from tests.answer_files import header, write
from tests.page_server import LEAF, write_runs


def test_origins_are_told_by_counts_alone() -> None:
    """A pass of a chain, of each kind, as the rule of verification decides it."""
    assert origins("turns", 3, 0, 0, 1, True) == "ppp"
    assert origins("alone", 1, 0, 0, 1, False) == "o"
    assert origins("turns", 4, 3, 3, 4, False) == "kkko"  # all kept, and the bonus
    assert origins("turns", 3, 5, 2, 6, False) == "kkc"
    assert origins("turns", 2, 5, 4, 6, False) == "kk"  # cut at the end of the answer
    assert origins("pearl", 1, 1, 1, 1, False) == "b"  # pre-verify: nothing was drafted when the pass began
    assert origins("pearl", 1, 1, 0, 1, False) == "c"
    assert origins("pearl", 4, 4, 4, 4, False) == "aaab"
    assert origins("pearl", 3, 4, 2, 4, False) == "aac"
    assert origins("peer", 3, 0, 0, 1, False) == "kko"  # another library's loop tells no counts


def test_the_chance_of_each_token_is_the_targets_given_all_before_it(tiny: Path) -> None:
    models = Models(str(tiny), None, "float32", [torch.device("cpu")])
    prompt, answer = [3, 1, 4], [(5 * i) % 90 + 1 for i in range(2 * PART + 3)]
    found = chances(models.target, prompt, answer, Sampling(1.0))
    for place in (0, 1, PART, PART + 1, len(answer) - 1):
        logits_1V = models.target.prefill(prompt + answer[:place]).logits_NV
        assert found[place] == pytest.approx(float(torch.softmax(logits_1V[0].double(), -1)[answer[place]]), rel=1e-6)
    assert len(found) == len(answer) and chances(models.target, prompt, [], Sampling(1.0)) == []


@pytest.mark.parametrize("name", ["autoregressive", "sps", "eagle2", "pearl"])
def test_a_lane_read_from_an_answer_file_is_the_one_that_was_watched(
    tiny: Path, weights: dict[str, Path], tmp_path: Path, name: str
) -> None:
    spec, limits, prompt = get_method(name), Limits(frozenset(), 40), [(7 * i) % 90 + 1 for i in range(30)]
    models = Models(str(tiny), None, "float32", [torch.device("cpu")])
    models = models.with_draft(str(weights[spec.weights])) if spec.weights else models
    drafters = {name: build_chain_drafter(spec, models, {})} if spec.loop == "pearl" else {}
    ours, theirs = multiprocessing.Pipe()
    with local_draft_rank(drafters) as (link, ready):
        models.link = link
        method = build_method(spec, models, {"gamma": 3})
        if isinstance(method, Pearl):
            method.meet(ready[name])
        watch = Watch(ours, 0)
        generation = generate(method, prompt, Sampling(), limits, watch)
    watch.hand_over()
    tokenizer = models.target_checkpoint.tokenizer
    watched, lane = [], Lane(spec.loop, tokenizer)
    while theirs.poll():
        if isinstance(message := theirs.recv(), Passes):
            watched += lane.add(message.passes)
    path = tmp_path / f"{name}.jsonl"
    write(path, [Answer(1, "qa", "tiny", [to_choice([generation], ["words"], 0)])], header(name))
    choice = read_answers(path)[1].choices[0]
    read = Lane(spec.loop, tokenizer).add(passes_of(choice, 0))
    for one, other in zip(watched, read, strict=True):
        assert {key: other[key] for key in "tdan"} == {key: one[key] for key in "tdan"}
        assert other["e"] == pytest.approx(one["e"], abs=2e-5)
    assert sum(len(each["t"]) for each in read) == 40


def test_the_page_of_a_folder_holds_its_answers(tiny: Path, tmp_path: Path) -> None:
    runs = Runs(write_runs(tmp_path, tiny))
    text = write_replay(runs).read_text(encoding="utf-8")
    assert "/static/" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    data = json.loads(text[text.index("PB.data = ") + len("PB.data = ") : text.index(";\n// The page: its tabs")])
    assert (
        data["answers"][LEAF]["3"] == json.loads(json.dumps(runs.answers(LEAF, 3))) and len(data["answers"][LEAF]) == 8
    )
    assert data["figures"][LEAF]["runs"]["pld"]["speedup"] == pytest.approx(2.0)
    with pytest.raises(UserError, match="holds no runs"):
        write_replay(Runs(tmp_path / "first/mini_bench/tiny/none"))


def test_pieces_join_to_the_text_though_characters_are_spread_over_tokens() -> None:
    class Bytes:
        """A tokenizer of bytes; 300 is special."""

        all_special_ids = (300,)

        def decode(self, ids: list[int], **_: object) -> str:
            return bytes(ids).decode(errors="replace")

        def convert_ids_to_tokens(self, token: int) -> str:
            return f"<|{token}|>"

    text = "naïve 😀 ok\n    x"
    pieces = Pieces(Bytes())
    found = [piece for token in text.encode() for piece in pieces.add([token])]
    assert "".join(found) == text and len(found) == len(text.encode()) and "" in found
    assert pieces.add([300, 97]) == ["<|300|>", "a"]


def test_the_lessons_are_whole() -> None:
    lessons = json.loads(LESSONS.read_text(encoding="utf-8"))["lessons"]
    assert len(lessons) == 5
    for lesson in lessons:
        assert len(lesson["says"]) == len(lesson["answer"]["passes"]) and all(lesson["says"])
    assert LESSONS.stat().st_size < 150_000
