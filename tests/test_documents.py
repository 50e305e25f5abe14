"""The project's documents: they name files that are there, and the front door is short."""

import ast
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from methods.paths import ROOT

ROOMS = "methods", "evaluation", "scripts", "tests"
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "data").rglob("*.md"),
    *(ROOT / room / "README.md" for room in ("methods", "evaluation", "results")),
]
CODE = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
FILES = [path.relative_to(ROOT).as_posix() for path in (*CODE, *(ROOT / "methods").rglob("native.*"))]
NAMED = re.compile(r"(?<![\w/.-])((?:[a-z_]+/)*[a-z_0-9]+\.py)\b")
NOT_HERE = {"bigram.py"}  # the example of methods/README.md


def missing(text: str) -> set[str]:
    """The Python files that a text names and that are not here, by the end of their path."""
    return {name for name in NAMED.findall(text) if Path(name).name not in NOT_HERE
            and not any(f"/{path}".endswith(f"/{name}") for path in FILES)}  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_what_is_here(path: Path) -> None:
    text = path.read_text()
    assert not missing(text)
    for place, anchor in links(text):
        target = path.parent / place if place else path
        assert target.exists(), place
        assert not anchor or anchor in headings(target.read_text()), f"{place}#{anchor}"


def links(text: str) -> list[tuple[str, str]]:
    """Files that a document links to, and the headings in them."""
    parts = [part for block in MarkdownIt().parse(text) for part in block.children or []]
    found = [
        str(part.attrs.get("href") or part.attrs.get("src")) for part in parts if part.type in ("link_open", "image")
    ]
    return [(place, anchor) for place, _, anchor in (link.partition("#") for link in found) if ":" not in place]


def headings(text: str) -> set[str]:
    """Of a document, as links name them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_docstrings_name_what_is_here() -> None:
    told = {}
    for path in CODE:
        tree = ast.parse(path.read_text())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
        told[path.relative_to(ROOT).as_posix()] = missing("\n".join(texts))
    assert not {path: names for path, names in told.items() if names}


def test_the_front_door_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000
