"""How a proof of losslessness reads."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from evaluation.launch.config import RunConfig
from evaluation.show.tables import terminal

if TYPE_CHECKING:
    from evaluation.proof.checks import Check


def document(config: RunConfig, checks: "list[Check]") -> dict[str, Any]:
    """The result for programs: what was checked, under which conditions, and each check."""
    from evaluation.launch.provenance import environment

    return {
        "method": config.methods[-1],
        "options": config.options_of(config.specs[-1]),
        "pair": config.pair.name,
        "lossless": all(found.passed for found in checks),
        "checks": [
            {"name": c.name, "passed": c.passed, "compared": c.compared, "outcome": c.outcome} | c.figures
            for c in checks
        ],
        "target": config.pair.target,
        "draft": config.draft_of(config.specs[-1]),
        "dtype": config.dtype,
        "benchmark": config.benchmark,
        "sampling": config.sampling,
        "seed": config.seed,
        **environment(),
    }


def show(config: RunConfig, checks: "list[Check]") -> None:
    """The table, where a failure shows, and the verdict in a sentence."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("check", "compared", "outcome", ""):
        table.add_column(column, no_wrap=column in ("check", ""))
    for found in checks:
        table.add_row(found.name, found.compared, found.outcome, _word(found.passed))
    output = terminal()
    output.print(table)
    for found in checks:
        if found.detail:
            output.print(f"{found.name}:\n{found.detail}", markup=False, soft_wrap=True)
    output.print(verdict(config, checks), soft_wrap=True)


def _word(passed: bool) -> Text:
    return Text("pass", "green") if passed else Text("FAIL", "bold red")


def verdict(config: RunConfig, checks: "list[Check]") -> Text:
    """One sentence."""
    name, pair = config.methods[-1], config.pair.name
    failed = [found.name for found in checks if not found.passed]
    if not failed:
        return Text(f"{name} is lossless on {pair}: it passed all {len(checks)} checks.", "bold green")
    return Text(f"{name} is NOT lossless on {pair}: it failed {' and '.join(failed)}.", "bold red")
