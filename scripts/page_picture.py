"""Take the picture of the page: a race on the embedded pair, half-way through its replay.

    python scripts/page_picture.py [--output results/page/race.png] [--threads N]

It wants Playwright and a Chromium (`pip install playwright`), and a machine that does nothing else: the figures in the
picture are those of that race.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from methods.errors import CommandParser, UserError, command_line
from methods.paths import ROOT

PROMPT = "Write a Python function that returns the n-th Fibonacci number, with a docstring and three tests."
ASKED = {"methods": "autoregressive,sps,pearl", "prompt": PROMPT, "tokens": "128"}
PART = 0.62  # of the replay
LONG = 600_000  # milliseconds
ADDRESS = re.compile(r"http://[\d.]+:\d+")


def main() -> int:
    parser = CommandParser(description="A picture of the page.")
    parser.add_argument("--output", type=Path, default=ROOT / "results/page/race.png")
    parser.add_argument("--threads", default="1", help="CPU threads of each rank (default 1)")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("expected Chromium on the path, found none; install it")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "evaluation/web.py"), "--port", "0", "--threads", options.threads]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = ADDRESS.search(server.stderr.readline())
            assert found is not None, "the server tells its address first"
            take(found[0], chromium, options.output)
        finally:
            server.terminate()
    print(options.output)
    return 0


def take(address: str, chromium: str, output: Path) -> None:
    """Race twice, for in the first one models are loaded, and take the second."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(LONG)
        page.goto(f"{address}/#race?{urlencode(ASKED)}")
        for _ in range(2):
            page.get_by_role("button", name="Race", exact=True).click()
            page.locator(".player").wait_for(state="hidden")
            page.locator(".play[aria-label=play]").wait_for()
        page.locator(".player input[type=range]").evaluate(
            "(r, part) => { r.value = 1000 * part; r.dispatchEvent(new Event('input')); }", PART
        )
        page.locator(".lanes").evaluate("lanes => lanes.scrollIntoView()")
        page.mouse.move(0, 0)
        page.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    command_line(main)
