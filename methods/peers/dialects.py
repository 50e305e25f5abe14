"""What servers understand, and what they say: a request for a completion, and each message of the answer to it.

Two ways of asking. `Completions` is OpenAI's, with what vLLM and SGLang take and tell beyond it: token ids, and how
many drafts were accepted (vLLM's `metrics.speculative_decoding`, started with --per-request-spec-decode-metrics;
SGLang's `sglext.spec_tokens_details`). `LlamaCpp` is llama.cpp's own, which tells both without being started for it.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from methods.engine.sampling import Sampling

SEEDS = 2**31  # of any size they take none larger
FINISHES = {"stop": "eos", "eos": "eos", "word": "eos", "length": "length", "limit": "length"}
COUNTS = (("num_draft_tokens", "num_accepted_draft_tokens"), ("spec_num_proposed_drafts", "spec_num_correct_drafts"))


@dataclass(frozen=True)
class Ask:
    """A request: an answer to a prompt, of token ids or as text."""

    model: str
    prompt: Sequence[int] | str
    sampling: Sampling
    eos_ids: Sequence[int]
    max_new_tokens: int


@dataclass(frozen=True)
class Piece:
    """What a message says. `ids`, `text`: the tokens that are new; `finish`: "eos" or "length" where the answer ends;
    `stop_id`: of the token that ended it; `counted`: tokens of the answer so far; `drafts`: tokens that were drafted
    for it, and that were accepted; `prompt_tokens`: those of the prompt."""

    ids: list[int] | None = None
    text: str = ""
    finish: str = ""
    stop_id: int | None = None
    counted: int | None = None
    drafts: tuple[int, int] | None = None
    prompt_tokens: int | None = None


class Dialect(Protocol):
    """A way of asking. `name`: for people."""

    name: ClassVar[str]
    path: ClassVar[str]

    def body(self, ask: Ask, stream: bool = True) -> dict[str, Any]: ...

    def read(self, message: Mapping[str, Any]) -> Piece: ...


@dataclass(frozen=True)
class Completions:
    """OpenAI's completions. `extended`: with what it does not know itself."""

    extended: bool
    name: ClassVar[str] = "OpenAI's completions"
    path: ClassVar[str] = "/v1/completions"

    def body(self, ask: Ask, stream: bool = True) -> dict[str, Any]:
        sampling = ask.sampling
        body = {
            "model": ask.model,
            "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
            "max_tokens": ask.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % SEEDS,
            "stream": stream,
        }
        return body | (self._extras(ask) if self.extended else {})

    def _extras(self, ask: Ask) -> dict[str, Any]:
        """With a salt of its own no prompt begins as one that the server has in its cache: every method reads it
        whole."""
        return {
            "top_k": ask.sampling.top_k or -1,
            "stop_token_ids": list(ask.eos_ids),
            "stream_options": {"include_usage": True},
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_spec_tokens_details": True,
            "cache_salt": uuid.uuid4().hex,
        }

    def read(self, message: Mapping[str, Any]) -> Piece:
        choice = next(iter(message.get("choices") or [{}]))
        stop = choice.get("stop_reason", choice.get("matched_stop"))
        usage = message.get("usage") or {}
        return Piece(
            ids=choice.get("token_ids"),
            text=choice.get("text") or "",
            finish=FINISHES.get(choice.get("finish_reason") or "", ""),
            stop_id=stop if isinstance(stop, int) else None,
            counted=usage.get("completion_tokens"),
            drafts=_drafts(message),
            prompt_tokens=usage.get("prompt_tokens"),
        )


def _drafts(message: Mapping[str, Any]) -> tuple[int, int] | None:
    places = (
        (message.get("metrics") or {}).get("speculative_decoding"),
        (message.get("sglext") or {}).get("spec_tokens_details"),
    )
    for told, (drafted, accepted) in zip(places, COUNTS, strict=True):
        if told and drafted in told:
            return told[drafted], told[accepted]
    return None


class LlamaCpp:
    """llama.cpp's own completions, which return token ids."""

    name: ClassVar[str] = "llama.cpp's completion"
    path: ClassVar[str] = "/completion"

    def body(self, ask: Ask, stream: bool = True) -> dict[str, Any]:
        """No other sampler than what was asked for, and no prompt from its cache: every method reads it whole."""
        sampling = ask.sampling
        return {
            "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
            "n_predict": ask.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "samplers": ["top_k", "top_p", "temperature"],
            "seed": sampling.seed % SEEDS,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": stream,
        }

    def read(self, message: Mapping[str, Any]) -> Piece:
        """Of drafts it says nothing where there were none."""
        timings = message.get("timings") or {}
        ended = message.get("stop")
        return Piece(
            ids=message.get("tokens"),
            text=message.get("content") or "",
            finish=FINISHES.get(message.get("stop_type") or "", "length") if ended else "",
            counted=message.get("tokens_predicted"),
            drafts=(timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)) if ended and timings else None,
            prompt_tokens=message.get("tokens_evaluated"),
        )
