"""This module makes Markdown of a report by its template, and of that Markdown one HTML file that needs nothing else.

Names, errors and commands come from files that anybody may have written. So whatever a template prints is escaped,
unless it is Markdown already (`Markup`), and the page is made by a parser that knows no HTML, links or code.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup, escape

from evaluation.show.figures.style import Drawing, slug

if TYPE_CHECKING:
    from evaluation.show.page import Report

TEMPLATES = Path(__file__).parent / "templates"
TONES = {"": "", "good": "**", "bad": "***", "faint": "*"}  # the page's style gives each a colour
NEW_LINE = "<br>"
PARTS = ["heading", "list", "table", "escape", "emphasis", "image"]  # of Markdown, all that reports need
SCRIPT = "page.js"
REM_PER_INCH = 6.4  # all figures on one scale


class Cell(NamedTuple):
    """A cell of a table, of one line or more. `tone`: "good", "bad", "faint" or nothing."""

    text: str
    tone: str = ""


def to_markdown(report: "Report", alone: bool = False) -> str:
    """Return the whole document. Where it stands `alone`, it names no file beside it but its pictures."""
    text = templates().get_template("report.md.jinja").render(report=report, alone=alone)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def templates() -> Environment:
    """Return the templates of Markdown. What they print is escaped, unless it is Markdown."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_paragraph,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["table"] = _table
    return environment


# What Markdown would take for its own in the middle of a line: `_` only at the edge of a word, `&` only of an entity.
SPECIAL = re.compile(r"[\\`*\[\]<|~$#]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
FIRST_SPECIAL = re.compile(r"^(?:(?=[>+=-])|(\d+)(?=[.)]))")  # and only at its beginning


def _inline(text: str) -> str:
    """Text that reads the same within a line of Markdown."""
    return SPECIAL.sub(lambda found: "\\" + found[0], " ".join(text.split()))


def _paragraph(value: object) -> Markup:
    """The same where a line begins. Markdown stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(FIRST_SPECIAL.sub(lambda found: f"{found[1] or ''}\\", _inline(str(value))))


def _table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], words: bool = False) -> Markup:
    """A table whose first column names the rows; the others are numbers, unless it is a table of `words`."""
    rule = ["---"] + ["---" if words else "---:"] * (len(head) - 1)
    lines = [[_cell(cell) for cell in head], rule, *([_cell(cell) for cell in row] for row in rows)]
    return Markup("\n".join("| " + " | ".join(line) + " |" for line in lines))


def _cell(cell: str | Cell) -> str:
    """Each line in the cell's tone, with a tag for each new line."""
    text, tone = cell if isinstance(cell, Cell) else Cell(cell)
    return NEW_LINE.join(TONES[tone] + _inline(line) + TONES[tone] for line in text.splitlines())


def to_html(title: str, markdown: str, pictures: Mapping[str, str]) -> str:
    """Return one file that holds styles, a script for its tables and `pictures`, whose HTML is found by the path that
    the Markdown names. Browsers run no other script in it, and load nothing."""
    env = {"pictures": pictures}
    blocks = _parser().parse(markdown, env)
    begin = next(
        (
            at
            for at, block in enumerate(blocks)
            if _begins_part(block) or any(map(_is_picture, blocks[at + 1 : at + 2]))
        ),
        len(blocks),
    )
    top, rest = (_parser().renderer.render(part, _parser().options, env) for part in (blocks[:begin], blocks[begin:]))
    script = (TEMPLATES / SCRIPT).read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    frame = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template("page.html.jinja")
    page = {"title": title, "contents": _contents(blocks), "script": script, "digest": digest}
    return frame.render(**page, top=top, body=_once(rest))


def _contents(blocks: Sequence[Token]) -> list[tuple[str, str]]:
    """The anchor and the text of each heading of the second level."""
    second = [at for at, block in enumerate(blocks) if _begins_part(block)]
    return [(str(blocks[at].attrGet("id")), _said(blocks[at + 1])) for at in second]


def _begins_part(block: Token) -> bool:
    return (block.type, block.tag) == ("heading_open", "h2")


def _is_picture(block: Token) -> bool:
    return any(part.type == "image" for part in block.children or [])


def _once(html: str) -> str:
    """The page with one copy of each pattern, frame, marker and style that its figures have in common, whose names are
    made of what they are."""
    known: set[str] = set()
    names: dict[str, str] = {}

    def first(match: re.Match[str]) -> str:
        seen = match["id"] in known
        known.add(match["id"])
        return "" if seen else match[0]

    def named(match: re.Match[str]) -> str:
        return f' class="{names.setdefault(match[1], f"s{len(names)}")}"'

    html = re.sub(r'<(pattern|clipPath) id="(?P<id>[^"]*)".*?</\1>', first, html, flags=re.DOTALL)
    html = re.sub(r'<path id="(?P<id>[^"]*)"[^>]*/>', first, html)
    html = re.sub(r' clip-path="([^"]*)" style="([^"]*)"', r' style="\2;clip-path:\1"', html)
    html = re.sub(r'(?<=<text) style="([^"]*)"', named, html)
    html = re.sub(r'(?<=") style="([^"]*)"(?=/>)', named, html)
    html = html.replace(' style="text-align:right"', ' class="n"')
    return html + "<style>" + "".join(f".{name}{{{style}}}" for style, name in names.items()) + "</style>"


def _said(block: Token) -> str:
    """The text of a block without its marks."""
    return "".join(part.content for part in block.children or [])


def picture(drawing: Drawing, folder: Path) -> str:
    """Return the HTML of a drawing that has been saved in `folder`: its SVG, whose parts have hints."""
    text = (folder / f"{drawing.name}.svg").read_text(encoding="utf-8")
    svg = re.sub(r"^.*?<svg", "<svg", text, count=1, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", svg).replace("xlink:href", "href")
    width = f"max-width: {drawing.figure.get_figwidth() * REM_PER_INCH:.0f}rem"
    label = f'role="img" aria-label="Figure: {escape(drawing.name)}" style="{width}"'
    return f'<span class="card">{svg.replace("<svg", f"<svg {label}", 1)}</span>'


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("zero").enable(PARTS)
    parser.inline.ruler.push("new_line", _new_line)
    parser.core.ruler.push("scopes", _scopes)
    parser.core.ruler.push("anchors", _anchors)
    parser.add_render_rule("image", _picture)
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _new_line(state: StateInline, silent: bool) -> bool:
    """The one tag that our Markdown has, in cells of several lines."""
    if not state.src.startswith(NEW_LINE, state.pos):
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos += len(NEW_LINE)
    return True


def _scopes(state: StateCore) -> None:
    """The first cell of a row names it, so it is a heading too; screen readers need to know of what."""
    for row, first, end in zip(state.tokens, state.tokens[1:], state.tokens[3:], strict=False):
        if row.type == "tr_open" and first.type == "td_open":
            first.tag = end.tag = "th"
            first.attrSet("scope", "row")
        if first.type == "th_open":
            first.attrSet("scope", "col")


def _anchors(state: StateCore) -> None:
    """Each heading has a name of its own, by which the contents lead to it."""
    known: dict[str, int] = {}
    for head, text in zip(state.tokens, state.tokens[1:], strict=False):
        if head.type == "heading_open":
            name = slug(_said(text)) or "part"
            known[name] = known.get(name, 0) + 1
            head.attrSet("id", name if known[name] == 1 else f"{name}-{known[name]}")


def _picture(self: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Mapping[str, Any]) -> str:
    pictures: Mapping[str, str] = env["pictures"]
    return pictures[unquote(str(tokens[at].attrs["src"]))]
