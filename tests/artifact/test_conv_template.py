"""Templates derived from Jinja: the prompts must be those that Hugging Face renders.

The templates below are small ones in the manner of well-known models, one per trait: optional,
default, merged, refused or moved system message, trimmed contents, begin tokens, dropped reasoning.
"""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from mlc_bridge.artifact.chat_template import ChatTemplate
from mlc_bridge.artifact.conv_template import derive
from mlc_bridge.artifact.conversation import Conversation
from mlc_bridge.errors import ConfigError, EngineError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}" + CHATML
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
KNOWLEDGE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "<|start|>system\n\nKnowledge until 2023.\n\n{{ s }}<|end|>"
    "{% for m in messages %}<|start|>{{ m.role }}\n\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
SYS = (
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content +"
    " '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LAST_TURN = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST]{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% elif m.role == 'user' %}U: {{ m.content }}\n{% else %}{{ m.content }}"
    "\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
DERIVABLE = {
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "headers": HEADERS,
    "knowledge": KNOWLEDGE,
    "inst": INST,
    "sys": SYS,
    "last turn": LAST_TURN,
    "gemma": GEMMA,
    "thinking": THINKING,
    "generation": GENERATION,
}


def chat(*turns: str, system: str | None = None) -> list[dict[str, Any]]:
    found = [
        {"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)
    ]
    return found if system is None else [{"role": "system", "content": system}, *found]


CHATS = [
    chat("What is 2 + 2?"),
    chat("a", "b", "c", "d", "e"),
    chat(" leading", "trailing \n", "\n\nboth\n\n"),
    chat("Grüße 世界 🙂 {x} <b>", "\\n &amp; '\"", "{{ nothing }}"),
    chat("hello", system="Be brief."),
    chat("hello", "hi", "more", system="Zwei\n\nZeilen 🙂"),
]


def hf_prompt(source: str, messages: list[dict[str, Any]]) -> str:
    """What transformers renders."""
    prompts, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **TOKENS
    )
    return str(prompts[0])


def our_prompt(found: Conversation, messages: list[dict[str, Any]]) -> str:
    prefix = "<s>" if found.system_prefix_token_ids == [1] else ""
    return prefix + found.prompt(messages)


@pytest.mark.parametrize("name", DERIVABLE)
def test_prompts_are_hugging_faces(name: str) -> None:
    source = DERIVABLE[name]
    derived = derive(ChatTemplate(source, TOKENS, ("<s>", 1)))
    assert derived.proven >= 6
    compared = 0
    for messages in CHATS:
        beyond = derived.conversation.mlc_bridge
        if messages[0]["role"] == "system" and beyond is not None and beyond.system_refused:
            with pytest.raises(EngineError, match="takes no system message"):
                derived.conversation.prompt(messages)
            continue
        ours = our_prompt(derived.conversation, messages)
        assert ours == hf_prompt(source, messages)
        compared += 1
    assert compared >= 4


def test_rendering_is_hugging_faces() -> None:
    source = "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ bos_token }}"
    messages = chat("Grüße <&>")
    assert ChatTemplate(source, TOKENS).render(messages) == hf_prompt(source, messages)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("chatml", "chatml_nosystem"), ("default system", "qwen2"), ("inst", "auto")],
)
def test_mlcs_own_template_is_recognized(name: str, expected: str) -> None:
    source = ChatTemplate(DERIVABLE[name], TOKENS, ("<s>", 1))
    assert derive(source).conversation.name == expected


def test_default_system_message_needs_no_block_of_ours() -> None:
    found = derive(ChatTemplate(DEFAULT_SYSTEM)).conversation
    assert found.mlc_bridge is None
    assert found.system_message == "You are a helpful assistant."
    assert not derive(ChatTemplate(DEFAULT_SYSTEM)).notes


def test_begin_token_becomes_a_prefix_id() -> None:
    assert derive(ChatTemplate(INST, TOKENS, ("<s>", 7))).conversation.system_prefix_token_ids == [
        7
    ]
    assert derive(ChatTemplate(INST, TOKENS)).conversation.prompt(chat("x")).startswith("<s>[INST]")
    chatml = derive(ChatTemplate(CHATML, TOKENS, ("<s>", 7))).conversation
    assert chatml.system_prefix_token_ids is None


def test_begin_token_stays_text_where_tokens_would_differ() -> None:
    def encode(text: str) -> list[int]:  # merges the begin token with what follows
        return [len(word) for word in text.split(" ")]

    found = derive(ChatTemplate(INST, TOKENS, ("<s>", 1), encode)).conversation
    assert found.system_prefix_token_ids is None
    assert found.prompt(chat("x")).startswith("<s>")


def test_dropped_reasoning_is_found() -> None:
    found = derive(ChatTemplate(THINKING)).conversation
    assert found.strip_reasoning_in_history
    messages = chat("a", "<think>\nhm\n</think>\n\nb", "c")
    assert found.prompt(messages) == hf_prompt(THINKING, messages)
    assert not derive(ChatTemplate(CHATML)).conversation.strip_reasoning_in_history


def test_notes_say_what_mlcs_engine_will_not_do() -> None:
    notes = " ".join(derive(ChatTemplate(HEADERS, TOKENS, ("<s>", 1))).notes)
    assert "does not trim" in notes
    assert "optional system turn" in notes
    refused = " ".join(derive(ChatTemplate(GEMMA, TOKENS)).notes)
    assert "System role not supported" in refused


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ strftime_now('%d') }}" + CHATML, "today's date"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"), "left out"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] | replace('\n', ' ') }}"), "prompt"),
        (CHATML.replace("<|im_end|>", "<|{{ loop.index0 // 3 }}|>"), "differing prompt"),
        ("{{ raise_exception('no chats here') }}", "no chats here"),
        ("{% for m in messages %", "does not render"),
        ("{{ messages.__class__.__mro__ }}" + CHATML, "does not render"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_reason(source: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        derive(ChatTemplate(source, TOKENS))
    assert "--conv-template" in str(error.value)


def test_refusal_shows_both_prompts() -> None:
    source = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | replace('ü', 'ue') }}")
    with pytest.raises(ConfigError) as error:
        derive(ChatTemplate(source))
    assert "Grüße" in str(error.value.found)
    assert "Grueße" in str(error.value.expected)


def test_refusal_names_kindred_templates() -> None:
    with pytest.raises(ConfigError, match="for instance llama-3, llama-3_1"):
        derive(ChatTemplate("{{ strftime_now('%d') }}" + HEADERS, TOKENS))


def test_example_model_end_to_end(example_awq: Any) -> None:
    """Token ids of the tokenizer's own apply_chat_template, on the example model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(example_awq)
    found = derive(ChatTemplate((example_awq / "chat_template.jinja").read_text())).conversation
    for messages in CHATS:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert tokenizer.encode(found.prompt(messages), add_special_tokens=False) == list(ids)
