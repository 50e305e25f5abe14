"""A small OpenAI-compatible server of our own engine: python scripts/serve_tiny.py MODEL [--method pld] [--port 8000]

It answers POST /v1/completions as the servers do that the row `server` is for, one request after the other, so that
there is something to ask where none of them is installed. `--speaks` says as which: vLLM and SGLang take prompts as
token ids, return ids, and tell how many drafts were accepted, each in its own way; a plain one takes and returns text
only, and refuses what OpenAI does not know.
"""

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from evaluation.launch.arguments import count
from evaluation.page.pieces import UNFINISHED
from methods import get_method
from methods.base import Generation, Limits, Method, Reference, Step, generate
from methods.build import build_method
from methods.engine.sampling import Sampling
from methods.errors import CommandParser, UserError, command_line
from methods.models import Models

VLLM, SGLANG, PLAIN = "vllm", "sglang", "plain"
Update = tuple[list[int], str] | Generation | Exception


class Common(BaseModel):
    """What all take."""

    model: str
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stream: bool = False


class Plain(Common):
    """What OpenAI's completions take, as far as it counts here."""

    model_config = ConfigDict(extra="forbid")
    prompt: str


class Extended(Common):
    """The same with what vLLM and SGLang take."""

    model_config = ConfigDict(extra="ignore")
    prompt: str | list[int]
    top_k: int = -1
    stop_token_ids: list[int] = []
    return_token_ids: bool = False
    return_spec_tokens_details: bool = False


class Watched(Method):
    """A method that tells what each pass has decided as soon as it has."""

    def __init__(self, method: Method, limits: Limits, told: "SimpleQueue[Update]") -> None:
        self.method, self.target, self.limits, self.told = method, method.target, limits, told
        self.ledger = Generation()

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        first = self.method.start(prompt_T, sampling)
        self._tell(Step([first]))
        return first

    def step(self) -> Step:
        step = self.method.step()
        self._tell(step)
        return step

    def _tell(self, step: Step) -> None:
        before = len(self.ledger.token_ids)
        self.ledger.add(step, self.limits)
        self.told.put((self.ledger.token_ids[before:], self.ledger.finish))


@dataclass
class Service:
    """One model and one method. `name`: what it calls the model; `speaks`: VLLM, SGLANG or PLAIN."""

    method: Method
    tokenizer: Any
    eos_ids: Sequence[int]
    name: str
    speaks: Literal["vllm", "sglang", "plain"]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Plain | Extended) -> Iterator[dict[str, Any]]:
        """The messages of the answer, each as soon as the pass is done that decided its tokens."""
        limits = Limits(frozenset({*self.eos_ids, *getattr(request, "stop_token_ids", ())}), request.max_tokens)
        sampling = Sampling(request.temperature, max(getattr(request, "top_k", 0), 0), request.top_p, request.seed)
        prompt = request.prompt
        prompt_T = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        told: SimpleQueue[Update] = SimpleQueue()
        watched = Watched(self.method, limits, told)
        with self.lock:
            thread = threading.Thread(target=_run, args=(watched, prompt_T, sampling, limits, told))
            thread.start()
            try:
                yield from self._messages(request, told, len(prompt_T))
            finally:
                thread.join()

    def _messages(
        self, request: Plain | Extended, told: "SimpleQueue[Update]", prompt_tokens: int
    ) -> Iterator[dict[str, Any]]:
        tokens: list[int] = []
        text = ""
        while not isinstance(update := told.get(), Generation):
            if isinstance(update, Exception):
                raise update
            new, finish = update
            tokens += new
            whole = self.tokenizer.decode(tokens, skip_special_tokens=True)
            reason = {"eos": "stop", "length": "length"}.get(finish)
            if reason is None and whole.endswith(UNFINISHED):
                whole = text  # the rest of the character's bytes are still to come
            choice: dict[str, Any] = {"index": 0, "text": whole[len(text) :], "finish_reason": reason}
            if getattr(request, "return_token_ids", False):
                choice["token_ids"] = new
            text = whole
            yield self._message() | {"choices": [choice]}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(tokens)}
        yield self._message() | {"choices": [], "usage": usage} | self._counts(update)

    def _message(self) -> dict[str, Any]:
        return {"id": "cmpl-0", "object": "text_completion", "model": self.name}

    def _counts(self, answer: Generation) -> dict[str, Any]:
        drafted, accepted = sum(answer.drafted), sum(answer.accepted)
        if not drafted or self.speaks == PLAIN:
            return {}
        if self.speaks == VLLM:
            counts = {"num_draft_tokens": drafted, "num_accepted_draft_tokens": accepted}
            return {"metrics": {"speculative_decoding": counts}}
        return {
            "sglext": {
                "spec_tokens_details": {"spec_num_proposed_drafts": drafted, "spec_num_correct_drafts": accepted}
            }
        }


def _run(
    watched: Watched, prompt_T: Sequence[int], sampling: Sampling, limits: Limits, told: "SimpleQueue[Update]"
) -> None:
    try:
        told.put(generate(watched, prompt_T, sampling, limits))
    except Exception as error:  # told to whoever waits for the answer
        told.put(error)


def application(service: Service) -> FastAPI:
    """The HTTP server of a service."""
    app = FastAPI()
    kind = Plain if service.speaks == PLAIN else Extended

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": service.name, "object": "model", "owned_by": service.speaks}]}

    @app.post("/v1/completions", response_model=None)
    def completions(request: kind) -> StreamingResponse:  # type: ignore[valid-type]
        if request.model != service.name:  # type: ignore[attr-defined]
            raise HTTPException(404, f"there is no model {request.model}")  # type: ignore[attr-defined]
        return StreamingResponse(_events(service.answer(request)), media_type="text/event-stream")

    return app


def _events(messages: Iterator[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield f"data: {json.dumps(message)}\n\n"
    yield "data: [DONE]\n\n"


def open_service(
    model: str, draft: str | None, method: str, dtype: str, speaks: Literal["vllm", "sglang", "plain"]
) -> Service:
    """Load a model and build a method over it. Raises UserError for one that needs two ranks."""
    spec = get_method(method)
    if spec.ranks > 1:
        raise UserError(f"expected a method of one rank, got {method}, which needs {spec.ranks}")
    models = Models(model, draft, dtype, [torch.device("cpu")])
    built = build_method(spec, models, {})
    if isinstance(built, Reference):
        raise UserError(f"expected a method of our own engine, got {method}")
    checkpoint = models.target_checkpoint
    eos_ids = {*checkpoint.eos_token_ids, checkpoint.tokenizer.eos_token_id} - {None}
    return Service(built, checkpoint.tokenizer, sorted(eos_ids), Path(model).name, speaks)


def main() -> int:
    parser = CommandParser(description="A small OpenAI-compatible server of our own engine, on this machine only.")
    parser.add_argument("model", metavar="MODEL", help="the target: a folder, a .gguf file or a hub id")
    parser.add_argument("--draft", metavar="MODEL", help="draft model, where the method needs one")
    parser.add_argument("--method", default="autoregressive", help="how it decodes (default %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="default %(default)s")
    parser.add_argument("--speaks", choices=(VLLM, SGLANG, PLAIN), default=VLLM, help="as which server it answers")
    parser.add_argument("--port", type=count, default=8000, help="default %(default)s")
    args = parser.parse_args()
    service = open_service(args.model, args.draft, args.method, args.dtype, args.speaks)
    uvicorn.run(application(service), host="127.0.0.1", port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    command_line(main)
