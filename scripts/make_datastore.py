"""Make a datastore, from which `rest` drafts what followed the same tokens.

    python scripts/make_datastore.py --target smollm2-135m answers.jsonl.gz --out data/datastores/smollm2-135m
    python scripts/make_datastore.py --target smollm2-135m --benchmark gsm8k book.txt --out runs/datastore

Each text file is a document, and each line of a JSONL file (.gz too): output_ids as scripts/distill.py writes them,
the target's own answers, which serve best; else the text of --field. --benchmark takes the answers of a benchmark's
training split from the Hugging Face hub. Never take the questions or answers by which is measured: what is found then
is known by heart. Name the folder in data/pairs.toml: drafts.datastore = "FOLDER".
"""

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.errors import CommandParser, UserError, command_line, one_line

Tokenize = Callable[[str], list[int]]
TRAINING = "train"


def parse() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", type=Path, nargs="*", help="text, JSONL or JSONL.gz")
    parser.add_argument("--target", default="smollm2-135m", help="pair, model folder, GGUF file or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder of the datastore")
    parser.add_argument("--field", default="text", help="key of the text in lines without output_ids (default: text)")
    parser.add_argument("--benchmark", metavar="NAME", help="add the answers of its training split, from the hub")
    return parser.parse_args()


def read_file(path: Path, field: str, tokenize: Tokenize) -> Iterator[list[int]]:
    """The documents of a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            if ".jsonl" not in path.suffixes:
                yield tokenize(file.read())
                return
            for number, line in enumerate(file, 1):
                yield _document(json.loads(line), field, tokenize, f"{path}, line {number}")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read documents from {path}: {one_line(error)}") from None


def _document(row: Any, field: str, tokenize: Tokenize, place: str) -> list[int]:
    match row:
        case {"output_ids": [*tokens]} if all(type(token) is int for token in tokens):
            return tokens
        case dict() if isinstance(row.get(field), str):
            return tokenize(row[field])
    raise UserError(f"{place}: expected output_ids, numbers, or a text as {field}; name another key by --field")


def training_answers(benchmark: str) -> Iterator[str]:
    """Of a benchmark whose questions are another split's."""
    from evaluation.launch.benchmarks import sources

    hub = sources()[benchmark].hub if benchmark in sources() else None
    if hub is None or hub.split == TRAINING:
        raise UserError(f"expected a benchmark with a training split on the hub, got {benchmark}; give a file instead")
    import datasets

    for configuration in hub.configurations:
        try:
            rows = datasets.load_dataset(hub.id, configuration, split=TRAINING)
            yield from (row["answer"] for row in rows if row["answer"])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"cannot load the training split of {benchmark}: {one_line(error)}") from None


def documents(options: argparse.Namespace, tokenize: Tokenize) -> Iterator[Sequence[int]]:
    for path in options.files:
        yield from read_file(path, options.field, tokenize)
    if options.benchmark:
        yield from map(tokenize, training_answers(options.benchmark))


def main() -> int:
    options = parse()
    if not options.files and not options.benchmark:
        raise UserError("expected files or --benchmark to make the datastore of, got none")
    from methods.drafters.datastore import fingerprint, write
    from methods.training.target_model import find_target

    checkpoint = find_target(options.target)
    tokenizer = checkpoint.tokenizer

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    begin = time.perf_counter()
    vocabulary = checkpoint.config.vocab_size
    table = write(options.out, documents(options, tokenize), vocabulary, fingerprint(tokenizer.get_vocab()))
    size = sum(path.stat().st_size for path in options.out.glob("*.bin")) / 1e6
    took = time.perf_counter() - begin
    print(f"{table['tokens']} tokens of {table['documents']} documents, {size:.1f} MB in {options.out}, {took:.1f} s")
    return 0


if __name__ == "__main__":
    command_line(main)
