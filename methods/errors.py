"""User errors: one clear sentence and exit status 2, the same way in every command."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake of the user's. Its text is one sentence: what was expected, what came, what to do."""


class RunError(Exception):
    """What ended a run without being the user's mistake, such as a dead rank. Its text is one sentence."""


class PeerError(RunError):
    """Another rank is gone or hangs, as this one sees it. Who knows of the cause tells that instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown `name`: the closest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def command_line(main: Callable[[], int]) -> None:
    """Run `main` as a command: its return value is the exit status; a UserError is one sentence and status 2, a
    RunError one sentence and status 1."""
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # whoever read our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
