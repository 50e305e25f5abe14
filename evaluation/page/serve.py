"""The page's process: the socket, and the server behind it."""

import signal
import socket
from pathlib import Path

import uvicorn
from rich.console import Console

from evaluation.page.races import Races
from evaluation.page.server import create_app
from methods.errors import UserError

GRACE = 1  # seconds that open streams have at the end


def serve(conditions: list[str], folder: Path, address: str, port: int) -> int:
    """Answer until Ctrl-C. Raises UserError where the address cannot be had."""
    listening = _listen(address, port)
    port = listening.getsockname()[1]
    races = Races(conditions)
    app = create_app(races, folder, address, port)
    host = f"[{address}]" if ":" in address else address
    Console(stderr=True, highlight=False).print(f"http://{host}:{port}  (Ctrl-C ends it)", soft_wrap=True)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=GRACE, lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return 0


def _listen(address: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen()  # who comes now waits until the server is ready
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot answer at {address}, port {port}: {reason}; choose --address or --port") from None
    return listening
