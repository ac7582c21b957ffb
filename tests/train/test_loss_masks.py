"""The parts of a chat that are learned: the assistant's messages and the ends of its turns, for any template."""

from __future__ import annotations

from pathlib import Path

import pytest

from freedive.errors import UserError
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer
from freedive.train.data.chat_tokenizer import train_tokenizer
from freedive.train.data.loss_masks import documents, rendered

CHATML = (
    "{% if messages[0].role != 'system' %}<s>system: be kind</s>\n{% endif %}{% for m in messages %}"
    "{{ '<s>' + m.role + ': ' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
INST = (
    "{{ '<bos>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
TRIMS = (
    "{% for m in messages %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '</turn>\n' }}{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
OPENS_THOUGHTS = (  # the prompt has a mark that an answer does not have, as DeepSeek R1's
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content }}{% else %}"
    "{{ '<A>' + m.content.split('</think>')[-1] + '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
DROPS_THOUGHTS = (  # in all answers but the last, as Qwen3's
    "{% for m in messages %}{{ '<s>' + m.role + '\n' }}"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
RETURNS = (  # marks the last end differently, as gpt-oss's
    "{% for m in messages %}{{ '<s>' + m.role + '<m>' + m.content }}"
    "{{ '<return>' if loop.last and m.role == 'assistant' else '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Say yes"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Say yes, yes"},
    {"role": "assistant", "content": "yes, yes"},
]
THOUGHT = [{**m, "content": f"<think>a</think>{m['content']}"} if m["role"] == "assistant" else m for m in CHAT]


def learned(template: str, messages: list[dict[str, str]]) -> list[list[str]]:
    """Returns the learned spans of each rendering."""
    chats = rendered(messages, ChatTemplate({"default": template}, {}))
    return [[chat.text[begin:end] for begin, end in chat.spans] for chat in chats]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (CHATML, CHAT, [["yes</s>", "yes, yes</s>"]]),
        (INST, CHAT, [[" yes</s>", " yes, yes</s>"]]),
        (TRIMS, CHAT, [["yes</turn>", "yes, yes</turn>"]]),
        (TRIMS, [CHAT[0], {"role": "assistant", "content": "  yes \n"}], [["yes</turn>"]]),
        (OPENS_THOUGHTS, CHAT, [["yes<end>", "yes, yes<end>"]]),
        (DROPS_THOUGHTS, THOUGHT, [["<think>a</think>yes</s>"], ["<think>a</think>yes, yes</s>"]]),
        (RETURNS, CHAT, [["<m>yes<return>"], ["<m>yes, yes<return>"]]),
        (CHATML, CHAT[1:2], [["yes</s>"]]),
        (CHATML, CHAT[:1], []),
    ],
)
def test_what_the_assistant_says_is_learned(
    template: str, messages: list[dict[str, str]], expected: list[list[str]]
) -> None:
    assert learned(template, messages) == expected


def test_an_answer_that_the_template_does_not_write_is_refused() -> None:
    with pytest.raises(UserError, match="does not write the answer '<think>a</think>yes'"):
        learned(OPENS_THOUGHTS, THOUGHT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(["user assistant yes Say 好的"], 400, tmp_path_factory.mktemp("words"))


def test_tokens_are_those_of_the_whole_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = ChatTemplate({"default": CHATML}, {})
    messages = [CHAT[0], {"role": "assistant", "content": "好的 yes 🐟"}]
    ((tokens, weights),) = documents({"messages": messages}, tokenizer, template)
    assert tokens == tokenizer.encode(template.render(messages, add_generation_prompt=False).rstrip())
    said = [token for token, weight in zip(tokens, weights, strict=True) if weight]
    assert tokenizer.decode(said, skip_special=False) == " 好的 yes 🐟</s>"


def test_a_text_is_learned_to_its_end(tokenizer: Tokenizer) -> None:
    ((tokens, weights),) = documents({"text": "Say yes"}, tokenizer, ChatTemplate({}, {}))
    assert tokenizer.decode(tokens, skip_special=False) == "Say yes<|end|>"
    assert weights == [0] + [1] * (len(tokens) - 1)  # the first token has no context
