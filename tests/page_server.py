"""The page's server as its user starts it, on a tiny pair that has weights of every kind."""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from methods import METHODS
from methods.paths import ROOT
from tests.answer_files import answer, choice, header, write

ADDRESS = re.compile(r"http://[\d.]+:(\d+)")
LANES = 4  # in a race
LEAF = "first/mini_bench/tiny"  # of the runs in its folder
TOY = "toy"  # weights of a drafter that only tests know
TOKENS = [7, 8, 7, 8, 7, 8, 9, 10, 11, 12]


@dataclass(frozen=True)
class Page:
    """A server that runs."""

    port: int
    process: "subprocess.Popen[str]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer; with a body it is a POST."""
        data = None if body is None else json.dumps(body).encode()
        known = {} if body is None else {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, known | dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def race(self, methods: list[str], **asked: object) -> Generator[dict[str, Any], None, None]:
        """The events of a race, as they come; closing this breaks the connection off."""
        body = {"methods": methods, "prompt": "abc abc abc abc", "max_new_tokens": 24} | asked
        request = urllib.request.Request(
            self.url + "/api/race", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


def endless(target: Path, folder: Path) -> Path:
    """The tiny target with a long context, which never says EOS: so that an answer lasts until it is stopped."""
    shutil.copytree(target, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0] = 0  # the largest of the other logits is above that
    save_file(weights, folder / "model.safetensors")
    return folder


def copy_project(folder: Path, target: Path, weights: Mapping[str, Path]) -> Path:
    """The project elsewhere, with a pair `tiny`."""
    for room in ("evaluation", "methods"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns("drafts", "datastores"))
    shutil.copy(ROOT / "eval.sh", folder)
    drafts = "".join(f'drafts.{kind} = "{path}"\n' for kind, path in weights.items() if kind != TOY)
    pair = f'\n[tiny]\ntarget = "{target}"\n{drafts}dtype = "float32"\nbenchmark = "mini_bench"\n'
    with (folder / "data/pairs.toml").open("a") as file:
        file.write(pair)
    return folder


def write_runs(folder: Path, target: Path) -> Path:
    """A results folder: a baseline, a method that agrees with it, and one that parts from it at the seventh token."""
    run = {"target": {"source": str(target), "revision": None, "weight_bytes": 100}}
    other = [*TOKENS[:6], 20, *TOKENS[7:]]
    for name, tokens, seconds, width in (
        ("autoregressive", TOKENS, 2.0, 1),
        ("pld", TOKENS, 1.0, 2),
        ("sps", other, 1.25, 5),
    ):
        answers = [answer(q, c, choices=[choice([tokens], [seconds], per_pass=width)]) for q, c in _questions()]
        write(folder / LEAF / f"{name}.jsonl", answers, header(name, **run))
    return folder


def _questions() -> list[tuple[int, str]]:
    return [(number, "qa" if number % 2 else "summarization") for number in range(1, 9)]


@contextmanager
def page(project: Path, results: Path, pair: str = "tiny") -> Iterator[Page]:
    """`./eval.sh page PAIR RESULTS`, until the block is left."""
    command = [str(project / "eval.sh"), "page", pair, str(results), "--port", "0", "--threads", "1"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PEARL_BENCH_PATIENCE": "60"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (found := ADDRESS.search(said)):
                line = process.stderr.readline()
                assert line, f"the server ended: {said}"
                said += line
            yield Page(int(found[1]), process)
        finally:
            process.terminate()


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


def attempt(server: Page) -> list[dict[str, Any]]:
    """The events of a race; none where another is still running."""
    try:
        return list(server.race(["pearl-pld"], max_new_tokens=4))
    except urllib.error.HTTPError:
        return []


def raw(server: Page, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def batches(names: list[str]) -> list[list[str]]:
    """In each some of PEARL, so that all are done by the same two processes."""
    count = -(-len(names) // LANES)
    return [names[i::count] for i in range(count)]


def raceable() -> list[str]:
    """All methods but those that tests add, and those that want weights which the tiny pair cannot have. Of rows over
    two drafters one stands for all."""
    unable = ("toy", "space", "server", "llama-cpp")
    names = [name for name in METHODS if not any(word in name for word in unable)]
    return [name for name in names if "sam-" not in name or name.endswith("sam-eagle3")]
