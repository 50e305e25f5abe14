"""report.py: it says what was measured, the page needs nothing else, the exit status is what CI asks for."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from evaluation.answers.calibration import Calibrated, Calibration, write_calibration
from evaluation.judge.acceptance import by_depth
from evaluation.judge.change import pair_runs
from evaluation.judge.gates import judge, parse_gate
from evaluation.judge.groups import read_groups
from evaluation.show.document import Cell, templates, to_html, to_markdown
from evaluation.show.figures.style import STYLE, Drawing, new_figure
from evaluation.show.page import Report
from evaluation.show.write import WRITTEN_BY
from methods.errors import UserError
from tests.answer_files import header, summarize, write
from tests.commands import run_script, start_script
from tests.simulated_runs import PEARL, SPS, Simulated, write_runs

PLACE = Path("mini_bench/tiny")
TYPED = "./eval.sh sps,pearl tiny --limit 14"


class Page(HTMLParser):
    """What is in an HTML file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.parts: list[list[str]] = []  # the texts of each heading, paragraph and cell
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "p", "li", "th", "td"):
            self.parts.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As SVG's are, which end where they begin."""
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in ("meta", "img", "br") else self.open

    def handle_data(self, data: str) -> None:
        if self.parts and self.open[-1] not in ("script", "style"):
            self.parts[-1].append(data)

    def texts(self) -> list[str]:
        return ["".join(part).strip() for part in self.parts]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its report, by the command itself; the condition does not hold."""
    place = tmp_path_factory.mktemp("runs")
    folder = write_runs(place / "study", [SPS, PEARL], place / "trace.json", questions=14, command=TYPED)
    (place / "trace.json.gz").write_bytes(gzip.compress((place / "trace.json").read_bytes()))
    conditions = ("--fail-on", "pearl<1.05", "--fail-on", "identical < 1", "--fail-on", "change<1")
    more = ("--compare", folder, "--trace", place / "trace.json.gz")
    done = start_script("report.py", folder, *conditions, *more, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(folder / "REPORT.md"), str(folder / "report.html")]
    return folder


def differ(path: Path) -> None:
    """Change one token of the first answer."""
    first, *others = path.read_text().splitlines()
    answer = json.loads(first)
    answer["choices"][0]["token_ids"][0][3] += 1
    path.write_text("\n".join([json.dumps(answer), *others]) + "\n")


def test_compressed_answers_give_the_same_report(reported: Path, tmp_path: Path) -> None:
    folder = tmp_path / reported.name
    shutil.copytree(reported, folder, ignore=shutil.ignore_patterns("figures", "REPORT.md", "report.html"))
    for path in folder.rglob("*.jsonl"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    done = run_script("report.py", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tables = [[line for line in (place / "REPORT.md").read_text().splitlines() if "/14 identical** |" in line]
              for place in (reported, folder)]  # fmt: skip
    assert tables[0] == tables[1] and len(tables[0]) == 2


def test_markdown_says_what_was_measured(reported: Path) -> None:
    text = (reported / "REPORT.md").read_text()
    for method in ("sps", "pearl"):
        s = summarize(reported / PLACE / f"{method}.jsonl", reported / PLACE / "autoregressive.jsonl")
        row = f"| {method} | **{s.speedup:.2f}x** | {s.low:.2f} to {s.high:.2f} | **14/14 identical** | {s.mat:.2f} |"
        assert row in text
    assert "output: 2 of 2 runs of lossless methods are identical to the baseline" in text
    assert "tiny · mini_bench · 14 questions · float32 · greedy" in text and "commit 0123456" in text
    assert "## Failures\n\nNone." in text
    assert "| options of pearl | gamma auto, without nothing |" in text and "| git_commit | 0123456789" in text
    assert "| pearl\\<1.05 |" in text and "does not hold" in text
    assert f"## Compared with {reported}" in text and text.count("x | **yes** | +0.0% | +0.0% to +0.0% |") == 2
    assert "2 of 2 speedups lie in the interval of before; 0 significantly lower, 0 higher." in text
    assert "![Figure: timeline](figures/timeline.png)" in text
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(pictures) > 10 and all((reported / path).stat().st_size for path in pictures)


def test_acceptance_by_depth_has_a_table_where_features_are_read(tmp_path: Path) -> None:
    heads = [Simulated("eagle3", {"gamma": size, "shape": "chain"}, alpha=0.6, features=True) for size in (3, 20)]
    for number, runs in enumerate(([SPS], [SPS, heads[0]], [heads[1]])):
        folder = write_runs(tmp_path / str(number), runs)
        report = Report(read_groups([folder]), [], [], [], folder, None, WRITTEN_BY)
        (group,) = report.groups
        assert report.depth_heads(group) == [str(depth) for depth in range(1, (1, 4, 13)[number])]
        assert ("### Acceptance by depth" in to_markdown(report, alone=True)) == (number > 0)
        for row in report.depths(group):
            assert row[0] == "eagle3" and len(row) == (1, 4, 13)[number]
            result = next(result for result in group.results if result.method == "eagle3")
            first = by_depth(result.choices)[0]
            assert row[1] == Cell(f"{first.share:.0%}\nof {first.tried}")
    assert len(report.depths(group)) == 1


def test_a_calibration_in_the_folder_is_shown(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", [SPS], questions=6)

    def shown() -> str:
        return to_markdown(Report(read_groups([folder]), [], [], [], folder, None, WRITTEN_BY))

    assert "Calibration" not in shown()
    row = Calibrated("sps@gamma=3", 1.5, 1.4, 2.0, 2.0, 80e-6, 4.0, 0.001, [f"a fault of {HOSTILE}"], "wrong")
    write_calibration(folder, Calibration("2026-11-30", "a CPU", None, 0.02, 0.004, 0.001, 0.0, 3.0, [row], []))
    texts, kinds = rendered(shown())
    assert {"Calibration", "-6.67%", "80 µs", f"sps@gamma=3: a fault of {HOSTILE}"} <= set(texts)
    assert any("wrong: the harness measures something else" in text for text in texts)
    assert not kinds & {"html_inline", "html_block", "link", "image"}


def test_page_needs_nothing_else(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and not {"link", "iframe", "img"} & set(page.tags) and page.tags.count("script") == 1
    outside = text.replace("http://www.w3.org/", "")  # names of SVG
    assert "http:" not in outside and "https:" not in outside and "@import" not in text
    assert all(source.startswith("#") for source in (*page.sources, *re.findall(r"url\(([^)]*)\)", text)))
    assert page.tags.count("svg") >= 8 and len(text) < 300_000
    script = text.split("<script>")[1].split("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in text.split("script-src 'sha256-")[1]
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_page_has_contents_and_hints(reported: Path) -> None:
    """Every heading can be led to, and what a bar shows is said in words; what is named in a page is named once."""
    text = (reported / "report.html").read_text()
    contents = re.findall(r'<li><a href="#([^"]*)">([^<]*)</a></li>', text)
    assert [name for _, name in contents] == [unescape(name) for name in re.findall(r"<h2[^>]*>([^<]*)</h2>", text)]
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) and {anchor for anchor, _ in contents} <= set(ids)
    s = summarize(reported / PLACE / "pearl.jsonl", reported / PLACE / "autoregressive.jsonl")
    assert f"<title>pearl {s.speedup:.2f}x  ({s.low:.2f} to {s.high:.2f}), 14 questions".replace("  ", " ") in text
    assert set(re.findall(r' class="(s\d+)"', text)) == set(re.findall(r"\.(s\d+)\{", text))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The distribution's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


def test_tables_sort_and_filter_in_a_browser(browser: Any, tmp_path: Path) -> None:
    runs = [Simulated("sps", {"gamma": size}, alpha=0.1 * size) for size in (1, 2, 3, 9, 10)]
    for run in [*runs, PEARL]:
        write_runs(tmp_path / "runs" / f"{run.method}{run.options['gamma']}", [run], questions=6)
    done = run_script("report.py", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said: list[str] = []
    for width, scheme in ((1400, "light"), (400, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"file://{tmp_path}/runs/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    table = page.locator("table", has=page.get_by_role("button", name="speedup")).first
    names = lambda: [name for name in table.locator("tbody tr:visible th").all_inner_texts()]  # noqa: E731
    whole = [f"sps, gamma {size}" for size in (1, 2, 3, 9, 10)] + ["pearl"]
    assert [name for name in names() if name in whole] == whole, "a sweep is in the order of its option"
    head = table.get_by_role("button", name="speedup")
    head.click()
    rising = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert sorted(rising, key=lambda text: float(text.rstrip("x"))) == rising and names() != whole
    head.click()
    assert table.locator("tbody tr td:nth-child(2)").all_inner_texts() == rising[::-1]
    head.click()
    page.get_by_role("searchbox").first.fill("GAMMA 10")
    assert names() == ["sps, gamma 10"] and said == []


def test_exit_status_1_where_a_condition_holds(tmp_path: Path) -> None:
    runs = [Simulated("pld", {"gamma": 7}, alpha=0.3), Simulated("hf-generate", {}, lossless=False)]
    failures = [{"question_id": 99, "error": "OSError: full"}]
    folder = write_runs(tmp_path / "runs", runs, questions=6, categories=["qa"], failures=failures)
    differ(folder / PLACE / "pld.jsonl")
    flags = ("--fail-on", "pld<9", "--fail-on", "identical<1", "--fail-on", "pld<0.1", "--output", tmp_path / "out")
    done = run_script("report.py", folder, *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "failed: pld<9: it is 0." in done.stdout and "failed: identical<1: it is 0.714" in done.stdout
    assert "pld<0.1" not in done.stdout
    text = (tmp_path / "out/REPORT.md").read_text()
    assert text.count("holds: failed") == 2 and text.count("does not hold") == 1
    assert "not identical: mini_bench/tiny/pld.jsonl: 5/7 identical, 1 different, 1 failed" in text
    assert (
        "*6/7 identical*<br>*100.0% up to the first difference*<br>*(need not be)*" in text
        and "| tiny · mini_bench: pld | 99 | OSError: full |" in text
    )


@pytest.mark.parametrize(
    ("condition", "said"),
    [("pearl>2", "expected --fail-on METHOD<NUMBER"), ("slps<2", "did you mean 'sps'?")],
)
def test_exit_status_2_for_a_mistake(condition: str, said: str, tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", [SPS], questions=6)
    done = run_script("report.py", "runs", "--fail-on", condition, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs/REPORT.md").exists()


@pytest.mark.parametrize("text", ["", "pearl", "pearl<", "<1", "pearl<=2", "pearl<x", "pearl<-1", "pearl<1<2", "a b<1"])
def test_malformed_condition(text: str) -> None:
    with pytest.raises(UserError, match="expected --fail-on METHOD<NUMBER"):
        parse_gate(text)


def test_conditions_are_judged_by_the_worst_run(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", [SPS], questions=6)
    write_runs(tmp_path / "b", [Simulated("sps", {"gamma": 12}, alpha=0.1)], questions=6)
    groups = read_groups([tmp_path])
    speedups = [result.summary.speedup for result in groups[0].measured]
    outcome = judge(parse_gate("sps<1"), groups)
    assert outcome.holds and outcome.value == min(speedups) < 1 < max(speedups)
    assert not judge(parse_gate("identical<1"), groups).holds
    with pytest.raises(UserError, match="names no method measured"):
        judge(parse_gate("autoregressive<1"), groups)


def test_what_has_nothing_to_show_fails(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, [SPS], questions=6) / PLACE
    write(folder / "pld.jsonl", [], header("pld", failures=[{"question_id": 1, "error": "ValueError: no"}]))
    groups = read_groups([tmp_path])
    assert judge(parse_gate("pld<1"), groups).holds
    assert judge(parse_gate("identical<1"), groups).holds
    sampled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    groups = read_groups([write_runs(tmp_path / "sampled", [SPS], questions=6, sampling=sampled)])
    with pytest.raises(UserError, match="cannot be judged"):
        judge(parse_gate("identical<1"), groups)


def test_comparison_with_an_earlier_folder(tmp_path: Path) -> None:
    now = read_groups([write_runs(tmp_path / "now", [SPS, PEARL], questions=6)])
    slower = Simulated("pearl", PEARL.options, alpha=0.2, window=5)
    before = read_groups([write_runs(tmp_path / "before", [SPS, slower], questions=6, cpu="another CPU")])
    sps, pearl = pair_runs(now, before)
    assert (sps.inside, pearl.inside) == (True, False)
    assert sps.now.speedup == pytest.approx(sps.before.speedup)
    assert "the CPU was another CPU, is now some CPU" in sps.differences
    assert sps.change and sps.change.ratio == pytest.approx(1) and not sps.change.significant
    ratio = pearl.now.speedup / pearl.before.speedup
    assert pearl.change and pearl.change.ratio == pytest.approx(ratio) and pearl.change.significant and ratio > 1
    assert not judge(parse_gate("change<0.95"), now, [sps, pearl]).holds
    assert judge(parse_gate("change<0.95"), before, pair_runs(before, now)).holds
    with pytest.raises(UserError, match="pass --compare"):
        judge(parse_gate("change<0.95"), now)
    other = read_groups([write_runs(tmp_path / "other", [SPS], questions=6, pair="another")])
    with pytest.raises(UserError, match="no run of the same method"):
        pair_runs(now, other)


def test_speed_compares_two_folders(tmp_path: Path) -> None:
    write_runs(tmp_path / "now", [SPS, PEARL], questions=6)
    slower = Simulated("pearl", PEARL.options, alpha=0.2, window=5)
    write_runs(tmp_path / "before", [SPS, slower], questions=6, threads=7)
    folders = ("--file-path", "now", "--base-path", "before")
    done = run_script("speed.py", *folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 speedups lie in the interval of before; 0 significantly lower, 1 higher" in done.stdout
    assert "other conditions: the number of threads was 7, is now 2\n" in done.stdout
    rows = json.loads(run_script("speed.py", *folders, "--json", cwd=tmp_path).stdout)
    assert [row["inside"] for row in rows] == [True, False]
    assert rows[1]["now"]["speedup"] / rows[1]["before"]["speedup"] == pytest.approx(rows[1]["change"]["ratio"])
    done = run_script("speed.py", *folders, "--by", "category", cwd=tmp_path)
    assert done.returncode == 2 and "need two answer files" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_is_compared_with_the_earlier_one_most_like_it(tmp_path: Path) -> None:
    """Not with a sampled run or one of longer answers, and not with each of several."""
    sampled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    write_runs(tmp_path / "before/far", [SPS], questions=6, threads=7, replicas=3)
    write_runs(tmp_path / "before/longer", [SPS], questions=6, max_new_tokens=999)
    write_runs(tmp_path / "before/near", [SPS], questions=6, threads=7)
    write_runs(tmp_path / "before/sampled", [SPS], questions=6, sampling=sampled)
    before = read_groups([tmp_path / "before"])
    now = read_groups([write_runs(tmp_path / "now", [SPS], questions=6)])
    (pairing,) = pair_runs(now, before)
    assert [told for told in pairing.differences if told != "the number of threads was 7, is now 2"] == []
    for other in ("longer", "sampled"):
        with pytest.raises(UserError, match="no run of the same method"):
            pair_runs(now, read_groups([tmp_path / "before" / other]))
    (pairing,) = pair_runs(before[-1:], before)
    assert pairing.differences == []


def test_the_command_is_told_where_the_header_holds_it(reported: Path) -> None:
    assert f"| command | {TYPED} |" in (reported / "REPORT.md").read_text()


def test_a_trace_of_other_runs_is_told(tmp_path: Path) -> None:
    write_runs(tmp_path / "other", [SPS], tmp_path / "trace.json", questions=6)
    write_runs(tmp_path / "runs", [SPS], questions=6)
    done = run_script("report.py", "runs", "--trace", "trace.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: timeline: trace.json does not show one answer" in done.stdout


def test_nobody_s_report_is_written_over(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", [SPS], questions=6)
    (folder / "REPORT.md").write_text("# By hand\n")
    done = run_script("report.py", folder, cwd=tmp_path)
    assert done.returncode == 2 and "was not written by this command" in done.stderr and done.stderr.count("\n") == 1
    assert (folder / "REPORT.md").read_text() == "# By hand\n" and not (folder / "report.html").exists()


DOCUMENT = """\
# {{ text }}

{{ text }}

- {{ text }}

{{ table([text, "b"], [[text, cell]]) }}
"""


def document(text: str, tone: str = "") -> str:
    """A document that says a text in every place that a report has for one."""
    return templates().from_string(DOCUMENT).render(text=text, cell=Cell(text, tone))


def test_documents_escape_what_they_say() -> None:
    markdown = document("a < b|<i>\n2", "bad")
    assert "| a \\< b\\|\\<i><br>2 | ***a \\< b\\|\\<i>***<br>***2*** |" in markdown
    page = to_html("STYLE {body} <", markdown, {})
    assert '<h1 id="a-b-i-2">a &lt; b|&lt;i&gt; 2</h1>' in page and "<li>a &lt; b|&lt;i&gt; 2</li>" in page
    assert "<em><strong>a &lt; b|&lt;i&gt;</strong></em><br>\n<em><strong>2</strong></em></td>" in page
    assert '<th scope="row">a' in page and Page(page).open == []
    assert "<title>STYLE {body} &lt;</title>" in page


HOSTILE = "<img src=x onerror=alert(1)> `a|b` **c** _d_ [e](javascript:f) $g$ &lt; {h} # ~~i~~ \\"


def rendered(markdown: str) -> tuple[list[str], set[str]]:
    """What a reader of Markdown makes of a document, tables and struck text included: its texts, and kinds of parts."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    texts = [
        "".join(" " if part.content == "<br>" else part.content for part in block.children or [])
        for block in blocks
        if block.type == "inline"
    ]
    parts = [part for block in blocks for part in (block, *(block.children or []))]
    kinds = {part.type.removesuffix("_open").removesuffix("_close") for part in parts if part.content != "<br>"}
    return [" ".join(text.split()) for text in texts], kinds


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(alphabet="a1 \n|`*_<>&#[]()!~$\\-+=.:{}\"'/;", min_size=1).filter(str.strip))
@example(HOSTILE)
@example("1. a")
@example("<!-- a")
def test_markdown_says_what_a_text_says_and_nothing_else(text: str) -> None:
    """Whatever a name, a path or an error holds: no tag, link, emphasis, code, or further cell comes of it."""
    markdown = document(text)
    texts, kinds = rendered(markdown)
    words = " ".join(text.split())
    assert texts == [words, words, words, words, "b", words, words]
    assert kinds <= {"heading", "paragraph", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td",
                     "inline", "text", "text_special"}  # fmt: skip
    page = Page(to_html("", markdown, {}))
    assert [" ".join(said.split()) for said in page.texts()] == [words, words, words, words, "b", words, words]


def test_a_report_of_hostile_names_says_them(tmp_path: Path) -> None:
    """Pair, command, options and errors come from files that anybody may have written."""
    failures = [{"question_id": HOSTILE, "error": f"{HOSTILE}\nand more"}]
    hostile: dict[str, Any] = {
        "pair": HOSTILE.replace("/", ""),
        "command": HOSTILE,
        "cpu": HOSTILE,
        "failures": failures,
    }
    run = Simulated("pld", {"gamma": 7, "some option": HOSTILE})
    folder = write_runs(tmp_path / "runs", [run], questions=6, **hostile)
    groups = read_groups([folder])
    markdown = to_markdown(Report(groups, [], [], [], folder, None, WRITTEN_BY))
    texts, kinds = rendered(markdown)
    assert not kinds & {"html_inline", "html_block", "link", "image", "code_inline", "s"}
    assert texts.count(HOSTILE) >= 3 and f"{HOSTILE} and more" in texts
    page = to_html(HOSTILE, markdown, {})
    assert Page(page).texts().count(HOSTILE) >= 3
    parsed = Page(page)
    assert parsed.open == [] and "img" not in parsed.tags and parsed.tags.count("script") == 1
    assert all(source.startswith("#") for source in parsed.sources) and "onerror=alert(1)&gt;" in page


def test_figures_show_hostile_names_and_their_numbers_run_nothing(tmp_path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = new_figure("<script>alert(1)</script> $\\foo$ & ]]>", "small", 1.0)
    data = pd.DataFrame({"=name": ["=1+1", "+x", "-y", "@z", "\ta", "\rb", "-1.5", "+2", "sps"], "value": -1.5})
    png, svg, csv = Drawing("name", figure, data, "about").save(tmp_path)
    assert png.stat().st_size and not ElementTree.parse(svg).findall(".//{*}script")
    rows = csv.read_bytes().decode().split("\n")
    assert rows[0] == "'=name,value"
    assert [row.rpartition(",")[0].strip('"') for row in rows[1:-1]] == [
        "'=1+1", "'+x", "'-y", "'@z", "'\ta", "'\rb", "-1.5", "+2", "sps",
    ]  # fmt: skip
    assert {row.rpartition(",")[2] for row in rows[1:-1]} == {"-1.5"}
