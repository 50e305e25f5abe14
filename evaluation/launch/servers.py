"""Servers on a command line: which there are, which row asks which, and when they have their turn."""

import argparse
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from methods.errors import UserError
from methods.options import NAME, VARIANT
from methods.table import PLAIN, SERVER

if TYPE_CHECKING:
    from evaluation.launch.config import RunConfig


def add_servers(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that asks servers."""
    parser.add_argument(
        "--server",
        dest="servers",
        metavar="[NAME=]URL[,...]",
        type=servers,
        default={},
        help="servers that the rows server and server@name=NAME ask; of several URLs of a name each replica has one",
    )
    parser.add_argument(
        "--interleave", action="store_true", help="servers take turns with the other methods, instead of after them"
    )


def servers(text: str) -> dict[str, list[str]]:
    """Read URLs with commas between, each of the server that is named before it; without a name, the plain one."""
    found: dict[str, list[str]] = {}
    for part in text.split(","):
        named = re.fullmatch(rf"(?:({NAME.pattern})=)?(.+)", part.strip())
        if named is None or not _is_url(named[2]):
            raise argparse.ArgumentTypeError(f"expected http://HOST:PORT, or NAME=http://HOST:PORT, got {part[:40]!r}")
        found.setdefault(named[1] or PLAIN, []).append(named[2])
    return found


def _is_url(text: str) -> bool:
    """Whether it is one of a server. Keys do not belong into it, for run headers hold it."""
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    if url.username or url.password:
        raise argparse.ArgumentTypeError("expected a URL without a password: set OPENAI_API_KEY to the server's key")
    return url.scheme in ("http", "https") and bool(url.hostname)


def turns(config: "RunConfig") -> list[list[str]]:
    """Return which methods take turns, question by question: ours, then the servers, which may be on the same
    device."""
    served = [spec.name for spec in config.specs if spec.served]
    others = [name for name in config.methods if name not in served]
    return [[*others, *served]] if config.interleave or not served else [others, served]


def check_servers(config: "RunConfig") -> None:
    """Refuse a row whose server is not named, a server that no row asks, and more URLs than replicas."""
    asked = {str(config.options_of(spec)["name"]): spec.name for spec in config.specs if spec.served}
    for name in [name for name in asked if name not in config.servers]:
        prefix = "" if name == PLAIN else f"{name}="
        raise UserError(f"'{asked[name]}' asks a server that is not named: add --server {prefix}http://HOST:PORT")
    for name, urls in config.servers.items():
        if name not in asked:
            row = SERVER if name == PLAIN else f"{SERVER}{VARIANT}name={name}"
            raise UserError(
                f"no method asks the server '{name}' of --server: add {row} to the methods, or leave it out"
            )
        if len(urls) > config.replicas:
            raise UserError(
                f"expected at most one URL of the server '{name}' for each of {config.replicas} replicas, got "
                f"{len(urls)}: add --replicas {len(urls)}"
            )
