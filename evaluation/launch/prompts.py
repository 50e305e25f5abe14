"""This module writes questions as token ids, and answers as text, the same way for every method.

A template says how a conversation is written down: "chat" (the tokenizer's own chat template), "fschat:NAME" (one of
FastChat's, for models that were trained on those), or "raw" (nothing around the text, for base models).
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from methods.errors import UserError, nearest, one_line

COMPLETE_FUNCTION = "Complete the following Python function. Answer with the whole function in one code block."


class Prompter:
    """A prompter writes the prompts of a benchmark for a tokenizer (a PreTrainedTokenizer). Raises UserError for an
    unknown template."""

    def __init__(self, tokenizer: Any, template: str, benchmark: str) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.completes = benchmark == "humaneval" and template != "raw"
        if template == "chat" and not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: choose the template raw, or fschat:NAME")
        if template == "chat":
            self._chat(["Hello"], [])  # a template that cannot write this is told before the run
        elif template.startswith("fschat:"):
            _fschat(template)
        elif template != "raw":
            raise UserError(f"unknown template '{template}': expected chat, raw or fschat:NAME")

    @property
    def description(self) -> str:
        """Say what a reader must know to build the same prompts, for the run header."""
        if not self.completes:
            return f"{self.template}: the question alone"
        return f"{self.template}: '{COMPLETE_FUNCTION}' and the HumanEval prompt in a code block"

    def encode(self, turns: list[str], answers: list[str]) -> list[int]:
        """Write the conversation up to where the model answers the last of `turns`, with `answers` to those before.

        Where the last turn has an answer too, that is the whole conversation."""
        assert len(turns) - len(answers) in (0, 1)
        asked = [self._request(turn) for turn in turns]
        if self.template == "chat":
            text = self._chat(asked, answers)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them itself
        text = _raw(asked, answers) if self.template == "raw" else _converse(self.template, asked, answers)
        return self._one_bos(self.tokenizer(text)["input_ids"])

    def _request(self, turn: str) -> str:
        if not self.completes:
            return turn
        code = turn.strip("\n")
        return f"{COMPLETE_FUNCTION}\n\n```python\n{code}\n```"

    def _chat(self, turns: list[str], answers: list[str]) -> str:
        messages = [
            {"role": role, "content": content}
            for turn, answer in zip_longest(turns, answers)
            for role, content in (("user", turn), ("assistant", answer))
            if content is not None
        ]
        unanswered = len(answers) < len(turns)
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=unanswered, tokenize=False)
        except Exception as error:  # a template is a program: it may raise what it likes
            raise UserError(
                f"the tokenizer's chat template cannot write a conversation of {len(messages)} messages "
                f"({one_line(error)}): correct it, or choose the template raw or fschat:NAME"
            ) from None

    def _one_bos(self, ids: list[int]) -> list[int]:
        """Some of FastChat's templates write the BOS token that the tokenizer adds, too."""
        return ids[1:] if ids[:2] == [self.tokenizer.bos_token_id] * 2 else ids


def _raw(turns: list[str], answers: list[str]) -> str:
    return "\n".join(part for pair in zip_longest(turns, answers) for part in pair if part is not None)


def _fschat(template: str) -> Any:
    from fastchat.conversation import conv_templates, get_conv_template

    name = template.removeprefix("fschat:")
    if name not in conv_templates:
        raise UserError(f"FastChat has no template '{name}'{nearest(name, conv_templates)}")
    return get_conv_template(name)


def _converse(template: str, turns: list[str], answers: list[str]) -> str:
    conversation = _fschat(template)
    for turn, answer in zip_longest(turns, answers):
        conversation.append_message(conversation.roles[0], turn)
        # stripped as FastChat and Spec-Bench do: the template has its own blanks
        conversation.append_message(conversation.roles[1], None if answer is None else answer.strip())
    return conversation.get_prompt()


def eos_ids(tokenizer: Any, generation_config_eos: int | Sequence[int] | None, template: str) -> list[int]:
    """Return every id that ends an answer, sorted: the model's, the tokenizer's, and those of a FastChat template."""
    configured = [generation_config_eos] if isinstance(generation_config_eos, int) else generation_config_eos
    ids = {*(configured or []), tokenizer.eos_token_id}
    if template.startswith("fschat:"):
        conversation = _fschat(template)
        stops = conversation.stop_str or []
        added = tokenizer.get_added_vocab()
        ids |= {*(conversation.stop_token_ids or [])}
        ids |= {added.get(stop) for stop in ([stops] if isinstance(stops, str) else stops)}
    return sorted(ids - {None})


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of an answer without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True)
