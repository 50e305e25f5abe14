"""A run shows how far it is: by a bar in a terminal, else by a plain line every half minute, so that a log shows that
it goes on."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evaluation.answers.record import Choice
from methods import BASELINE

EVERY = 30.0  # seconds between two lines


class Tally:
    """A tally keeps the speedups so far."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}

    def add(self, name: str, choices: list[Choice]) -> None:
        self.tokens[name] += sum(sum(choice.new_tokens) for choice in choices)
        self.seconds[name] = self.seconds.get(name, 0.0) + sum(sum(choice.wall_time) for choice in choices)

    def text(self) -> str:
        rates = {name: self.tokens[name] / seconds for name, seconds in self.seconds.items() if seconds}
        base = rates.pop(BASELINE, 0)
        return "  ".join(f"{name} {rate / base:.2f}x" for name, rate in rates.items()) if base else "measuring"


class Bar:
    """A bar is for a terminal."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self.task = self.bar.add_task("warming up", total=total)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def advance(self, text: str) -> None:
        """Count one question more. `text` says what is known by now."""
        self.bar.update(self.task, advance=1, description=text)

    def tick(self) -> None:
        """Nothing needs to be shown: the bar moves by itself."""


class Lines:
    """Lines are for a file or a pipe. They are printed between answers only, never while one is measured."""

    def __init__(self, console: Console, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.total, self.clock = console, total, clock
        self.done, self.text = 0, "measuring"
        self.begin = self.told = clock()

    def __enter__(self) -> Self:
        self._print(f"0/{self.total} questions, warming up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._print(self.line())

    def advance(self, text: str) -> None:
        """Count one question more. `text` says what is known by now."""
        self.done, self.text = self.done + 1, text
        self.tick()

    def tick(self) -> None:
        """Print how far the run is, if nothing was printed for half a minute."""
        if self.clock() - self.told >= EVERY:
            self._print(self.line())

    def line(self) -> str:
        """Return a line such as "12/80 questions in 0:01:00, 12.0 a minute, 0:05:40 to go: pld 1.52x"."""
        seconds = self.clock() - self.begin
        pace = ""
        if self.done and seconds:
            left = seconds / self.done * (self.total - self.done)
            pace = f", {self.done / seconds * 60:.1f} a minute, {_time(left)} to go"
        return f"{self.done}/{self.total} questions in {_time(seconds)}{pace}: {self.text}"

    def _print(self, line: str) -> None:
        self.told = self.clock()
        self.console.print(line, soft_wrap=True)


def _time(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


def progress(console: Console, total: int) -> Bar | Lines:
    """Return what shows how far a run of so many questions is: a bar or lines, as suits the console."""
    return Bar(console, total) if console.is_terminal else Lines(console, total)
