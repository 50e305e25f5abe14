"""User errors: one clear sentence and exit status 2, the same way in every command."""

import argparse
import difflib
import json
import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ALIKE = 0.65  # of two names, by difflib's ratio: 'slp' and 'sps' (0.67) are, 'eagle' and 'pearl' (0.6) are not
SHOWN = 80  # characters of a wrong value; twice as many of another library's message


class _Told(Exception):
    """One sentence on one line, also where it names what has several, such as a file whose name has a line break."""

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))


class UserError(_Told):
    """A mistake of the user's. Its text is one sentence: what was expected, what came, what to do."""


class RunError(_Told):
    """What ended a run without being the user's mistake, such as a dead rank. Its text is one sentence."""


class PeerError(RunError):
    """Another rank is gone or hangs, as this one sees it. Who knows of the cause tells that instead."""


class CommandParser(argparse.ArgumentParser):
    """Its errors are a user's mistakes as any other: told by `command_line`, with --json as a document too."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UserError(f"{message}; see --help")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown `name`: the closest known name, or all of them."""
    known = sorted(known)
    in_lower_case = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), in_lower_case, n=1, cutoff=ALIKE)
    return f"; did you mean '{in_lower_case[close[0]]}'?" if close else f"; known: {', '.join(known)}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = SHOWN


def shown(value: object) -> str:
    """A value as an error sentence shows it: on one line, and its beginning where it is long or deep."""
    return _SHORT.repr(value)


def one_line(error: BaseException) -> str:
    """The beginning of an exception's message; its type where it has none, or where that says more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if not text or isinstance(error, (KeyError, IndexError, AttributeError, TypeError)):
        text = f"{type(error).__name__} {text}".strip()
    return text.rstrip(".;:") if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}..."


@contextmanager
def writing(path: Path, option: str = "--output") -> Iterator[None]:
    """Within, a file or folder is made that the user has named by an option. Raises UserError where the system
    refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another {option}") from None


def tell_error(sentence: str) -> None:
    """Print why a command ends: on stderr, with --json also as the document on stdout, there by one rank only."""
    print(f"error: {sentence}", file=sys.stderr)
    if _wants_json(sys.argv[1:]) and os.environ.get("RANK", "0") == "0":
        print(json.dumps({"error": sentence}))


def _wants_json(typed: Iterable[str]) -> bool:
    """Also where the option is abbreviated, as argparse lets it be."""
    options = [word.partition("=")[0] for word in typed]
    return any("--json".startswith(option) and len(option) > len("--") for option in options)


def command_line(main: Callable[[], int]) -> None:
    """Run `main` as a command: its return value is the exit status; a UserError is one sentence and status 2, a
    RunError one sentence and status 1. With --json the sentence is in the document on stdout, too."""
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        tell_error(str(error))
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # whoever read our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
