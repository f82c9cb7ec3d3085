"""Text to token ids, and token ids to bytes.

Output is built from bytes, token by token: a table gives the bytes of each id, so that a character
spread over several tokens is whole before it is shown, and stop strings are found wherever tokens
cut them. Two encodings exist (``tokenizer_info.token_postproc_method``):

byte_level     every byte is one of 256 printable characters (GPT-2); printable bytes stand for
               themselves, the other 68 are numbered upwards from U+0100
byte_fallback  SentencePiece: "▁" is a space, <0x1B> a single byte

Added tokens are text as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.tokenizer_backend import encode, open_tokenizer
from mlc_bridge.artifact.tokenizer_info import tokenizer_info
from mlc_bridge.errors import ArtifactError, ConfigError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """``tokenizer.json`` of a model directory, without truncation, padding or added specials."""

    def __init__(self, model_dir: Path, info: dict[str, Any] | None = None) -> None:
        path = model_dir / "tokenizer.json"
        try:
            content = path.read_bytes()
        except OSError:
            raise ArtifactError(
                "no tokenizer.json",
                where=model_dir,
                todo="Write one with the save_pretrained of transformers' AutoTokenizer",
            ) from None
        try:
            self._tokens = open_tokenizer(content, path)
        except ConfigError as problem:
            raise ArtifactError(problem.what, where=path, todo=problem.todo) from problem
        info = info or tokenizer_info(json.loads(content))
        self.strips_first_space = bool(info.get("strip_space_in_decode"))
        added = self._tokens.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        self.special_ids = {t.content: i for i, t in added.items() if t.special}
        self._bytes = self._table(info["token_postproc_method"] == "byte_level")
        self.longest = max(map(len, self._bytes.values()), default=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special tokens written in it are recognised, none are added."""
        return encode(self._tokens, text)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token stands for; empty for an id without text (padding of the
        vocabulary).
        """
        return self._bytes.get(token, b"")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of whole sequences; malformed UTF-8 becomes U+FFFD."""
        data = b"".join(map(self.bytes_of, tokens))
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    @property
    def ids(self) -> Collection[int]:
        """The ids that are tokens, in any order; a vocabulary may have holes."""
        return self._bytes.keys()

    def _table(self, byte_level: bool) -> dict[int, bytes]:
        added = self._tokens.get_added_tokens_decoder()
        vocab = self._tokens.get_vocab(with_added_tokens=True)
        table: dict[int, bytes] = {}
        alphabet = byte_alphabet() if byte_level else {}
        for piece, i in vocab.items():
            if i in added:
                table[i] = piece.encode()
            elif byte_level:
                table[i] = b"".join(alphabet.get(c, c.encode()) for c in piece)
            elif match := _BYTE.fullmatch(piece):
                table[i] = bytes([int(match[1], 16)])
            else:
                table[i] = piece.replace("▁", " ").encode()
        return table


def byte_alphabet() -> dict[str, bytes]:
    """GPT-2's character for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): bytes([b]) for b in printable}
    return alphabet | {chr(256 + i): bytes([b]) for i, b in enumerate(others)}
