"""Every rank leaves by one way, and says in a sentence how it ended, for all ranks of its launch."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from methods.errors import PeerError, RunError, UserError, tell_error

OUT_OF_MEMORY = "out of memory", "can't allocate memory", "not enough memory"  # as torch says it


@dataclass(frozen=True)
class Ending:
    """`status`: of the exit; `sentence`: why, where nothing else has told; `echo`: only of how another rank ended."""

    status: int
    sentence: str = ""
    echo: bool = False


def ending_of(rank: int, main: Callable[[], int]) -> Ending:
    """Run `main` as that rank. A fault of our own is told with its traceback too."""
    try:
        return Ending(main())
    except UserError as error:
        return Ending(2, str(error))
    except PeerError as error:
        return Ending(1, str(error), echo=True)
    except RunError as error:
        return Ending(1, f"rank {rank}: {error}")
    except KeyboardInterrupt:
        return Ending(130, "interrupted")
    except BrokenPipeError:  # whoever read our output has gone, as in `... | head`
        return Ending(1)
    except BaseException as error:
        return _failure(rank, error)


def _failure(rank: int, error: BaseException) -> Ending:
    text = (str(error) or "no message").splitlines()[0]
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return Ending(1, f"rank {rank} ran out of memory ({text}); take smaller models or a machine with more memory")
    traceback.print_exception(error)
    return Ending(1, f"rank {rank} failed with {type(error).__name__}: {text}")


def worst(outcomes: Iterable[Ending]) -> Ending:
    """Choose which ending to tell, of endings in the order in which they came: a user's mistake, else the first failure
    that is not another's echo, else the first echo, else that all is well, as where there are none."""
    return min([*outcomes, Ending(0)], key=lambda outcome: (outcome.status == 0, outcome.status != 2, outcome.echo))


def tell(outcome: Ending) -> int:
    """Print why it ended, and return the exit status."""
    if outcome.status == 130:
        print(outcome.sentence, file=sys.stderr)
    elif outcome.sentence:
        tell_error(outcome.sentence)
    return outcome.status


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()


def leave(status: int) -> NoReturn:
    """End this process now. No destructor runs: gloo's would abort where one of its threads still waits for a peer."""
    flush()
    os._exit(status)
