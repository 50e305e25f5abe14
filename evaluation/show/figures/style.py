"""This module says how the figures look, and saves them: PNG and SVG, with their data beside them.

The colours are those of Okabe and Ito 2008, "Color universal design", which the colour-blind can tell apart; hatches
and markers tell the methods apart where there is no colour.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from methods import METHODS
from methods.errors import writing

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#222222"
FONT = "DejaVu Sans"
HINT = "hint:"  # begins the name of a part of a figure that has one
GREY, FAINT, SMALL_PRINT = "#7a7a7a", "#d9d9d9", "#555555"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK, YELLOW)
HATCHES = ("", "////", "||||", "\\\\\\\\", "xxxx", "----", "++++", "//")  # dots take 100 kB in SVG
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", "-.", ":")
FIRST = ("sps", "pearl")  # keep their look in every figure; the others take what is left

ERROR_BAR: dict[str, Any] = {
    "ecolor": BLACK,
    "elinewidth": 1,
    "capsize": 2.5,
    "capthick": 1,
    "fmt": "none",
    "zorder": 4,
}
PLATE: Any = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.6}  # behind a text that may lie on lines
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # of spreadsheets
WIDTH = 7.2  # inches: two columns of a paper
TITLE, SMALL = 10.5, 6.5  # points
TITLE_CHARACTERS, SMALL_CHARACTERS = 10.5, 21  # to an inch
STYLE: Any = {  # matplotlib's type names every parameter there is
    "font.family": FONT,
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 180,
    "text.parse_math": False,  # a name with dollar signs is no formula
    "svg.hashsalt": "pearl-bench",  # the same data give the same file
    "svg.fonttype": "none",  # text stays text: a sixth of the bytes of outlines, and it can be searched
}


@dataclass(frozen=True)
class Drawing:
    """A drawing is a figure, what it shows in a sentence or two, and the numbers in it."""

    name: str  # of its files
    figure: Figure
    data: pd.DataFrame
    about: str
    group: str | None = None  # the group that it is of, None if of all
    missing: Sequence[str] = ()  # what is not in it, and why

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.png, NAME.svg and NAME.csv. Raises UserError where that is not possible."""
        paths = [folder / f"{self.name}.{ending}" for ending in ("png", "svg", "csv")]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with mpl.rc_context(STYLE):
                self.figure.savefig(paths[0], metadata={"Software": None})
                _with_palette(paths[0])
                self.figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
                paths[1].write_text(_compact(paths[1].read_text(encoding="utf-8")), encoding="utf-8")
            self.data.map(_as_text).rename(columns=_as_text).to_csv(paths[2], index=False)
        return paths


def _with_palette(path: Path) -> None:
    """The same picture in a third of the bytes: figures have few colours, and edges between them."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, dpi=picture.info["dpi"])


def _as_text(cell: Any) -> Any:
    """A text that a spreadsheet would run as a formula, such as a method's name, marked as text."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA_SIGNS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _compact(svg: str) -> str:
    """The same picture in a fraction of the bytes: places to a tenth of a point, of what all have in common one copy,
    and no names but those that are referred to. Of what has a hint its text, which browsers show where a pointer rests
    on it."""
    svg = re.sub(rf'<g id="{HINT}([^"]*)">', r'<g class="hint"><title>\1</title>', svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(rf"; font-family: '{FONT}'|; stroke-linejoin: miter| transform=\"rotate\(-0 [^)]*\)\"", "", svg)
    svg = svg.replace("<svg ", f"<svg font-family=\"'{FONT}', Verdana, sans-serif\" ", 1)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d)\d+| (?=L)|(?<=[LMCQ]) ", r"\1", found[0]), svg)
    svg = re.sub(r'style="[^"]*"', lambda found: found[0].replace("; ", ";").replace(": ", ":"), svg)
    svg = _ungrouped(re.sub(r"<g/>|<defs/>", "", svg))
    return re.sub(r"\s*\n\s*", "\n", svg)


def _ungrouped(svg: str) -> str:
    """Without the groups that say nothing of what is in them."""
    kept: list[bool] = []

    def mark(match: re.Match[str]) -> str:
        if match[0] == "</g>":
            return match[0] if kept.pop() else ""
        kept.append(match[0] != "<g>")
        return match[0] if kept[-1] else ""

    return re.sub(r"<g(?: [^>]*)?>|</g>", mark, svg)


def hint(artist: Artist, text: str) -> None:
    """Say something about a part of a figure where a pointer rests on it."""
    artist.set_gid(HINT + " ".join(text.split()))


@dataclass(frozen=True)
class Look:
    """A method has one look in all figures of a command."""

    color: str
    hatch: str
    marker: str
    line: str

    @property
    def bar(self) -> dict[str, Any]:
        return {"facecolor": self.color, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0.8}


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Choose a look for each method."""
    present = set(methods)
    others = [name for name in METHODS if name in present] + sorted(present - set(METHODS))
    order = [*FIRST, *(name for name in others if name not in FIRST)]
    return {name: _look(place) for place, name in enumerate(order) if name in present}


def _look(place: int) -> Look:
    """Where the colours are used up they come again, with other hatches, markers and lines."""
    lap, color = divmod(place, len(COLORS))
    other = (color + lap) % len(HATCHES)
    return Look(COLORS[color], HATCHES[other], MARKERS[other], LINES[(place + lap) % len(LINES)])


def new_figure(title: str, small_print: str, height: float, width: float = WIDTH, legend_rows: int = 0) -> Figure:
    """Make an empty figure with a title above, room for a legend under it, and the conditions in small print below."""
    figure = Figure(figsize=(width, height), layout="constrained")
    lines = textwrap.wrap(title, int(width * TITLE_CHARACTERS)) + [""] * legend_rows
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=TITLE, fontweight="bold")
    figure.supxlabel(
        _wrap(small_print, int(width * SMALL_CHARACTERS)), x=0.01, ha="left", fontsize=SMALL, color=SMALL_PRINT
    )
    return figure


def _wrap(text: str, width: int) -> str:
    """Lines of at most `width` characters, parted at the middle dots where there are any."""
    lines = []
    for line in text.split("\n"):
        whole = line.replace(" ", "\0").replace("\0·\0", "\0· ") if " · " in line else line
        lines += [part.replace("\0", " ") for part in textwrap.wrap(whole, width)]
    return "\n".join(lines)


def add_legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """Put a legend into the room that `legend_rows` has left under the title; constrained layout would put it over
    the title."""
    title_lines = figure.get_suptitle().rstrip("\n").count("\n") + 1
    below_title = 1 - (0.15 + 1.2 * title_lines) * TITLE / 72 / figure.get_figheight()
    legend = figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, below_title), ncols=columns)
    legend.set_in_layout(False)


def one_line(axes: Axes, value: float = 1.0, text: str = "baseline", vertical: bool = False) -> None:
    """Mark a value by a line, such as a speedup of 1."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=BLACK, linewidth=1, linestyle=(0, (4, 2)), zorder=3, label=text)


def whiskers(axes: Axes, x: Any, y: Any, **errors: Any) -> None:
    """Draw error bars (`xerr`, `yerr`), with a white edge that shows them on dark bars too."""
    _, caps, bars = axes.errorbar(x, y, **ERROR_BAR | errors)
    for artist in (*caps, *bars):
        artist.set_path_effects(halo(2))


def number(value: float) -> str:
    """Write a speedup as figures show it."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def halo(width: float = 2.5) -> list[AbstractPathEffect]:
    """Put white around what may lie on lines."""
    return [withStroke(linewidth=width, foreground="white", alpha=0.8)]


def slug(text: str) -> str:
    """Write a text as part of a file's name."""
    kept = "".join(c if c.isalnum() or c in ".+" else "-" for c in text.lower())
    return "-".join(filter(None, kept.split("-")))
