"""Any server that completes prompts as OpenAI's does, as a row: the same prompts and stop rules, over HTTP.

When it is built it asks the server for a few tokens and finds out what that takes and tells: prompts as token ids or
only as text, answers with their ids or only as text, which the target's tokenizer then counts. The times are the
client's: from the request to the first token, and to the last one.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from methods.base import Generation, Limits
from methods.engine.sampling import Sampling
from methods.errors import RunError, UserError
from methods.models import Models
from methods.peers.dialects import Ask, Completions, Dialect, LlamaCpp, Piece
from methods.peers.endpoint import Endpoint, Refused, Silent

GREETING = "The quick brown fox jumps over the lazy dog. The quick brown"
GREETED = 8  # tokens that are asked for
SPECIALS = 1  # a server may put one before a text
IDS, TEXT = "token ids", "text"


@dataclass
class Reply:
    """What has come of an answer, and when: its first token and its last one, in seconds of the monotonic clock."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    last: Piece = field(default_factory=Piece)
    first_time: float | None = None
    last_time: float = 0.0
    returns_ids: bool = False

    def add(self, piece: Piece, now: float) -> None:
        self.ids += piece.ids or []
        self.returns_ids |= piece.ids is not None
        self.text += piece.text
        if piece.ids or piece.text:
            self.first_time = self.first_time or now
        if piece.ids or piece.text or piece.finish:
            self.last_time = now
        told = {key: value for key, value in vars(piece).items() if value not in (None, "")}
        self.last = replace(self.last, **told)

    @property
    def withheld(self) -> bool:
        """Whether the server has made tokens whose ids it did not send, as of characters that are not whole yet."""
        return self.returns_ids and self.last.counted is not None and self.last.counted > len(self.ids)


@dataclass(frozen=True)
class Manners:
    """How a server wants to be asked."""

    dialect: Dialect
    prompts: str  # IDS or TEXT
    tokens: str  # the same of what it returns


class Server:
    """One server. `conditions`: what a run header says of it."""

    def __init__(self, endpoint: Endpoint, model: str, manners: Manners, tokenizer: Any) -> None:
        self.endpoint, self.model, self.manners, self.tokenizer = endpoint, model, manners, tokenizer

    @property
    def conditions(self) -> dict[str, str]:
        counted = "returned as ids" if self.manners.tokens == IDS else "counted by the target's tokenizer"
        return {
            "url": self.endpoint.url,
            "model": self.model,
            "asked": f"{self.manners.dialect.name}, prompts as {self.manners.prompts}",
            "tokens": counted,
        }

    def generate(self, prompt_T: Sequence[int], sampling: Sampling, limits: Limits) -> Generation:
        dialect = self.manners.dialect
        ask = self._ask(prompt_T, sampling, limits)
        body = dialect.body(ask)
        reply, begin = Reply(), time.perf_counter()
        for message in self.endpoint.stream(dialect.path, body):
            now, piece = time.perf_counter(), dialect.read(message)
            if (piece.ids or piece.text) and not limits.eos_ids.isdisjoint(reply.ids):
                break  # it does not know this end of an answer, and goes on
            reply.add(piece, now)
        if reply.withheld:
            whole = dialect.read(self.endpoint.post(dialect.path, dialect.body(ask, stream=False)))
            reply.ids = whole.ids or reply.ids
        return self._generation(reply, begin, limits)

    def _ask(self, prompt_T: Sequence[int], sampling: Sampling, limits: Limits) -> Ask:
        prompt = list(prompt_T) if self.manners.prompts == IDS else self.tokenizer.decode(prompt_T)
        return Ask(self.model, prompt, sampling, sorted(limits.eos_ids), limits.max_new_tokens)

    def _generation(self, reply: Reply, begin: float, limits: Limits) -> Generation:
        tokens, finish = limits.cut(self._tokens(reply, limits), 0)
        end = reply.last_time or time.perf_counter()
        return Generation(
            token_ids=tokens,
            finish=finish or "context",
            wall_time=end - begin,
            prefill_time=(reply.first_time or end) - begin,
            told=reply.last.drafts,
        )

    def _tokens(self, reply: Reply, limits: Limits) -> list[int]:
        """With the EOS that ended the answer, which some leave out."""
        tokens = reply.ids if reply.returns_ids else self.tokenizer.encode(reply.text, add_special_tokens=False)
        ended = reply.last.finish == "eos" and limits.eos_ids.isdisjoint(tokens)
        return [*tokens, self._eos(reply.last.stop_id, limits)] if ended and limits.eos_ids else tokens

    def _eos(self, told: int | None, limits: Limits) -> int:
        known = [token for token in (told, self.tokenizer.eos_token_id) if token in limits.eos_ids]
        return known[0] if known else min(limits.eos_ids)


def build(models: Models, name: str, timeout: float) -> Server:
    """The server of that name, greeted. Raises UserError where it is not there, or is not one of this target."""
    endpoint, checkpoint = Endpoint(models.servers[name], timeout), models.target_checkpoint
    try:
        model = find_model(endpoint, checkpoint.source)
        manners = greet(endpoint, model, checkpoint.tokenizer)
    except (RunError, Silent, Refused) as error:
        raise UserError(f"cannot use the server '{name}': {error}") from None
    return Server(endpoint, model, manners, checkpoint.tokenizer)


def find_model(endpoint: Endpoint, source: str) -> str:
    """What the server calls the model that it serves. Of several the one that is called as the target is."""
    listed = endpoint.get("/v1/models")
    found = [str(card.get("id")) for card in (listed or {}).get("data", [])]
    if len(found) <= 1:
        return found[0] if found else source
    same = [model for model in found if model == source or model.rpartition("/")[2] == source.rpartition("/")[2]]
    if len(same) != 1:
        raise UserError(
            f"expected the server at {endpoint.url} to serve {source}, got {', '.join(found)}: serve it by that name"
        )
    return same[0]


def greet(endpoint: Endpoint, model: str, tokenizer: Any) -> Manners:
    """Ask for a few tokens, in the first way that it takes. Raises UserError where it has another vocabulary."""
    prompt_T = tokenizer.encode(GREETING, add_special_tokens=False)
    refusals: list[str] = []
    for dialect, prompts in _ways(endpoint):
        prompt = prompt_T if prompts == IDS else GREETING
        try:
            reply = _first_tokens(endpoint, dialect, Ask(model, prompt, Sampling(), [], GREETED))
        except Refused as refused:
            if refused.status >= 500:
                raise
            refusals.append(str(refused))
            continue
        tokens = IDS if reply.returns_ids else TEXT
        _check_vocabulary(endpoint, Manners(dialect, prompts, tokens), reply, tokenizer, model)
        return Manners(dialect, prompts, tokens)
    raise UserError(f"the server at {endpoint.url} refuses every kind of prompt: {refusals[-1]}")


def _ways(endpoint: Endpoint) -> Iterator[tuple[Dialect, str]]:
    """In which it may be asked, the most telling first."""
    properties = endpoint.get("/props")
    if isinstance(properties, dict) and "default_generation_settings" in properties:
        yield LlamaCpp(), IDS
    for prompts in (IDS, TEXT):
        for extended in (True, False):
            yield Completions(extended), prompts


def _first_tokens(endpoint: Endpoint, dialect: Dialect, ask: Ask) -> Reply:
    reply = Reply()
    for message in endpoint.stream(dialect.path, dialect.body(ask)):
        reply.add(dialect.read(message), time.perf_counter())
    return reply


def _check_vocabulary(endpoint: Endpoint, manners: Manners, reply: Reply, tokenizer: Any, model: str) -> None:
    """What its ids say to the target's tokenizer is what it says in text; a text has as many tokens for both."""
    if manners.tokens == IDS:
        ours, theirs = tokenizer.decode(reply.ids, skip_special_tokens=True).strip(), reply.text.strip()
        same = ours.startswith(theirs) or theirs.startswith(ours)
    else:
        told = reply
        if manners.prompts == IDS:
            told = _first_tokens(endpoint, manners.dialect, Ask(model, GREETING, Sampling(), [], 1))
        expected, counted = len(tokenizer.encode(GREETING, add_special_tokens=False)), told.last.prompt_tokens
        same = counted is None or 0 <= counted - expected <= SPECIALS
    if not same:
        raise UserError(
            f"expected the server at {endpoint.url} to have the target's vocabulary, got another one (model {model}): "
            "serve the pair's target"
        )
