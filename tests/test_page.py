"""The page's server, a real process: asked over HTTP, and used in a browser. What needs a browser is skipped where
Playwright or Chromium is missing."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evaluation.page.origins import origins
from evaluation.page.replay import write_replay
from evaluation.page.runs import Runs
from methods import METHODS
from methods.paths import ROOT
from tests.page_server import (
    LEAF,
    Page,
    attempt,
    batches,
    copy_project,
    endless,
    lanes,
    page,
    raceable,
    raw,
    tokens,
    write_runs,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

RACED = ["autoregressive", "sps", "eagle2", "pearl"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TOKENS = 32
LONG = 120_000  # milliseconds


@pytest.fixture(scope="module")
def server(tiny: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    target = endless(tiny, tmp_path_factory.mktemp("endless") / "target")
    project = copy_project(tmp_path_factory.mktemp("project"), target, weights)
    with page(project, write_runs(tmp_path_factory.mktemp("results"), tiny)) as running:
        yield running


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
        for event in server.race(["autoregressive", "pearl-pld@gamma=2"], max_new_tokens=1024):
            events.append(event)
            if event["type"] == "phase" and (event["lane"], event["name"]) == (1, phase):
                assert server.ask("/api/stop", {})[0] == 200
        assert events[-1]["type"] == "end" and events[-1]["stopped"], (phase, events[-1])
        again = list(server.race(["pearl-pld@gamma=2"], max_new_tokens=8))
        assert [event["name"] for event in again if event["type"] == "phase"][:1] == ["load"]
        assert len(tokens(lanes(again)[0])) == 8
    assert "warm-up" not in [event.get("name") for event in again]  # the method was kept


def test_a_reader_who_goes_away_ends_the_race(server: Page) -> None:
    race = server.race(["pearl-pld"], max_new_tokens=1024)
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
    begun = server.race(["pearl-pld"], max_new_tokens=1024)
    assert next(begun)["type"] == "race"  # and is left before the processes have it
    begun.close()
    while not (events := attempt(server)) and time.monotonic() < end:
        time.sleep(0.1)
    assert events[-1]["type"] == "end"


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


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def tab(browser: "Browser", server: Page) -> Iterator["Tab"]:
    """A tab in which nothing may go wrong."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(LONG)
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    yield opened
    opened.close()
    assert wrong == []


KEEP = """() => {
  const events = PB.events;
  window.said = [];
  PB.events = async function* (response) {
    for await (const event of events(response)) { window.said.push(event); yield event; }
  };
}"""  # what the server says


def race(tab: "Tab", server: Page, methods: list[str]) -> list[dict[str, Any]]:
    """Race in the page; returns what the server said, lane by lane."""
    tab.goto(f"{server.url}/#race?methods={','.join(methods)}&prompt=abc+abc+abc+abc&tokens={TOKENS}")
    tab.reload()
    tab.locator(".composer").wait_for()
    tab.evaluate(KEEP)
    tab.get_by_role("button", name="Race", exact=True).click()
    tab.locator(".player").wait_for()
    said: list[dict[str, Any]] = tab.evaluate("window.said")
    return said


@pytest.mark.parametrize("methods", batches(raceable()), ids=",".join)
def test_every_method_races_and_is_seen_as_it_answered(tab: "Tab", server: Page, methods: list[str]) -> None:
    said = race(tab, server, methods)
    assert said[-1] == {"type": "end", "stopped": False, "error": ""}
    for number, name in enumerate(methods):
        lane = tab.locator(".lane").nth(number)
        passes = [
            each for event in said if event["type"] == "passes" and event["lane"] == number for each in event["passes"]
        ]
        expected = [[token, letter] for each in passes for token, _, letter in each["t"]]
        seen = lane.locator("[data-i]").evaluate_all("all => all.map(t => [Number(t.dataset.id), t.dataset.o])")
        assert seen == expected and len(seen) > 8, name
        assert lane.locator(".bar").count() == len(passes), name


def test_pearl_races_on_the_embedded_pair(tab: "Tab", tmp_path: Path) -> None:
    with page(ROOT, tmp_path, "smollm2-135m") as real:
        said = race(tab, real, ["autoregressive", "pearl"])
        assert said[-1] == {"type": "end", "stopped": False, "error": ""}
        assert tab.locator(".lane .equal").nth(1).inner_text().startswith("identical")
        kinds = set(tab.locator(".lane").nth(1).locator("[data-i]").evaluate_all("all => all.map(t => t.dataset.o)"))
        assert kinds & {"a", "b"} and kinds <= set("pabco")


def test_what_a_reader_does_with_a_race(tab: "Tab", server: Page) -> None:
    race(tab, server, ["autoregressive", "sps", "eagle2", "pearl"])
    tab.locator(".play[aria-label=play]").wait_for()  # the replay has come to its end
    for number in (1, 2, 3):
        assert "identical" in tab.locator(".lane .equal").nth(number).inner_text()
    tab.locator(".player input[type=range]").evaluate("r => { r.value = 400; r.dispatchEvent(new Event('input')); }")
    assert tab.locator(".t.later").count() > 0 and tab.locator(".t:not(.later)").count() > 0
    tab.locator(".lane").nth(1).locator("[data-i='3']").hover()
    assert "target's p" in tab.locator("#tip").inner_text()
    tab.get_by_label("show rejected drafts").check()
    tab.locator(".lane").nth(2).locator(".bar").nth(1).click()
    assert tab.locator(".lane").nth(2).locator("svg.tree .node").count() > 1
    assert tab.locator(".lane").nth(3).locator("canvas").is_visible()


def test_an_address_typed_into_the_open_page_is_followed_and_another_tab_forgets_nothing(
    tab: "Tab", server: Page
) -> None:
    tab.goto(f"{server.url}/#race?methods=autoregressive,sps&prompt=abc")
    tab.locator(".composer").wait_for()
    tab.evaluate("location.hash = 'race?methods=pearl&prompt=xyz&tokens=64'")
    tab.locator("select[aria-label='method 1'] option[value=pearl]:checked").wait_for(state="attached")
    assert tab.locator("textarea").input_value() == "xyz" and tab.locator(".method").count() == 1
    tab.get_by_role("tab", name="Results").click()
    tab.locator("tr[data-run]").nth(2).wait_for()
    tab.evaluate("location.hash = 'results?filter=sps'")
    tab.locator("tr[data-run]").nth(1).wait_for(state="detached")
    tab.get_by_role("tab", name="Race").click()
    tab.locator(".composer").wait_for()
    assert "prompt=xyz" in tab.evaluate("location.hash") and "tokens=64" in tab.evaluate("location.hash")
    tab.get_by_role("tab", name="Results").click()
    tab.locator(".results").wait_for()
    assert "filter=sps" in tab.evaluate("location.hash")


def test_questions_that_come_late_are_waited_for_and_replace_no_prompt(tab: "Tab", server: Page) -> None:
    held: list[Any] = []
    tab.route("**/api/questions/*", lambda route: held.append(route))
    tab.goto(f"{server.url}/#race?methods=autoregressive&prompt=abc&tokens=32")
    tab.get_by_label("benchmark", exact=True).select_option("mini_bench")
    tab.get_by_label("prompt").fill("mine")
    tab.wait_for_timeout(200)
    held.pop().continue_()
    tab.wait_for_timeout(1000)
    assert tab.get_by_label("prompt").input_value() == "mine"
    tab.get_by_label("benchmark", exact=True).select_option("mini_bench")
    tab.get_by_role("button", name="Race", exact=True).click()
    tab.wait_for_timeout(200)
    held.pop().continue_()
    tab.locator(".player").wait_for()
    assert tab.get_by_label("prompt").input_value() != "mine"
    assert tab.locator(".lane [data-i]").count() == 32 and tab.locator(".notice.error").count() == 0


@pytest.mark.parametrize("phase", ["loading", "reading the prompt", "decoding"])
def test_stop_works_in_every_phase_and_the_next_race_works_after_it(tab: "Tab", server: Page, phase: str) -> None:
    tab.goto(f"{server.url}/#race?methods=autoregressive,pearl&prompt=abc+abc&tokens=1024")
    tab.reload()
    tab.get_by_role("button", name="Race", exact=True).click()
    tab.get_by_role("button", name="Stop").wait_for()
    if phase == "decoding":
        tab.locator(".lane").nth(0).locator("[data-i='3']").wait_for()
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("Stopped.").wait_for()
    said = race(tab, server, ["pearl"])
    assert said[-1] == {"type": "end", "stopped": False, "error": ""}


def test_results_are_read_without_a_model(tab: "Tab", server: Page) -> None:
    tab.goto(f"{server.url}/#results")
    tab.locator("tr[data-run]").nth(2).wait_for()
    tab.get_by_text("2.00x").first.wait_for()
    tab.get_by_label("filter").fill("sps")
    assert tab.locator("tr[data-run]").count() == 1
    tab.get_by_role("button", name="sps").click()
    tab.locator(".leaf .lane").nth(2).wait_for()
    assert tab.locator(".leaf [data-lane=sps] .equal").inner_text() == "parts from the first column at token 7"
    assert tab.locator(".heatmap td").count() == 6
    tab.get_by_label("filter").fill("")
    for name in ("autoregressive", "sps"):
        tab.get_by_label(f"compare {LEAF}/{name}").check()
    tab.get_by_role("button", name="Compare two").click()
    tab.get_by_text("sps is 1.60x as fast as autoregressive").wait_for()


def test_the_page_of_a_folder_opens_from_disk(browser: "Browser", tiny: Path, tmp_path: Path) -> None:
    path = write_replay(Runs(write_runs(tmp_path, tiny)))
    tab, wrong = browser.new_page(), list[str]()
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(path.as_uri())
    tab.locator(".leaf .lane").nth(2).wait_for()
    assert tab.locator(".leaf .lane .t").count() == 30
    tab.get_by_role("tab", name="Learn").click()
    tab.locator(".learn .lane .t").first.wait_for()
    tab.close()
    assert wrong == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("part", ["race", "results", "learn"])
def test_a_phone_has_no_page_to_scroll_sideways(browser: "Browser", server: Page, part: str, dark: bool) -> None:
    tab = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark" if dark else "light")
    tab.set_default_timeout(LONG)
    tab.goto(f"{server.url}/#{part}")
    sign = {"race": ".composer", "results": "tr[data-run]", "learn": ".lane .t"}[part]
    tab.locator(sign).first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    shade = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(shade) < 200) == dark
    tab.close()


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
