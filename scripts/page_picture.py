"""Take a picture of the page: a lesson as it is taught, or, with --race, a race half-way through its replay.

    python scripts/page_picture.py [--output FILE] [--race] [--threads N]

It wants Playwright and a Chromium (`pip install playwright`). A race is measured then and there, so it wants a machine
that does nothing else.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.errors import CommandParser, UserError, command_line
from methods.paths import ROOT

PROMPT = "Write a Python function that returns the n-th Fibonacci number, with a docstring and three tests."
ASKED = {"methods": "autoregressive,sps,pearl", "prompt": PROMPT, "tokens": "128"}
LESSON = {"lesson": "5", "step": "4"}  # PEARL, where a draft is rejected
PART = 0.62  # of the replay
LONG = 600_000  # milliseconds
ADDRESS = re.compile(r"http://[\d.]+:\d+")


def main() -> int:
    parser = CommandParser(description="A picture of the page.")
    parser.add_argument("--output", type=Path, help="where to (default: results/page/learn.png, or race.png)")
    parser.add_argument("--race", action="store_true", help="of a race that is measured now")
    parser.add_argument("--threads", default="1", help="CPU threads of each rank (default 1)")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("expected Chromium on the path, found none; install it")
    output = options.output or ROOT / "results/page" / ("race.png" if options.race else "learn.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    with served(options.threads) as address, tab(chromium) as page:
        (race if options.race else learn)(page, address)
        page.mouse.move(0, 0)
        page.screenshot(path=output)
    print(output)
    return 0


@contextmanager
def served(threads: str) -> Iterator[str]:
    """The address of a server of the embedded pair."""
    command = [sys.executable, str(ROOT / "evaluation/web.py"), "--port", "0", "--threads", threads]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = ADDRESS.search(server.stderr.readline())
            assert found is not None, "the server tells its address first"
            yield found[0]
        finally:
            server.terminate()


@contextmanager
def tab(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 660})
        page.set_default_timeout(LONG)
        yield page
        browser.close()


def learn(page: Any, address: str) -> None:
    page.goto(f"{address}/#learn?{urlencode(LESSON)}")
    page.locator(".lane .t").first.wait_for()


def race(page: Any, address: str) -> None:
    """Race twice, for in the first one models are loaded; show the second."""
    page.goto(f"{address}/#race?{urlencode(ASKED)}")
    for _ in range(2):
        page.get_by_role("button", name="Race", exact=True).click()
        page.locator(".player").wait_for(state="hidden")
        page.locator(".play[aria-label=play]").wait_for()
    page.locator(".player input[type=range]").evaluate(
        "(r, part) => { r.value = 1000 * part; r.dispatchEvent(new Event('input')); }", PART
    )
    page.locator(".lanes").evaluate("lanes => lanes.scrollIntoView()")


if __name__ == "__main__":
    command_line(main)
