"""The page in a browser: every method of the table races, what is seen equals what was answered, stops, screens of all
sizes. Skipped where Playwright or Chromium is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evaluation.page.replay import write_replay
from evaluation.page.runs import Runs
from methods import METHODS
from tests.page_server import LEAF, Page, copy_project, page, write_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
LANES = 4  # in a race
TOKENS = 32
LONG = 120_000  # milliseconds

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def server(tiny: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    project = copy_project(tmp_path_factory.mktemp("project"), tiny, weights)
    with page(project, write_runs(tmp_path_factory.mktemp("results"), tiny)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
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


def batches(names: list[str]) -> list[list[str]]:
    """In each some of PEARL, so that all are done by the same two processes."""
    count = -(-len(names) // LANES)
    return [names[i::count] for i in range(count)]


def raceable() -> list[str]:
    """All methods but those that tests add, and those that want weights which the tiny pair cannot have."""
    unable = ("toy", "space", "ouroboros", "hf-assisted", "server", "llama-cpp")
    return [name for name in METHODS if not any(word in name for word in unable)]


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


@pytest.mark.parametrize("phase", ["loading", "reading the prompt", "decoding"])
def test_stop_works_in_every_phase_and_the_next_race_works_after_it(tab: "Tab", server: Page, phase: str) -> None:
    tab.goto(f"{server.url}/#race?methods=autoregressive,pearl&prompt=abc+abc&tokens=512")
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
