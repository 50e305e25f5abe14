"""The first ten minutes on a GPU: what was predicted, and what comes.

    python scripts/first_gpu_day.py [--out FOLDER] [--only STEP,...] [--device cpu]

Nothing is downloaded: speed is measured on random weights of published models' sizes, methods on the embedded pair.
Each step says what is expected and what came; a step that cannot run says why, and the others go on. FOLDER has the
page first-gpu-day.md and the same as first-gpu-day.json, both written anew behind each step, so that an interrupted day
is not lost. Exit status: 0 if all came as expected, 1 if something did not or could not run, 2 without a GPU.
`--device cpu` goes through the same steps on tiny models, to try the script itself.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.launch.flags import DEVICES
from methods import BASELINE, METHODS, get_method
from methods.errors import CommandParser, UserError, command_line, one_line, writing
from methods.pairs import Pair, find_pair, known_pairs
from methods.paths import ROOT

NAME = "first-gpu-day"
PAIR = "smollm2-135m"
PATIENCE = 240  # seconds that a command of a step may take
DATA_SHEETS = {  # bytes per second, by a part of a GPU's name
    "B200": 8.0e12,
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "A100-SXM4-80GB": 2.04e12,
    "A100": 1.56e12,
    "L40S": 0.86e12,
    "L4": 0.3e12,
    "RTX 5090": 1.79e12,
    "RTX 4090": 1.01e12,
    "RTX 3090": 0.94e12,
}
MOST_FLOORS = {"7B": 2.0, "8B": 2.0}  # of a pass of one row; a small model's is all launches
MOST_MS = (
    1.0,
    3.0,
)  # before the first launch of a pass over a tree; from a row on the draft's GPU to a token drawn by it
LEAST_SHARE = 0.8  # of the bandwidth, by which weights in 16 bits are read


@dataclass(frozen=True)
class Step:
    """`run` returns what came, as `Came` of gpu_engine.py; it may raise anything."""

    name: str
    expected: str
    run: Callable[[], Any]


@dataclass
class Result:
    """What became of a step. `verdict`: "as expected", "not as expected" or "could not run"."""

    name: str
    expected: str
    came: str
    verdict: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)


class CannotRunError(Exception):
    """A step cannot run here; its text says why."""


@dataclass
class Day:
    """`device`: "cuda" or "cpu"; `pair`: its name, or a target; `questions` and `tokens` of each command that runs
    methods; `more`: its further options."""

    device: str
    pair: str
    out: Path
    questions: int = 5
    tokens: int = 64
    more: tuple[str, ...] = ()

    @cached_property
    def place(self) -> Any:
        import torch

        return torch.device("cuda", 0) if self.device == "cuda" else torch.device("cpu")

    @cached_property
    def sizes(self) -> Any:
        from gpu_engine import CPU, GPU

        return GPU if self.device == "cuda" else CPU

    @cached_property
    def threads(self) -> int:
        return len(os.sched_getaffinity(0))

    @cached_property
    def gpus(self) -> int:
        import torch

        return torch.cuda.device_count() if self.device == "cuda" else 0

    @cached_property
    def bandwidth(self) -> float:
        from evaluation.launch.provenance import read_bandwidth

        return read_bandwidth(self.threads, self.place)

    def command(self, name: str, methods: str, *more: str, gpus: int | None = None) -> list[dict[str, Any]]:
        """What evaluation/run.py says of methods, on the first `gpus` of the GPUs (None: on all)."""
        task = ["--limit", str(self.questions), "--max-new-tokens", str(self.tokens), "--device", self.device]
        folder = self.out / "answers" / name
        models = [self.pair] if self.pair in known_pairs() else ["--target", self.pair]
        words = [methods, *models, *task, "--alone", "--json", "--output", str(folder), *self.more, *more]
        env = dict(os.environ, PYTHONPATH=str(ROOT))
        if gpus is not None and self.device == "cuda":
            shown = env.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.gpus)))
            env["CUDA_VISIBLE_DEVICES"] = ",".join(shown.split(",")[:gpus])
        command = [sys.executable, str(ROOT / "evaluation/run.py"), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise CannotRunError(f"it took more than {PATIENCE} seconds: {' '.join(words)}") from None
        said = done.stdout.strip().splitlines()
        rows = json.loads(said[-1]) if said else {"error": (done.stderr.strip() or "nothing was said").splitlines()[-1]}
        if isinstance(rows, dict):
            raise CannotRunError(rows["error"].removeprefix("error: "))
        return list(rows)

    def steps(self) -> list[Step]:
        """In the order in which they are worth most: should the day be short, the last ones are missed least."""
        import gpu_engine as engine
        from gpu_host import host

        floors = {name: MOST_FLOORS.get(name, float("inf")) for name in self.sizes.models}
        at, least = self.sizes.lengths[1], LEAST_SHARE if self.device == "cuda" else 0.0
        before, row = MOST_MS if self.device == "cuda" else (float("inf"), float("inf"))
        told = {name: f", one row at {at} tokens within {most:g} floors" for name, most in MOST_FLOORS.items()}
        return [
            Step(
                "machine",
                "at least three quarters of the bandwidth in the data sheet",
                partial(engine.machine, self.place, self.threads, DATA_SHEETS),
            ),
            Step(
                "rows",
                "the engine's operators give a row the same bits at several numbers of rows, PyTorch's some",
                partial(engine.rows_with_equal_bits, self.sizes, self.place),
            ),
            Step(
                "kernels",
                "every grouping of heads gives a row the same bits alone, in a chain and in a tree",
                partial(engine.exact_kernels, self.sizes, self.place),
            ),
            *(
                Step(
                    f"passes of {name}",
                    "the same bits at any number of rows" + told.get(name, ""),
                    partial(self._passes, name, most),
                )
                for name, most in floors.items()
            ),
            Step(
                "weights",
                f"up to 16 rows read weights in 16 bits at {least:g} of the bandwidth or more",
                lambda: engine.reading(self.sizes, self.place, self.bandwidth, least),
            ),
            Step(
                "graph",
                "a small model's layers are faster as a CUDA graph, with the same bits",
                partial(engine.graph_gain, list(self.sizes.models)[-1], self.sizes, self.place),
            ),
            Step(
                "host",
                f"a tree and what it sees within {before:g} ms, a row from GPU to token within {row:g} ms",
                partial(host, self.sizes, self.place, before, row),
            ),
            Step("methods", "every answer of every method is the baseline's, token for token", self._methods),
            Step("sampling", "every method answers at a temperature of 0.8", self._sampling),
            Step("PEARL on one GPU", "every answer is the baseline's", partial(self._pearl, 1)),
            Step(
                "PEARL on two GPUs", "every answer is the baseline's, and faster than on one", partial(self._pearl, 2)
            ),
            Step("a split target", "every answer is the baseline's of the same split", self._split),
        ]

    def _passes(self, name: str, most_floors: float) -> Any:
        from gpu_engine import passes

        return passes(name, self.sizes, self.place, self.bandwidth, most_floors)

    def _methods(self) -> Any:
        return equal(self.command("methods", ",".join([*runnable(find_pair(self.pair)), "hf-generate"])))

    def _sampling(self) -> Any:
        from gpu_engine import Came

        rows = self.command("sampling", ",".join(runnable(find_pair(self.pair))), "--temperature", "0.8")
        return Came(f"{len(rows)} methods answered", True, {"methods": figures(rows)})

    def _pearl(self, gpus: int) -> Any:
        if self.device == "cuda" and self.gpus < gpus:
            raise CannotRunError(f"it needs {gpus} GPUs, and there is {self.gpus}")
        return equal(self.command(f"pearl-on-{gpus}", "sps,pearl", gpus=gpus))

    def _split(self) -> Any:
        from methods.engine.loader import find_checkpoint
        from methods.engine.split import splits

        config = find_checkpoint(find_pair(self.pair).target).config
        ranks = next((count for count in range(2, config.heads + 1) if splits(config, count)), None)
        if ranks is None:
            raise CannotRunError(f"the target of {self.pair} cannot be split")
        if self.device == "cuda" and self.gpus < ranks:
            raise CannotRunError(f"the target of {self.pair} can be split among {ranks} GPUs, and there is {self.gpus}")
        return equal(self.command("split", "pld", "--tensor-parallel", str(ranks)))


def runnable(pair: Pair) -> list[str]:
    """The lossless methods of one rank whose weights the pair has; of those over two drafters as one, none."""
    return [
        name
        for name, spec in METHODS.items()
        if name != BASELINE and spec.lossless and spec.ranks == 1 and not spec.all_devices
        if not spec.weights or spec.weights in pair.drafts
        if spec.drafter is None or spec.drafter.parts is None
        if name != "space"  # whose target must have been trained for it
    ]


def equal(rows: list[dict[str, Any]]) -> Any:
    """Whether all answers were the baseline's, but for those of another library."""
    from gpu_engine import Came

    ours = [row for row in rows if get_method(row["method"]).lossless]
    others = [row["method"] for row in ours if row.get("identical") != row.get("questions")]
    best = max(ours, key=lambda row: row.get("speedup") or 0)
    text = f"{len(ours) - len(others)} of {len(ours)} methods identical"
    text += f"; not {', '.join(others)}" if others else ""
    text += f"; the fastest: {best['method']}, {best.get('speedup') or 0:.2f} times the baseline's speed"
    return Came(text, not others, {"methods": figures(rows)})


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    wanted = ("identical", "questions", "speedup", "low", "high", "mat", "tokens_per_second", "error")
    return {row["method"]: {key: row[key] for key in wanted if row.get(key) is not None} for row in rows}


def attempt(step: Step) -> Result:
    """Run a step, whatever becomes of it."""
    begin = time.monotonic()
    try:
        came = step.run()
        verdict = "as expected" if came.good else "not as expected"
        text, found = came.text, came.figures
    except (CannotRunError, UserError) as error:
        verdict, text, found = "could not run", str(error), {}
    except Exception as error:  # of a machine that nobody has seen: the other steps tell more
        verdict, text, found = "could not run", f"{type(error).__name__}: {one_line(error)}", {}
    return Result(step.name, step.expected, text, verdict, round(time.monotonic() - begin, 1), found)


def page(about: dict[str, Any], results: list[Result]) -> str:
    """The results in Markdown."""
    device = about["gpu"] or about["cpu"]
    lines = [
        f"# First day on {device}",
        "",
        f"{about['created']}, commit {about['git_commit']}, by `{about['command']}`",
    ]
    lines += ["", "| step | expected | came | | s |", "|---|---|---|---|---|"]
    lines += [f"| {r.name} | {r.expected} | {r.came} | {r.verdict} | {r.seconds:.0f} |" for r in results]
    for result in results:
        for title, table in result.figures.items():
            if isinstance(table, dict) and table and all(isinstance(row, dict) for row in table.values()):
                lines += ["", f"## {result.name}: {title}", "", *table_of(table)]
    return "\n".join(lines) + "\n"


def table_of(rows: dict[Any, dict[Any, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [f"| | {' | '.join(map(str, columns))} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cell(row.get(key)) for key in columns)} |" for name, row in rows.items()]


def cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def write(out: Path, about: dict[str, Any], results: list[Result]) -> None:
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        document = about | {"steps": [asdict(result) for result in results]}
        (out / f"{NAME}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (out / f"{NAME}.md").write_text(page(about, results), encoding="utf-8")


def spend(day: Day, only: list[str]) -> int:
    """Go through the steps. Returns the exit status."""
    from evaluation.launch.provenance import environment

    steps = [step for step in day.steps() if not only or step.name in only]
    about = environment() | {"device": day.device, "pair": day.pair, "command": " ".join(["python", *sys.argv])}
    results: list[Result] = []
    write(day.out, about, results)
    for number, step in enumerate(steps, 1):
        print(f"{number}/{len(steps)} {step.name}\n  expected: {step.expected}", flush=True)
        results.append(attempt(step))
        print(f"  came:     {results[-1].came}\n  {results[-1].verdict}, {results[-1].seconds:.0f} s", flush=True)
        write(day.out, about, results)
    print(f"in full: {day.out / NAME}.md and .json")
    return int(any(result.verdict != "as expected" for result in results))


def main() -> int:
    parser = CommandParser(description="What a GPU gives, beside what was expected.")
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu", help="folder of the page (%(default)s)")
    parser.add_argument("--only", default="", metavar="STEP,...", help="steps to run, by their names (default: all)")
    parser.add_argument("--device", choices=DEVICES[1:], default="cuda", help="cpu: the same on tiny models")
    args = parser.parse_args()
    from evaluation.launch.ranks import choose_device

    if args.device == "cuda" and choose_device("auto") == "cpu":
        raise UserError("expected a GPU that CUDA finds, found none; --device cpu runs the same steps on tiny models")
    day = Day(args.device, PAIR, args.out)
    only = [name.strip() for name in args.only.split(",") if name.strip()]
    known = [step.name for step in day.steps()]
    if unknown := [name for name in only if name not in known]:
        raise UserError(f"no step '{unknown[0]}'; known: {', '.join(known)}")
    return spend(day, only)


if __name__ == "__main__":
    command_line(main)
