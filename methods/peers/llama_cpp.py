"""llama.cpp through llama-cpp-python, on the pair's own weights in the run's precision: the practitioner's engine.

Two loops. "api": over llama.cpp's C functions, with the most likely token found by numpy, so that all the time is
llama.cpp's own. "binding": the Python package's `generate`, whose samplers take a part of the time. Its prompt lookup
scores windows, and llama.cpp's sums depend on the number of rows, so its answers may part from its own.
"""

import ctypes
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from methods.base import Generation, Limits, Step
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.peers.gguf_file import gguf_of

EVERY_LAYER = 10**6  # goes to the GPU
Ids = "np.ndarray[tuple[int], np.dtype[np.intc]]"


def library() -> Any:
    """The package, whose functions are typed for nobody. Raises UserError where it is not installed."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError):  # also where its library cannot be loaded
        raise UserError("expected llama-cpp-python for this method, found none: pip install llama-cpp-python") from None
    return llama_cpp


class Context:
    """A model and its cache behind llama.cpp's C functions. `rows`: of the cache."""

    def __init__(self, path: str, rows: int, on_gpu: bool) -> None:
        self.api = api = library()
        _silence(api)
        options = api.llama_model_default_params()
        options.n_gpu_layers = EVERY_LAYER if on_gpu else 0
        self.model = api.llama_model_load_from_file(path.encode(), options)
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = rows
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self.context = api.llama_init_from_model(self.model, settings) if self.model else None
        if not self.context:
            raise UserError(f"llama.cpp cannot load {path}: free some memory, or leave out the methods named llama-cpp")
        self.memory = api.llama_get_memory(self.context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(rows, 0, 1)
        self.rows, self.length = rows, 0

    def clear(self) -> None:
        """Begin another sequence."""
        self.api.llama_memory_clear(self.memory, True)
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget what comes behind so many tokens."""
        self.api.llama_memory_seq_rm(self.memory, 0, length, -1)
        self.length = length

    def decode(self, tokens: Sequence[int], scored: int) -> None:
        """Pass the next tokens through the model, which scores the last `scored` of them."""
        batch, count = self.batch, len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = self.length + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place >= count - scored
        batch.n_tokens = count
        if status := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama.cpp could not decode {count} tokens (status {status})")
        self.length += count

    def best(self, row: int) -> int:
        """The most likely token behind a row of the last pass that was scored; -1: the last."""
        logits_V = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, row), (self.vocabulary,))
        return int(logits_V.argmax())


def _silence(api: Any) -> None:
    """Keep its reports out of the run's output. The callback has to outlive the library's use of it."""
    if not hasattr(api, "quiet_callback"):
        api.quiet_callback = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(api.quiet_callback, ctypes.c_void_p(0))


class Sampler:
    """llama.cpp's own samplers, of one answer; greedy ones need none."""

    def __init__(self, context: Context, sampling: Sampling) -> None:
        self.context, api = context, context.api
        self.chain = None
        if not sampling.greedy:
            self.chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
            for sampler in (
                api.llama_sampler_init_top_k(sampling.top_k),
                api.llama_sampler_init_top_p(sampling.top_p, 1),
                api.llama_sampler_init_temp(sampling.temperature),
                api.llama_sampler_init_dist(sampling.seed % 2**32),
            ):
                api.llama_sampler_chain_add(self.chain, sampler)

    def __call__(self, row: int) -> int:
        if self.chain is None:
            return self.context.best(row)
        return int(self.context.api.llama_sampler_sample(self.chain, self.context.context, row))

    def close(self) -> None:
        if self.chain is not None:
            self.context.api.llama_sampler_free(self.chain)


class LlamaCpp:
    """The loop over the C functions. `draft`: of the tokens so far, what may come next; None: nothing is drafted."""

    def __init__(self, context: Context, draft: Any = None) -> None:
        self.context, self.draft = context, draft

    def generate(self, prompt_T: Sequence[int], sampling: Sampling, limits: Limits) -> Generation:
        answer = Generation()
        if len(prompt_T) > self.context.rows:
            answer.finish = "context"
            return answer
        self.context.clear()
        sample = Sampler(self.context, sampling)
        begin = time.perf_counter()
        self.context.decode(prompt_T, 1)
        answer.add(Step([sample(-1)]), limits)
        answer.prefill_time = time.perf_counter() - begin
        while not answer.finish:
            if self.context.length >= self.context.rows:
                answer.finish = "context"
                break
            answer.add(self._step([*prompt_T, *answer.token_ids], sample), limits)
        answer.wall_time = time.perf_counter() - begin
        sample.close()
        return answer

    def _step(self, tokens: list[int], sample: Sampler) -> Step:
        """One pass: the last token, and what was drafted behind it as far as it is what the model says."""
        before = self.context.length
        drafts = self._drafts(tokens, self.context.rows - before - 1)
        self.context.decode([tokens[-1], *drafts], len(drafts) + 1)
        said = [sample(0)]
        for place, draft in enumerate(drafts):
            if draft != said[-1]:
                break
            said.append(sample(place + 1))
        if len(said) <= len(drafts):
            self.context.truncate(before + len(said))
        return Step(said, len(drafts), len(said) - 1, len(drafts) + 1)

    def _drafts(self, tokens: list[int], room: int) -> list[int]:
        if self.draft is None:
            return []
        return [int(token) for token in self.draft(np.asarray(tokens, np.intc))][:room]


class Binding:
    """The package's own `generate`, which tells tokens and no passes. `spare`: rows of its cache for drafts that reach
    beyond the context, where it fails."""

    def __init__(self, path: str, rows: int, on_gpu: bool, draft: Any = None, spare: int = 0) -> None:
        threads = torch.get_num_threads()
        self.rows = rows
        self.model = library().Llama(
            path,
            n_ctx=rows + spare,
            n_batch=rows + spare,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=EVERY_LAYER if on_gpu else 0,
            logits_all=draft is not None,
            draft_model=draft,
            verbose=False,
        )

    def generate(self, prompt_T: Sequence[int], sampling: Sampling, limits: Limits) -> Generation:
        answer = Generation()
        room = self.rows - len(prompt_T) + 1
        if room < 1:
            answer.finish = "context"
            return answer
        self.model.reset()
        self.model.set_seed(sampling.seed % 2**32)
        tokens: list[int] = []
        begin = time.perf_counter()
        for token in self._tokens(prompt_T, sampling):
            answer.prefill_time = answer.prefill_time or time.perf_counter() - begin
            kept, answer.finish = limits.cut([token], len(tokens))
            tokens += kept
            if answer.finish or len(tokens) == room:
                break
        answer.wall_time = time.perf_counter() - begin
        answer.token_ids, answer.finish = tokens, answer.finish or "context"
        return answer

    def _tokens(self, prompt_T: Sequence[int], sampling: Sampling) -> Iterator[int]:
        chosen = {"temp": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": 0.0}
        found: Iterator[int] = self.model.generate(list(prompt_T), **chosen, repeat_penalty=1.0)
        return found


def _build(models: Models, loop: str, draft: Any = None, window: int = 0) -> LlamaCpp | Binding:
    api, on_gpu = library(), models.devices[0].type == "cuda"
    if on_gpu and not api.llama_supports_gpu_offload():
        raise UserError("this llama-cpp-python computes on CPUs only: build it for CUDA, or add --device cpu")
    checkpoint = models.target_checkpoint
    path, rows = str(gguf_of(checkpoint, models.dtype)), models.rows_of(checkpoint.config)
    if loop == "binding":
        return Binding(path, rows, on_gpu, draft, window)
    # What the rows share, they load once; a context has but one sequence, and the methods take turns.
    return LlamaCpp(models.once("llama.cpp", lambda: Context(path, rows, on_gpu)), draft)


def build(models: Models, loop: str) -> LlamaCpp | Binding:
    return _build(models, loop)


def build_lookup(models: Models, loop: str, gamma: int, max_ngram: int) -> LlamaCpp | Binding:
    """With the package's own prompt lookup (`LlamaPromptLookupDecoding`)."""
    library()
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = LlamaPromptLookupDecoding(max_ngram_size=max_ngram, num_pred_tokens=gamma)
    return _build(models, loop, draft, min(gamma, models.rows_of(models.target_checkpoint.config)) + 1)
