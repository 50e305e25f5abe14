"""A target's own answers to prompts, to train its drafts on.

    python scripts/distill.py --target smollm2-135m --prompts prompts.jsonl --out answers.jsonl

Prompts: JSONL with {"prompt": ...} or Spec-Bench's {"turns": [...]} (the first turn), or ShareGPT's JSON list of
{"conversations": [...]} (the first human message); {"source": ...} is passed on. Every prompt is answered once at each
temperature. Output: a JSON line per answer with source, temperature, prompt, prompt_ids (in the pair's template, as a
run writes its prompts) and output_ids. Started again, it goes on where it stopped. With --keep-answers the answers of
ShareGPT's conversations are written instead of the target's. Never distil the test questions of a benchmark.
"""

import argparse
import itertools
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.errors import CommandParser, UserError, command_line, writing

if TYPE_CHECKING:
    from evaluation.launch.prompts import Prompter


@dataclass(frozen=True)
class Task:
    """One answer to make."""

    source: str
    prompt: str
    temperature: float | None  # None: an answer that is kept as it is


Conversation = list[str]  # what a human and a model say, in turn
SPEAKERS = ("human", "user"), ("gpt", "assistant")


def read_prompts(path: Path) -> list[tuple[str, Conversation]]:
    """(source, conversation) of every entry of a file that has a human message."""
    found = [(str(entry.get("source", path.stem)), _said(path, entry)) for entry in _entries(path)]
    return [(source, said) for source, said in found if said]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            yield from json.loads(text)
        else:
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise UserError(f"expected prompts as JSONL or as a JSON list in {path}, found an error: {error}") from None


def _said(path: Path, entry: dict[str, Any]) -> Conversation:
    match entry:
        case {"prompt": str(text)} | {"turns": [str(text), *_]}:
            return [text]
        case {"conversations": list(parts)}:
            return _in_turn(parts)
    raise UserError(f"{path}: expected prompt, turns or conversations in every entry, found {sorted(entry)}")


def _in_turn(parts: list[dict[str, str]]) -> Conversation:
    """From the human's first message to where the two no longer take turns: templates are written for no more."""
    said: Conversation = []
    for part in itertools.dropwhile(lambda part: part["from"] not in SPEAKERS[0], parts):
        if part["from"] not in SPEAKERS[len(said) % 2]:
            break
        said.append(part["value"])
    return said


def finished(path: Path) -> set[tuple[str, float | None]]:
    """(prompt, temperature) of the answers that `path` holds; a last line torn by a crash is cut off."""
    if not path.is_file():
        return set()
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = [json.loads(line) for line in whole.splitlines()]
    return {(row["prompt"], row["temperature"]) for row in rows}


def check_form(prompter: "Prompter", path: Path) -> None:
    """Raises UserError if the answers that `path` holds are to prompts of another form."""
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    if first["prompt_ids"] != prompter.encode([first["prompt"]], []):
        raise UserError(f"{path} holds answers by another tokenizer or to another --template; choose another --out")


def write(file: TextIO, task: Task, prompt_ids: list[int], output_ids: list[int]) -> None:
    file.write(json.dumps({**vars(task), "prompt_ids": prompt_ids, "output_ids": output_ids}) + "\n")
    file.flush()


def keep(prompter: "Prompter", tasks: Sequence[tuple[Task, Conversation]], out: Path) -> None:
    """Write conversations as they are: everything from the first answer on is the output."""
    left_out = 0
    with out.open("a", encoding="utf-8") as file:
        for task, said in tasks:
            answers = said[1::2]
            prompt_ids = prompter.encode(said[:1], [])
            whole = prompter.encode(said[: 2 * len(answers) : 2], answers) if answers else []
            # A tokenizer may join the prompt's end and the answer's start: no model is ever asked to go on from there.
            if whole[: len(prompt_ids)] == prompt_ids:
                write(file, task, prompt_ids, whole[len(prompt_ids) :])
            else:
                left_out += 1
    if left_out:
        print(f"{left_out} left out: without an answer, or joined to it by the tokenizer", file=sys.stderr)


class Generator:
    """The target: answers to a batch of prompts at one temperature."""

    def __init__(self, target: str, ends: list[int], max_new_tokens: int, seed: int) -> None:
        import torch

        from methods.training.target_model import load_target

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_target(target).to(self.device).eval()
        self.ends, self.max_new_tokens, self.seed = ends, max_new_tokens, seed

    def answers(self, rows: Sequence[list[int]], temperature: float) -> list[list[int]]:
        """Answer tokens of each row, up to and including the end of sequence."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([[self.ends[0]] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        torch.manual_seed(self.seed ^ zlib.crc32(ids.cpu().numpy().tobytes()))
        out = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            **sampling,
        )
        return [self._up_to_end(row) for row in out[:, width:].tolist()]

    def _up_to_end(self, tokens: list[int]) -> list[int]:
        stops = [i for i, token in enumerate(tokens) if token in self.ends]
        return tokens[: stops[0] + 1] if stops else tokens


def distil(generator: Generator, rows: Sequence[tuple[Task, list[int]]], batch: int, out: Path) -> None:
    """Append the answers to `out`, batch by batch: one temperature, prompts of like length together."""
    from rich.progress import Progress

    with out.open("a", encoding="utf-8") as file, Progress() as progress:
        bar = progress.add_task("answers", total=len(rows))
        for temperature, same in itertools.groupby(sorted(rows, key=_order), lambda row: row[0].temperature):
            for group in batches(list(same), batch):
                outputs = generator.answers([ids for _, ids in group], temperature or 0.0)
                for (task, ids), output in zip(group, outputs, strict=True):
                    write(file, task, ids, output)
                progress.advance(bar, len(group))


def _order(row: tuple[Task, list[int]]) -> tuple[float, int]:
    return row[0].temperature or 0.0, len(row[1])


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def parse() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m", help="pair, model folder, GGUF file or hub id")
    parser.add_argument("--template", help="prompt form: chat, raw or fschat:NAME (default: the pair's, else chat)")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSONL of answers, gone on with where it exists")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0], help="default: 0, that is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--max-prompt", type=int, default=1024, help="longer prompts, in tokens, are left out")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--keep-answers", action="store_true", help="ShareGPT's own answers instead of the target's")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = parse()
    entries = [entry for path in options.prompts for entry in read_prompts(path)]
    done = finished(options.out)
    temperatures = [None] if options.keep_answers else options.temperatures
    tasks = {Task(source, said[0], t): said for source, said in entries for t in temperatures}
    todo = [(task, said) for task, said in tasks.items() if (task.prompt, task.temperature) not in done]
    print(f"{len(todo)} answers to make, {len(done)} there already", file=sys.stderr)
    if todo:
        run(options, todo)
    return 0


def run(options: argparse.Namespace, todo: Sequence[tuple[Task, Conversation]]) -> None:
    from evaluation.launch.prompts import Prompter, eos_ids
    from methods.pairs import find_pair
    from methods.training.target_model import find_target

    checkpoint = find_target(options.target)
    template = options.template or find_pair(options.target).template
    prompter = Prompter(checkpoint.tokenizer, template, benchmark="")
    with writing(options.out, "--out"):
        options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.is_file() and options.out.stat().st_size:
        check_form(prompter, options.out)
    if options.keep_answers:
        return keep(prompter, todo, options.out)
    rows = [(task, prompter.encode(said[:1], [])) for task, said in todo]
    rows = [row for row in rows if len(row[1]) <= options.max_prompt]
    ends = eos_ids(checkpoint.tokenizer, checkpoint.eos_token_ids, template)
    distil(Generator(options.target, ends, options.max_new_tokens, options.seed), rows, options.batch, options.out)


if __name__ == "__main__":
    command_line(main)
