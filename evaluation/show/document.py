"""A document of headings, paragraphs, tables and figures, as Markdown and as one HTML file that needs nothing else."""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from evaluation.show.figures.style import Drawing


class Cell(NamedTuple):
    """Of a table, of one line or more. `tone`: "good", "bad", "faint" or nothing."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Its first column names the rows; the others are numbers, unless it is a table of `words`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing that has been saved in `folder`."""

    drawing: Drawing
    folder: Path


Block = Heading | Text | Bullets | Table | Figure


def to_markdown(blocks: Iterable[Block], folder: Path) -> str:
    """`folder`: where the document will lie, from which its figures are named."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_paragraph(text)}"
        case Text(text):
            return _paragraph(text)
        case Bullets(items):
            return "\n".join(f"- {_paragraph(item)}" for item in items)
        case Table(head, rows, words):
            rule = ["---"] + ["---" if words else "---:"] * (len(head) - 1)
            cells = [map(_inline, head), rule, *([_inline(_cell(cell).text) for cell in row] for row in rows)]
            return "\n".join("| " + " | ".join(line) + " |" for line in cells)
        case Figure(drawing, place):
            path = place.relative_to(folder).as_posix() + f"/{drawing.name}"
            about = f"{_paragraph(drawing.about)} [Data]({path}.csv), [SVG]({path}.svg)."
            return f"![Figure: {drawing.name}]({path}.png)\n\n{about}"


# What Markdown would take for its own in the middle of a line: `_` only at the edge of a word, `&` only of an entity.
SPECIAL = re.compile(r"[\\`*\[\]<|~$#]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
FIRST_SPECIAL = re.compile(r"^(?:(?=[>+=-])|(\d+)(?=[.)]))")  # and only at its beginning


def _inline(text: str) -> str:
    """Text that stands in Markdown as it is, with a tag for each new line."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "<br>".join(SPECIAL.sub(lambda found: "\\" + found[0], line) for line in lines)


def _paragraph(text: str) -> str:
    """The same where a line begins, and in one line."""
    return FIRST_SPECIAL.sub(lambda found: f"{found[1] or ''}\\", _inline(" ".join(text.split())))


def _cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def to_html(title: str, blocks: Iterable[Block]) -> str:
    """One file: styles and figures are in it."""
    body = "\n".join(_html(block) for block in blocks)
    return PAGE.format(title=escape(title), style=CSS, body=body)


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Table(head, rows, words):
            names = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
            lines = "\n".join(_html_row([_cell(cell) for cell in row]) for row in rows)
            kind = " class='words'" if words else ""
            return (
                f"<div class='wide'><table{kind}><thead><tr>{names}</tr></thead>\n<tbody>{lines}</tbody></table></div>"
            )
        case Figure(drawing, place):
            svg = base64.b64encode((place / f"{drawing.name}.svg").read_bytes()).decode()
            width = f"style='max-width: {drawing.figure.get_figwidth() * REM_PER_INCH:.0f}rem'"
            image = f"<img alt='Figure: {escape(drawing.name)}' {width} src='data:image/svg+xml;base64,{svg}'>"
            return f"<figure><div class='card'>{image}</div><figcaption>{escape(drawing.about)}</figcaption></figure>"


def _html_row(cells: Sequence[Cell]) -> str:
    first, *others = cells
    parts = [f"<td class='{cell.tone}'>{escape(cell.text)}</td>" if cell.tone else f"<td>{escape(cell.text)}</td>"
             for cell in others]  # fmt: skip
    return f"<tr><th scope='row'>{escape(first.text)}</th>{''.join(parts)}</tr>"


REM_PER_INCH = 6.4  # all figures on one scale

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

CSS = """\
:root { --ink: #1c1f23; --faint: #667079; --line: #dfe3e7; --page: #ffffff; --head: #f5f7f9; --accent: #0072b2;
  --good: #00714f; --bad: #b84300; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --faint: #9aa4ad; --line: #343a41; --page: #15181b; --head: #1e2226; --accent: #56b4e9;
    --good: #3fc79a; --bad: #ff8b45; }
  .card { opacity: .94; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, li { max-width: 44rem; overflow-wrap: anywhere; }
ul { padding-left: 1.25rem; }
.wide { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; white-space: pre; border-bottom: 1px solid var(--line); }
th:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
thead th { background: var(--head); color: var(--faint); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--page); }
tbody tr:last-child > * { border-bottom: 0; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.faint { color: var(--faint); }
figure { margin: 1.5rem 0; }
.card { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: .75rem; overflow-x: auto; }
.card img { display: block; width: 100%; min-width: 22rem; height: auto; margin: 0 auto; }
figcaption { color: var(--faint); font-size: .875rem; margin-top: .5rem; max-width: 44rem; }
@media (max-width: 30rem) {
  main { padding: 1rem .75rem 3rem; }
  h1 { font-size: 1.4rem; }
  th, td { padding: .4rem .5rem; }
}
@media print { main { max-width: none; } .card, .wide { border: 0; } }
"""
