"""What a browser may ask for, checked: its size, from where it comes, and every value."""

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 65536  # bytes of a request's body
LONGEST_PROMPT = 20000  # characters
MOST_LANES = 4
MOST_TOKENS = 1024
ANYWHERE = ("0.0.0.0", "::")
NAMES_OF_THIS = ("localhost", "127.0.0.1", "::1")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Race(Asked):
    """A prompt, or a question of a benchmark, for some methods, or variants METHOD@OPTION=VALUE."""

    methods: Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=MOST_LANES)]
    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)] = ""
    benchmark: Annotated[str, Field(max_length=50)] | None = None
    question: int | Annotated[str, Field(max_length=200)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 128
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0


class Guard:
    """It lets a request through to the app that is for this server, from its own page, and small."""

    def __init__(self, app: App, address: str, port: int) -> None:
        self.app, self.address, self.port = app, address, port

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        await self.app(scope, _measured(receive), _with_headers(send))

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._ours(host):
            return 421, f"expected a request for this server, got one for the host {host[:80]!r}; open its own address"
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, f"expected a request of this server's own page, got one of {origin[:80]!r}; open its own page"
        if method == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "expected a body of the type application/json; send one"
        if int(headers.get("content-length") or 0) > LARGEST:
            return 413, f"expected a body of at most {LARGEST} bytes; send a shorter one"
        return None

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this server: a page elsewhere could have its own name lead here."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port:
            return False
        if self.address in ANYWHERE:
            return name in NAMES_OF_THIS or name == socket.gethostname().lower() or _is_number(name)
        return name == self.address or (self.address in NAMES_OF_THIS and name in NAMES_OF_THIS)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _measured(receive: Receive) -> Receive:
    """The same requests, of which one that is too long after all breaks off."""
    size = 0

    async def received() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= LARGEST else {"type": "http.disconnect"}

    return received


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
