"""Servers for tests: real ones, over HTTP, on a free port of this machine."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import uvicorn
from fastapi import FastAPI

from methods.engine.config import ModelConfig
from methods.engine.loader import find_checkpoint
from methods.peers.gguf_file import write
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
    with serving(
        application(open_service(str(model), str(draft) if draft else None, method, "float32", speaks))
    ) as url:
        yield url


def refused_port() -> str:
    """A URL at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def write_tiny_gguf(folder: Path, model: Path) -> Path:
    """A tiny model for llama.cpp, vocabulary included."""
    path = folder / "tiny.gguf"
    write(path, find_checkpoint(str(model)), "float32", _describe)
    return path


def _describe(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """One token for each printable character, as `save_tokenizer` has it; blanks are written as byte-level BPE does."""
    letters = [chr(32 + number) for number in range(config.vocab_size - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<eos>", *(letter.replace(" ", "\u0120") for letter in letters)])
    writer.add_token_types([gguf.TokenType.CONTROL, *([gguf.TokenType.NORMAL] * len(letters))])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)


LLAMA_CPP = """
import sys, time, xllamacpp
path, port, drafts = sys.argv[1:]
options = xllamacpp.CommonParams()
options.model.path, options.hostnames, options.port = path, ["127.0.0.1"], int(port)
options.n_ctx, options.n_parallel, options.warmup = 512, 1, False
options.cpuparams.n_threads = 1
if drafts:
    options.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    options.speculative.ngram_simple.size_n, options.speculative.ngram_simple.size_m = 2, 4
server = xllamacpp.Server(options)
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def llama_server(path: Path, drafts: bool = False) -> Iterator[str]:
    """llama.cpp's own server, where its package xllamacpp is installed."""
    url = refused_port()
    command = [sys.executable, "-c", LLAMA_CPP, str(path), url.rpartition(":")[2], "yes" if drafts else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            while "ready" not in (line := process.stdout.readline()):
                assert line, "llama.cpp's server has ended"
            yield url
        finally:
            process.kill()
