"""The child that tries a tokenizer file before anybody trusts it (see ``confined.py``)."""

from __future__ import annotations

import os
from typing import Any

from mlc_bridge.artifact.confined import serve

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would count against the memory

LINE = "Hello, world!  def f(x):\n\treturn [x] * 2  # größer, 世界 🙂\u200d\r\n\x00"


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Everything that the engine does with a tokenizer, on a short and a longer text."""
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_str(question["text"])
    tokens.no_truncation()
    tokens.no_padding()
    tokens.get_vocab(with_added_tokens=True)
    added = [token.content for token in tokens.get_added_tokens_decoder().values()]
    for text in ("", LINE, LINE * 50, "".join(added[:1000])):
        tokens.decode(tokens.encode(text, add_special_tokens=False).ids)
    return {}


if __name__ == "__main__":
    serve(answer)
