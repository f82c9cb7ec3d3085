"""Prompts: MLC's rules, spelled out by hand for the templates that differ most."""

from __future__ import annotations

from typing import Any

import pytest

from mlc_bridge.artifact.conversation import Beyond, Conversation, template
from mlc_bridge.errors import EngineError

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
AGAIN = {"role": "user", "content": "more"}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def test_default_system_message_is_replaced_by_the_users() -> None:
    head = "<|im_start|>system\n"
    tail = "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    chatml = template("chatml")
    assert chatml.prompt([USER]) == head + chatml.system_message + tail
    assert chatml.prompt([system("S"), USER]) == head + "S" + tail
    assert chatml.prompt([system(""), USER]) == head + tail


def test_two_separators_and_a_merged_system_message() -> None:
    llama2 = template("llama-2")
    assert llama2.system_prefix_token_ids == [1]
    assert llama2.prompt([system("S"), USER, ANSWER, AGAIN]) == (
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nhi [/INST] hello </s><s>[INST] more [/INST] "
    )


def test_empty_separator_before_an_empty_answer() -> None:
    assert template("phi-2").prompt([USER, ANSWER, AGAIN]) == (
        "Instruct: hi\nOutput: hello\nInstruct: more\nOutput:"
    )
    assert template("LM").prompt([USER]) == "hi"


def test_role_templates_wrap_contents() -> None:
    ministral = template("ministral3")
    text = ministral.prompt([system("S"), USER, ANSWER, AGAIN])
    assert text == "[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]hi[/INST]hello</s>[INST]more[/INST]"


def test_function_placeholders_vanish_without_a_function() -> None:
    gorilla = template("gorilla-openfunctions-v2")
    text = gorilla.prompt([system(""), USER])
    assert text == "### Instruction: <<function>>\n<<question>>hi\n### Response: "
    called = gorilla.model_copy(update={"function_string": "F"})
    assert called.prompt([system(""), USER]) == text.replace("<<function>>", "<<function>>F")


def test_reasoning_is_stripped_from_history_only() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhello"}
    qwen3 = template("qwen3")
    assert "hm" not in qwen3.prompt([USER, thought, AGAIN])
    assert "hm" in qwen3.prompt([USER, thought])
    assert "hm" in template("qwen2").prompt([USER, thought, AGAIN])


def test_text_parts_are_joined_and_others_refused() -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    chatml = template("chatml")
    assert chatml.prompt([{"role": "user", "content": parts}]) == chatml.prompt([USER])
    with pytest.raises(EngineError, match="image_url"):
        chatml.prompt([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


def test_roles_are_checked() -> None:
    with pytest.raises(EngineError, match="unknown role"):
        template("chatml").prompt([{"role": "tool", "content": "x"}])
    with pytest.raises(EngineError, match="come first"):
        template("chatml").prompt([USER, system("S")])


def test_what_mlcs_form_cannot_say() -> None:
    base = template("chatml_nosystem")
    wrapped = Beyond(system_template="<|im_start|>system\n{system_message}<|im_end|>\n")
    found = base.model_copy(update={"mlc_bridge": wrapped})
    assert found.prompt([USER]) == base.prompt([USER])
    chatml = template("chatml")
    assert found.prompt([system("S"), USER]) == chatml.prompt([system("S"), USER])
    trimmed = base.model_copy(update={"mlc_bridge": Beyond(trim=("user",))})
    assert trimmed.prompt([{"role": "user", "content": " hi\n"}]) == base.prompt([USER])
    refusing = base.model_copy(update={"mlc_bridge": Beyond(system_refused="it says so")})
    with pytest.raises(EngineError, match="it says so"):
        refusing.prompt([system("S"), USER])


def test_mlc_reads_our_file_without_the_extra_block() -> None:
    found = Conversation(
        roles={"user": "u", "assistant": "a"}, seps=["\n"], mlc_bridge=Beyond(trim=("user",))
    )
    assert found.to_json()["mlc_bridge"] == {"trim": ("user",)}
    assert "mlc_bridge" not in template("LM").to_json()
    assert Conversation.model_validate(found.to_json()) == found


@pytest.mark.parametrize("seps", [[], ["a", "b", "c"]])
def test_one_or_two_separators(seps: list[str]) -> None:
    with pytest.raises(ValueError, match="seps"):
        Conversation(roles={"user": "u", "assistant": "a"}, seps=seps)
