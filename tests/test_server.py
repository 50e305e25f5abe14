"""The row `server` against real servers: the same tokens and stop rules by every way of asking, what servers tell of
their drafts, and one sentence for each thing that may be wrong with them."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse, StreamingResponse

from evaluation import run
from evaluation.answers.header import read_header
from evaluation.judge.groups import read_groups
from evaluation.judge.stats import accepted_share, mean_accept_length
from evaluation.launch.config import parse
from evaluation.launch.worker import to_choice
from evaluation.show.document import to_markdown
from evaluation.show.page import Report, served_in
from methods import get_method
from methods.base import Generation, Limits, generate
from methods.build import build_method
from methods.engine.loader import find_checkpoint
from methods.engine.sampling import Sampling
from methods.errors import RunError, UserError
from methods.models import Models
from methods.pairs import get_pair
from methods.peers.endpoint import Refused, Silent
from methods.peers.server import GREETING, Server
from scripts.serve_tiny import Plain, Service
from tests.commands import in_process
from tests.servers import llama_server, refused_port, serving, tiny_server, write_tiny_gguf
from tests.tiny import save_model, save_tokenizer

TEXT = "u:Say it again, say it again, and say it\na:"
GREEDY = Sampling()
LIMITS = Limits(frozenset({0}), 24)


def models_of(target: Path, draft: Path | None = None, **servers: str) -> Models:
    found = Models(str(target), str(draft) if draft else None, "float32", [torch.device("cpu")])
    found.servers = servers
    return found


def connect(target: Path, url: str, **options: Any) -> Server:
    server = build_method(get_method("server"), models_of(target, plain=url), options)
    assert isinstance(server, Server)
    return server


def prompt_of(models: Models) -> list[int]:
    ids: list[int] = models.target_checkpoint.tokenizer(TEXT)["input_ids"]
    return ids


def ours(models: Models, limits: Limits, method: str = "autoregressive", sampling: Sampling = GREEDY) -> Generation:
    return generate(build_method(get_method(method), models, {}), prompt_of(models), sampling, limits)


@pytest.mark.parametrize(
    ("speaks", "asked", "tokens"),
    [
        ("vllm", "prompts as token ids", "returned as ids"),
        ("sglang", "prompts as token ids", "returned as ids"),
        ("plain", "prompts as text", "counted by the target's tokenizer"),
    ],
)
def test_a_server_gives_the_tokens_that_its_engine_gives(
    speaks: str, asked: str, tokens: str, tiny: Path, tiny_draft: Path, one_thread: None
) -> None:
    models = models_of(tiny, tiny_draft)
    with tiny_server(tiny, "sps", speaks, tiny_draft) as url:
        server = connect(tiny, url + "/v1/")
        assert asked in server.conditions["asked"] and server.conditions["tokens"] == tokens
        assert server.conditions["url"] == url and server.conditions["model"] == tiny.name
        expected = ours(models, LIMITS, "sps")
        got = generate(server, prompt_of(models), GREEDY, LIMITS)
        assert (got.token_ids, got.finish) == (expected.token_ids, expected.finish) == (got.token_ids, "length")
        assert 0 < got.prefill_time < got.wall_time
        drawn = Sampling(1.0, 0 if speaks == "plain" else 5, 0.9, 7)
        assert (
            generate(server, prompt_of(models), drawn, LIMITS).token_ids == ours(models, LIMITS, "sps", drawn).token_ids
        )
    choice = to_choice([got], [""], 0)
    if speaks == "plain":
        assert got.told is None and mean_accept_length([choice]) is None and accepted_share([choice]) is None
    else:
        drafted, accepted = sum(expected.drafted), sum(expected.accepted)
        assert got.told == (drafted, accepted) and 0 < accepted < drafted
        assert accepted_share([choice]) == pytest.approx(accepted / drafted)
        assert mean_accept_length([choice]) == pytest.approx(24 / (24 - accepted))
    assert choice.nodes is None and choice.drafted is None and choice.accept_lengths == []


@pytest.mark.parametrize("speaks", ["vllm", "plain"])
def test_the_stop_rules_are_ours(speaks: str, tiny: Path, one_thread: None) -> None:
    """Also of a server that does not know the id which ends an answer, or leaves it out."""
    models = models_of(tiny)
    tokens = ours(models, Limits(frozenset(), 24)).token_ids
    ends = Limits(frozenset({0, tokens[9]}), 24)
    with tiny_server(tiny, speaks=speaks) as url:
        server = connect(tiny, url)
        for limits in (ends, Limits(frozenset({0}), 1)):
            expected, got = ours(models, limits), generate(server, prompt_of(models), Sampling(), limits)
            assert (got.token_ids, got.finish) == (expected.token_ids, expected.finish)


@contextmanager
def saying(*messages: str, status: int = 200, seconds: float = 0.0, models: Any = None) -> Iterator[str]:
    """A server that says the same whatever it is asked for."""
    app = FastAPI()

    @app.get("/v1/models")
    def listed() -> Any:
        return {"data": [{"id": name} for name in models or ["one"]]}

    @app.post("/v1/completions")
    def completion() -> Any:
        if status != 200:
            raise HTTPException(status, messages[0])
        time.sleep(seconds)
        return StreamingResponse((f"data: {message}\n\n" for message in messages), media_type="text/event-stream")

    with serving(app) as url:
        yield url


def chunk(text: str, ids: str, **more: str) -> str:
    extra = "".join(f', "{key}": {value}' for key, value in more.items())
    return f'{{"choices": [{{"text": "{text}", "token_ids": {ids}{extra}}}]}}'


def test_an_answer_ends_with_the_eos_that_a_server_leaves_out(tiny: Path) -> None:
    said = chunk("Hi", "[41, 74]", finish_reason='"stop"', stop_reason="7")
    with saying(said) as url:
        server = connect(tiny, url)
        got = [generate(server, [1], Sampling(), Limits(frozenset(ids), 9)) for ids in ({0, 7}, {0, 9}, {9, 11})]
    assert [answer.token_ids for answer in got] == [[41, 74, 7], [41, 74, 0], [41, 74, 9]]
    assert {answer.finish for answer in got} == {"eos"}


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (lambda: saying("no", status=401), "wants a key \\(status 401\\): set OPENAI_API_KEY"),
        (lambda: saying("no", status=404), "it has no /v1/completions: correct --server"),
        (lambda: saying("too busy", status=503), "too busy \\(status 503\\)"),
        (lambda: saying("not this", status=400), "refuses every kind of prompt: not this \\(status 400\\)"),
        (lambda: saying("oh"), "expected JSON from .*, got 'oh'"),
        (lambda: saying('{"error": {"message": "the engine died"}}'), "the engine died"),
        (
            lambda: saying(chunk("Hi", "[1, 2]"), seconds=0.5),
            "said nothing for 0.2 seconds; server@timeout= allows more",
        ),
        (lambda: saying(chunk("Hi", "[1, 2]")), "expected the server at .* to have the target's vocabulary"),
        (lambda: saying("", models=["a", "b"]), "got a, b: serve it by that name"),
    ],
)
def test_what_is_wrong_with_a_server_is_one_sentence(server: Any, said: str, tiny: Path) -> None:
    with server() as url, pytest.raises(UserError, match=said) as told:
        connect(tiny, url, timeout=0.2)
    assert "\n" not in str(told.value)


def test_a_character_of_several_tokens_is_served_whole() -> None:
    tokenizer = find_checkpoint(get_pair("smollm2-135m").target).tokenizer
    text = "naïve 🧩 ok"
    ids, told = tokenizer(text)["input_ids"], SimpleQueue[Any]()
    service = Service(None, tokenizer, [0], "model", "plain")  # type: ignore[arg-type]
    for place, token in enumerate(ids, 1):
        told.put(([token], "length" if place == len(ids) else ""))
    told.put(Generation(token_ids=ids))
    asked = Plain(model="model", prompt="x")
    parts = [one["choices"][0]["text"] for one in service._messages(asked, told, 1) if one["choices"]]
    assert "".join(parts) == text and len(parts) == len(ids) and "" in parts


def test_nobody_there_and_no_such_server(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"cannot use the server 'plain': no server answers at http://127.0.0.1"):
        connect(tiny, refused_port())
    app = FastAPI()
    app.add_api_route("/v1/models", lambda: PlainTextResponse("<html>"))
    with serving(app) as url, pytest.raises(UserError, match="got '<html>': is it an OpenAI-compatible server"):
        connect(tiny, url)


def test_another_vocabulary_is_found(tiny: Path, tmp_path: Path, one_thread: None) -> None:
    """By what its ids say, or where it returns none by how many tokens a text has."""
    other = save_model(tmp_path / "other")
    save_tokenizer(other, first=40)
    counted = f'{{"choices": [{{"text": "Hi"}}], "usage": {{"prompt_tokens": {len(GREETING) // 3}}}}}'
    for server in (tiny_server(other), saying(counted)):
        with server as url, pytest.raises(UserError, match="to have the target's vocabulary"):
            connect(tiny, url)


def test_of_several_models_the_targets_is_asked_for(tiny: Path) -> None:
    with saying(chunk("Hi", "[41, 74]"), models=["another", f"somewhere/{tiny.name}"]) as url:
        assert connect(tiny, url).model == f"somewhere/{tiny.name}"


def test_a_server_that_fails_in_the_middle(tiny: Path) -> None:
    """One that is gone ends the run; one that is slow, or refuses, has failed on that question."""
    with saying(chunk("Hi", "[41, 74]")) as url:
        server = connect(tiny, url)
    with pytest.raises(RunError, match="no server answers at"):
        generate(server, [1], GREEDY, LIMITS)
    for broken, kind in ((saying("x", status=400), Refused), (saying("{}", seconds=0.5), Silent)):
        with broken as url:
            server.endpoint = type(server.endpoint)(url, 0.2)
            with pytest.raises(kind):
                generate(server, [1], GREEDY, LIMITS)


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """A launch of two configurations of a server and one method of ours: its folder, what it printed, and the URLs."""
    folder = tmp_path_factory.mktemp("served")
    questions = folder / "mine.jsonl"
    questions.write_text("".join(f'{{"question_id": {n}, "category": "qa", "turns": ["{n} and"]}}\n' for n in range(6)))
    with tiny_server(tiny) as plain, tiny_server(tiny, "pld") as spec:
        places = {"plain": plain, "spec": spec}
        typed = ["server,server@name=spec,pld", "--target", tiny, "--questions", questions, "--dtype", "float32"]
        typed += ["--max-new-tokens", 16, "--threads", 1, "--output", folder / "out"]
        done = in_process(run.main, *typed, "--server", f"{plain},spec={spec}")
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout + done.stderr, places


def test_a_launch_measures_servers_after_the_others(measured: tuple[Path, str, dict[str, str]], tiny: Path) -> None:
    folder, printed, places = measured
    headers = {path.stem: read_header(path) for path in folder.rglob("*.jsonl")}
    assert {name: header and header.apart for name, header in headers.items()} == {
        "autoregressive": None, "pld": None, "server": True, "server@name=spec": True,
    }  # fmt: skip
    for name, place in (("server", "plain"), ("server@name=spec", "spec")):
        header = headers[name]
        assert (
            header and header.server and header.server["url"] == places[place] and header.server["model"] == tiny.name
        )
        assert header.devices == [f"the server at {places[place]}"] and header.threads is None
    assert "server, server@name=spec after the others, in turns; --interleave: all in turns" in printed
    assert "a server answered after the other methods, so drift of the machine is not in the interval" in printed
    assert "server: 6/6 identical (by token ids), 100.0% up to the first difference; a reference row" in printed
    assert "server@name=spec: its speculation is lossless here: 6/6 identical (by token ids)" in printed


def test_a_report_says_whether_a_servers_speculation_is_lossless(
    measured: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(measured[0], folder)
    (group,) = read_groups([folder])
    (served,) = served_in(group)
    pairs = served.gain.questions, served.comparison.shared, served.lossless
    assert pairs == (6, 1.0, True)
    (path,) = folder.rglob("server@name=spec.jsonl")
    first, *others = path.read_text().splitlines()
    answer = json.loads(first)
    (tokens,) = answer["choices"][0]["token_ids"]
    tokens[-1] += 1
    path.write_text("\n".join([json.dumps(answer), *others]) + "\n")
    report = Report(read_groups([folder]), [], [], [], folder, None, "")
    text = to_markdown(report)
    total = sum(answer.choices[0].new_tokens[0] for answer in group.results[0].run.answers.values())
    share = f"{(total - 1) / total:.1%}"
    said = "server@name=spec: its speculation changes its output here: 5/6 identical, 1 different (by token ids)"
    assert f"{said}, {share} up to the first difference" in text
    assert "### Servers beside their plain configuration" in text and f"| ***5/6 identical*** | {share} |" in text


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("server x", "'server' asks a server that is not named: add --server http://HOST:PORT"),
        (
            "server@name=a x --server http://h",
            "'server@name=a' asks a server that is not named: add --server a=http://",
        ),
        ("pld x --server http://h", "no method asks the server 'plain' of --server: add server to the methods"),
        ("server x --server http://h,a=http://g", "asks the server 'a' of --server: add server@name=a to the methods"),
        (
            "server x --server http://h,http://g",
            "expected at most one URL .* for each of 1 replicas, got 2: add --replicas",
        ),
        ("server x --server h:80", "expected http://HOST:PORT, or NAME=http://HOST:PORT, got 'h:80'"),
        ("server x --server http://me:secret@h", "expected a URL without a password: set OPENAI_API_KEY"),
        ("server@name=A/B x", "to be a name of small letters, digits, dots and dashes, got 'A/B'"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_sentence(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        parse([*typed.replace(" x", " smollm2-135m").split()])
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


def test_each_replica_has_its_own_url_and_turns_may_be_shared() -> None:
    typed = ["server,server@name=b,pld", "smollm2-135m", "--server", "http://h,http://g,b=http://f", "--replicas", "2"]
    config = parse(typed)
    assert config.servers == {"plain": ["http://h", "http://g"], "b": ["http://f"]}
    assert config.turns == [["autoregressive", "pld"], ["server", "server@name=b"]]
    assert parse([*typed, "--interleave"]).turns == [["autoregressive", "pld", "server", "server@name=b"]]
    assert parse(["pld", "smollm2-135m"]).turns == [["autoregressive", "pld"]]


@pytest.mark.parametrize("drafts", [False, True])
def test_llama_cpps_own_server(drafts: bool, tiny: Path, tmp_path: Path, one_thread: None) -> None:
    """Of its own way of asking: ids both ways, its drafts, and ids of characters that come in parts."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp's server: pip install xllamacpp")
    models = models_of(tiny)
    tokens = ours(models, Limits(frozenset(), 24)).token_ids
    with llama_server(write_tiny_gguf(tmp_path, tiny), drafts) as url:
        server = connect(tiny, url)
        assert server.conditions["asked"] == "llama.cpp's completion, prompts as token ids"
        for limits in (LIMITS, Limits(frozenset({0, tokens[9]}), 24), Limits(frozenset({0}), 200)):
            expected, got = ours(models, limits), generate(server, prompt_of(models), GREEDY, limits)
            assert (got.token_ids, got.finish) == (expected.token_ids, expected.finish)
            assert (got.told is None) == (len(limits.eos_ids) > 1), "not of an answer that it was still giving"
    assert got.finish == "eos" and got.told is not None and (got.told[0] > 0) == drafts and got.told[1] <= got.told[0]
