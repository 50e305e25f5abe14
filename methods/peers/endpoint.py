"""A server as who asks it sees it: what it says, message by message, or one sentence about what is wrong with it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from methods.errors import RunError, UserError, one_line

KEY = "OPENAI_API_KEY"
CONNECT = 5.0  # seconds
EVENT = "data:"  # begins a line of a stream of events
DONE = "[DONE]"


class Refused(Exception):
    """The server does not do what it was asked for; the text is its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{reason or 'no reason given'} (status {status})")
        self.status = status


class Silent(Exception):
    """The server has said nothing for too long."""


class Endpoint:
    """A server at a URL, asked over one connection that stays open. `patience`: seconds that it may be silent for."""

    def __init__(self, url: str, patience: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.patience = patience
        headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
        timeout = httpx.Timeout(patience, connect=min(CONNECT, patience))
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def get(self, path: str) -> Any:
        """The document at a path; None where there is none. Raises as `stream` does."""
        with self._told():
            answer = self._client.get(path)
        if answer.status_code in (404, 405, 501):
            return None
        self._check(answer, path)
        return self._parse(answer.text)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server answers at once. Raises as `stream` does."""
        with self._told():
            answer = self._client.post(path, json=body)
        self._check(answer, path)
        return self._parse(answer.text)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every message of its answer as soon as it comes; one where it does not stream.

        Raises Refused where it does not do this, Silent where it takes too long, RunError where it is not there or no
        such server, and UserError where it wants a key or lacks the path."""
        with self._told(), self._client.stream("POST", path, json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                self._check(answer, path)
            if "event-stream" not in answer.headers.get("content-type", ""):
                answer.read()
                yield self._parse(answer.text)
                return
            for line in answer.iter_lines():
                data = line.removeprefix(EVENT).strip()
                if line.startswith(EVENT) and data != DONE:
                    yield self._message(data)

    def _message(self, data: str) -> dict[str, Any]:
        message = self._parse(data)
        if not isinstance(message, dict):
            raise RunError(f"expected messages of a completion from {self.url}, got {data[:40]!r}")
        if message.get("error"):
            raise Refused(httpx.codes.OK, _reason(data))
        return message

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise RunError(
                f"expected JSON from {self.url}, got {text[:40]!r}: is it an OpenAI-compatible server?"
            ) from None

    def _check(self, answer: httpx.Response, path: str) -> None:
        """Raises what a status other than 200 means."""
        status = answer.status_code
        if status in (401, 403):
            raise UserError(f"the server at {self.url} wants a key (status {status}): set {KEY} to one that it knows")
        if status == 404:
            raise UserError(
                f"expected an OpenAI-compatible server at {self.url}, but it has no {path}: correct --server"
            )
        if status != httpx.codes.OK:
            raise Refused(status, _reason(answer.text))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What can go wrong between two machines, as sentences."""
        try:
            yield
        except httpx.ConnectTimeout:
            raise RunError(f"no server answers at {self.url}: start it, or correct --server") from None
        except httpx.TimeoutException:
            seconds = f"{self.patience:g} seconds"
            raise Silent(f"the server at {self.url} said nothing for {seconds}; server@timeout= allows more") from None
        except httpx.ConnectError as error:
            raise RunError(
                f"no server answers at {self.url} ({one_line(error)}): start it, or correct --server"
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise RunError(f"the server at {self.url} broke off ({one_line(error)}): see what it says") from None


def _reason(text: str) -> str:
    """What a refusal says, wherever it says it."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return one_line(ValueError(found if isinstance(found, str) else json.dumps(found)))
