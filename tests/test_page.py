"""The page's server, a real process asked over HTTP: races, stops, what it refuses, and the runs below its folder."""

import http.client
import json
import multiprocessing
import signal
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from methods import METHODS, get_method
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.target import Pearl
from tests.answer_files import header, write
from tests.page_server import LEAF, Page, copy_project, page, write_runs

RACED = ["autoregressive", "sps", "eagle2", "pearl"]


@pytest.fixture(scope="module")
def server(tiny: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    project = copy_project(tmp_path_factory.mktemp("project"), tiny, weights)
    with page(project, write_runs(tmp_path_factory.mktemp("results"), tiny)) as running:
        yield running


def lanes(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each lane's passes and answer."""
    names = [lane["name"] for lane in events[0]["lanes"]]
    found: list[dict[str, Any]] = [{"name": name, "passes": []} for name in names]
    for event in events:
        if event["type"] == "passes":
            found[event["lane"]]["passes"] += event["passes"]
        elif event["type"] in ("answer", "chances", "refused"):
            found[event["lane"]] |= event
    return found


def tokens(lane: dict[str, Any]) -> list[list[Any]]:
    return [token for each in lane["passes"] for token in each["t"]]


def test_a_race_gives_every_lane_the_same_tokens_and_says_where_each_came_from(server: Page) -> None:
    events = list(server.race(RACED))
    assert events[-1] == {"type": "end", "stopped": False, "error": ""}
    raced = lanes(events)
    assert [lane["name"] for lane in raced] == RACED
    ids = [[token for token, _, _ in tokens(lane)] for lane in raced]
    assert len(ids[0]) == 24 and all(each == ids[0] for each in ids)
    for lane in raced:
        loop = METHODS[lane["name"]].loop
        for number, each in enumerate(lane["passes"]):
            letters = "".join(letter for _, _, letter in each["t"])
            assert letters == origins(loop, len(each["t"]), each["d"], each["a"], each["n"], number == 0)
            if "g" in each:  # the kept drafts are the tokens of the pass, and their nodes hang together
                kept = [each["g"]["i"][node - 1] for node in each["g"]["k"]]
                assert kept[: len(each["t"])] == [token for token, _, _ in each["t"]][: each["a"]]
                assert len(each["g"]["i"]) == each["d"] and len(kept) == each["a"]
        ends = [each["e"] for each in lane["passes"]]
        assert ends == sorted(ends) and ends[-1] == pytest.approx(lane["wall"], abs=1e-5)
        assert lane["p"] == raced[0]["p"] and all(0 < p <= 1 for p in lane["p"])
    spans = {(rank, work) for each in raced[3]["passes"] for rank, work, *_ in each.get("s", [])}
    assert {("target", "verify"), ("draft", "draft")} <= spans


def test_models_stay_loaded_and_the_next_race_works_after_each_stop(server: Page) -> None:
    """In every phase of a race of two ranks: before a method is loaded, while it reads the prompt, while it decodes."""
    for phase in ("load", "prefill", "decode"):
        events = []
        for event in server.race(["autoregressive", "pearl-pld@gamma=2"], max_new_tokens=400):
            events.append(event)
            if event["type"] == "phase" and (event["lane"], event["name"]) == (1, phase):
                assert server.ask("/api/stop", {})[0] == 200
        assert events[-1]["type"] == "end" and events[-1]["stopped"], (phase, events[-1])
        again = list(server.race(["pearl-pld@gamma=2"], max_new_tokens=8))
        assert [event["name"] for event in again if event["type"] == "phase"][:1] == ["load"]
        assert len(tokens(lanes(again)[0])) == 8
    assert "warm-up" not in [event.get("name") for event in again]  # the method was kept


def test_a_reader_who_goes_away_ends_the_race(server: Page) -> None:
    race = server.race(["pearl-pld"], max_new_tokens=400)
    assert next(race)["type"] == "race"
    status, told = server.ask("/api/race", {"methods": ["pld"], "prompt": "a"})
    assert (status, told["error"]) == (400, "expected no other race, but one is running; stop it, or wait for its end")
    while next(race)["type"] != "passes":
        pass
    race.close()
    end = time.monotonic() + 15
    while not (events := attempt(server)) and time.monotonic() < end:
        time.sleep(0.1)
    assert events[-1] == {"type": "end", "stopped": False, "error": ""}
    begun = server.race(["pearl-pld"], max_new_tokens=400)
    assert next(begun)["type"] == "race"  # and is left before the processes have it
    begun.close()
    while not (events := attempt(server)) and time.monotonic() < end:
        time.sleep(0.1)
    assert events[-1]["type"] == "end"


def attempt(server: Page) -> list[dict[str, Any]]:
    """The events of a race; none where another is still running."""
    try:
        return list(server.race(["pearl-pld"], max_new_tokens=4))
    except urllib.error.HTTPError:
        return []


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"methods": ["slp"]}, 400, "did you mean 'sps'"),
        ({"methods": ["sps@gamma=0"]}, 400, "expected sps@gamma=VALUE"),
        ({"methods": ["sps@draft=/etc/passwd"]}, 400, "a draft is the pair's"),
        ({"methods": ["pld,sps"]}, 400, "expected a method"),
        ({"methods": ["pld"] * 5}, 422, "methods"),
        ({"methods": ["pld"], "max_new_tokens": 10**6}, 422, "max_new_tokens"),
        ({"methods": ["pld"], "output": "/tmp"}, 422, "output"),
        ({"methods": ["pld"], "prompt": 5}, 422, "prompt"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_a_sentence(
    server: Page, asked: dict[str, object], status: int, words: str
) -> None:
    found, told = server.ask("/api/race", {"prompt": "a"} | asked)
    assert found == status and words in told["error"] and "\n" not in told["error"]


def test_requests_of_other_places_are_refused(server: Page) -> None:
    good = f"127.0.0.1:{server.port}"
    for headers, status in (
        ({"host": good}, 200),
        ({"host": f"localhost:{server.port}"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": f"evil.example:{server.port}"}, 421),
        ({"host": "127.0.0.1:1"}, 421),
        ({"host": good, "origin": "http://evil.example"}, 403),
        ({"host": good, "origin": f"http://{good}"}, 200),
    ):
        assert server.ask("/api/page", headers=headers)[0] == status, headers
    stop = b"{}"
    assert raw(server, "POST", "/api/stop", stop, {"content-type": "text/plain"}) == 415
    assert raw(server, "POST", "/api/stop", b" " * 70000, {"content-type": "application/json"}) == 413
    for path in ("/static/../server.py", "/static/%2e%2e%2fserver.py", "/docs", "/openapi.json"):
        assert raw(server, "GET", path, None, {}) == 404


def raw(server: Page, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_runs_below_the_folder_and_nothing_else(server: Page) -> None:
    status, found = server.ask("/api/runs")
    assert status == 200 and {(row["folder"], row["run"]) for row in found["rows"]} == {
        (LEAF, name) for name in ("autoregressive", "pld", "sps")
    }
    _, figures = server.ask(f"/api/figures?folder={LEAF}")
    assert figures["runs"]["pld"]["speedup"] == pytest.approx(2.0)
    assert figures["runs"]["pld"]["identical"] == [8, 8] and figures["runs"]["sps"]["identical"] == [0, 8]
    assert set(figures["runs"]["pld"]["categories"]) == {"qa", "summarization"} and len(figures["questions"]) == 8
    _, answers = server.ask(f"/api/answers?folder={LEAF}&question=3")
    (turn,) = answers["answers"]
    assert [lane["name"] for lane in turn] == ["autoregressive", "sps", "pld"]
    letters = ["".join(letter for _, _, letter in tokens(lane)) for lane in turn]
    assert letters == ["p" + 9 * "o", "p" * 5 + "kkkko", "pp" + 4 * "ko"]
    assert "".join(text for _, text, _ in tokens(turn[0])) == "&'&'&'()*+"
    same = f"folder={LEAF}&run=autoregressive&other_folder={LEAF}&other_run=sps"
    _, compared = server.ask(f"/api/compare?{same}")
    assert compared["speed"]["speedup"] == pytest.approx(1.6) and compared["parted"][0] == [1, 0, 6]
    for folder in ("..", "/etc", f"{LEAF}/..", ""):
        status, told = server.ask(f"/api/figures?folder={folder}")
        assert status == 400 and "there are no runs in" in told["error"]
    assert server.ask(f"/api/answers?folder={LEAF}&question=true")[0] == 400


def test_the_server_ends_with_its_processes(server: Page) -> None:
    """The last test of the file: Ctrl-C."""
    children = subprocess.run(
        ["ps", "--ppid", str(server.process.pid), "-o", "pid="], capture_output=True, text=True
    ).stdout.split()
    assert children
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) in (0, 130)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


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
