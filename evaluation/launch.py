"""Start the processes of a launch on this machine, as many as the methods need, and end them together.

A run that an outer launcher has started (`accelerate launch`, `torchrun`: several nodes too) is left as it is.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable

from methods.errors import command_line

GRACE = 1.5  # seconds that the others have to end when one has failed, before they are made to


def launched() -> bool:
    """Whether this process is one of a launch already."""
    return "RANK" in os.environ


def launch(main: Callable[[], int], count: int) -> int:
    """Run `main`, a function of a module, in `count` processes. The exit status: that of the first to fail, else 0."""
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    context = start_processes(_process, (main, count, _free_port()), count, join=False)
    try:
        while not context.join(grace_period=GRACE):
            pass
    except ProcessExitedException as error:
        if error.signal_name:
            print(f"error: rank {error.error_index} was ended by {error.signal_name}", file=sys.stderr)
        return max(error.exit_code, 1)
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()
    return 0


def _process(rank: int, main: Callable[[], int], count: int, port: int) -> None:
    from torch.multiprocessing.spawn import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    # torch would have a rank interrupted whose starter has died; in a shell's background that is ignored.
    _prctl_pr_set_pdeathsig(signal.SIGTERM)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in (here | {"RANK": rank, "LOCAL_RANK": rank}).items()}
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate warns; `take_share` sets the number of threads
    command_line(main)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
