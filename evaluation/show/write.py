"""This module writes a report: REPORT.md and report.html, beside its figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from methods.errors import UserError, writing

if TYPE_CHECKING:
    from evaluation.judge.gates import GateResult
    from evaluation.show.page import Report


MARKDOWN, HTML, FIGURES = "REPORT.md", "report.html", "figures"
WRITTEN_BY = "Written by evaluation/report.py"  # REPORT.md says so in its first lines


def write_report(report: "Report", output: Path) -> list[Path]:
    """Write REPORT.md and report.html beside the figures, which are there. Raises UserError where that fails."""
    from evaluation.show.document import picture, to_html, to_markdown

    paths = [output / MARKDOWN, output / HTML]
    with writing(output):
        paths[0].write_text(to_markdown(report), encoding="utf-8")
        pictures = {f"{FIGURES}/{drawing.name}.png": picture(drawing, output / FIGURES) for drawing in report.drawings}
        page = to_html(f"Results: {report.name}", to_markdown(report, alone=True), pictures)
        paths[1].write_text(page, encoding="utf-8")
    return paths


def check_output(output: Path) -> None:
    """Refuse to write over a REPORT.md that is somebody's own."""
    path = output / MARKDOWN
    if path.is_file() and WRITTEN_BY not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{path} was not written by this command; move it, or choose another --output")


def tell(written: list[Path], left_out: list[str], failed: "list[GateResult]") -> None:
    """Say which files were written, what was asked for and is not there, and which conditions failed."""
    console = Console(highlight=False)
    for path in written:
        console.print(Text(str(path)), soft_wrap=True)
    for line in left_out:
        console.print(Text(f"left out: {line}", style="yellow"), soft_wrap=True)
    for outcome in failed:
        value = "nothing was measured" if outcome.value is None else f"it is {outcome.value:.3g}"
        console.print(Text(f"failed: {outcome.gate.text}: {value}", style="red"), soft_wrap=True)
