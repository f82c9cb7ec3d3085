"""Our prompts against MLC LLM's own renderer, where MLC LLM can be imported."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from mlc_bridge.artifact.conversation import template, template_names

CHATS: list[list[tuple[str, str]]] = [
    [("user", "hi")],
    [("system", "S"), ("user", "hi"), ("assistant", "yo"), ("user", " x \n")],
    [("user", "a"), ("assistant", "<think>t</think>\n\nyo"), ("user", "b")],
    [("system", ""), ("user", "{assistant_message}"), ("assistant", ""), ("user", "")],
]


@pytest.mark.peer
def test_prompts_equal_mlcs() -> None:
    registry = pytest.importorskip("mlc_llm.conversation_template").ConvTemplateRegistry
    for name, chat in product(template_names(), CHATS):
        peer: Any = registry.get_conv_template(name).model_copy(deep=True)
        for role, text in chat:
            if role == "system":
                peer.system_message = text
            else:
                peer.messages.append((role, text))
        peer.messages.append(("assistant", None))
        ours = template(name).prompt([{"role": r, "content": t} for r, t in chat])
        assert ours == peer.as_prompt()[0]
