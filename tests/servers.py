"""Servers for tests: real ones, over HTTP, on a free port of this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from scripts.serve_tiny import application, open_service


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """An application behind a URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def tiny_server(
    model: Path, method: str = "autoregressive", speaks: Any = "vllm", draft: Path | None = None
) -> Iterator[str]:
    """The project's own server of a model."""
    with serving(application(open_service(str(model), draft and str(draft), method, "float32", speaks))) as url:
        yield url


def refused_port() -> str:
    """A URL at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"
