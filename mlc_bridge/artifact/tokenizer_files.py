"""The tokenizer of a checkpoint: the files MLC wants, the special tokens, and the chat template.

MLC's engine reads ``tokenizer.json`` (or, failing that, ``tokenizer.model``); the other files are
copied as MLC copies them. ``truncation`` and ``padding`` inside tokenizer.json, left there by
training scripts, would cut prompts in silence, so they are taken out of the copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.chat_template import TEMPLATE, special_tokens, template_source
from mlc_bridge.artifact.conversation import Conversation
from mlc_bridge.artifact.json_text import checked, json_object, read_part
from mlc_bridge.artifact.tokenizer_backend import encode, open_tokenizer
from mlc_bridge.artifact.tokenizer_info import tokenizer_info
from mlc_bridge.artifact.tokenizer_schema import TokenizerConfig, TokenizerJson
from mlc_bridge.errors import ConfigError, MissingDependency

COPIED = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    TEMPLATE,  # for what MLC's own form cannot say (tools); MLC ignores it
)


@dataclass(frozen=True)
class TokenizerFiles:
    """File name -> bytes as they will be written, and what the checkpoint says beside them."""

    directory: Path
    contents: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    settings: TokenizerConfig = field(default_factory=TokenizerConfig)

    @classmethod
    def read(cls, directory: Path) -> TokenizerFiles:
        """Raises ``ConfigError`` for a tokenizer that MLC's engine could not use."""
        contents = {n: _read(directory / n) for n in COPIED if (directory / n).is_file()}
        notes: list[str] = []
        if "tokenizer.json" not in contents and _has_slow_tokenizer(directory, contents):
            contents["tokenizer.json"] = _converted(directory)
            notes.append("tokenizer.json was made from the slow tokenizer by transformers")
        if "tokenizer.json" in contents:
            contents["tokenizer.json"], found = _whole_prompts(
                contents["tokenizer.json"], directory / "tokenizer.json"
            )
            notes += found
        else:
            notes.append("the checkpoint has no tokenizer: prompts must be token ids")
        settings = read_part(TokenizerConfig, directory / "tokenizer_config.json")
        return cls(directory, contents, tuple(notes), settings)

    @property
    def names(self) -> tuple[str, ...]:
        """The files that MLC reads."""
        return tuple(name for name in COPIED if name in self.contents and name != TEMPLATE)

    @property
    def info(self) -> dict[str, Any]:
        """MLC's ``tokenizer_info`` block."""
        return tokenizer_info(self._fast)

    @cached_property
    def ids(self) -> Mapping[int, str]:
        """Id -> token, those added by tokenizer_config.json included; ids may have holes.

        Empty without tokenizer.json.
        """
        if self._fast is None:
            return {}
        known = self._backend.get_vocab(with_added_tokens=True)
        listed = self.settings.added_tokens_decoder or {}
        return {i: t.content for i, t in listed.items()} | {i: t for t, i in known.items()}

    @property
    def added(self) -> set[int]:
        """Ids of the tokens that are found in a text as they stand, not built from its pieces."""
        listed = self.settings.added_tokens_decoder or {}
        return {
            *listed,
            *(self._backend.get_added_tokens_decoder() if self._fast else ()),
        }

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Name -> text, as templates ask for them (``bos_token``)."""
        return special_tokens(self.directory, self.settings)

    @property
    def bos(self) -> tuple[str, int] | None:
        """Text and id of the begin token."""
        text = self.special_tokens.get("bos_token")
        number = self._id(text) if text else None
        return None if text is None or number is None else (text, number)

    @property
    def chat_template(self) -> str | None:
        """The default template: chat_template.jinja, .json, or in tokenizer_config.json."""
        return template_source(self.directory, self.settings)

    def encode(self, text: str) -> list[int]:
        """Token ids without added special tokens, as MLC's engine encodes a prompt."""
        return encode(self._backend, text)

    def stop_ids(self, conversation: Conversation) -> list[int]:
        """Ids that end an answer: the end token, and the token that closes an assistant turn."""
        texts = (self.special_tokens.get("eos_token"), self._closing(conversation))
        return [i for text in texts if text and (i := self._id(text)) is not None]

    def stop_strings(self, conversation: Conversation) -> list[str]:
        """What closes an assistant turn where that is ordinary text."""
        closing = conversation.seps[-1].strip()
        return [closing] if closing and self._closing(conversation) is None else []

    def write(self, directory: Path) -> None:
        for name, content in self.contents.items():
            target = directory / name
            temp = target.with_name(f".{name}.part")
            temp.write_bytes(content)
            temp.replace(target)

    def _closing(self, conversation: Conversation) -> str | None:
        """The special token with which the separator after the assistant begins."""
        after = conversation.seps[-1].lstrip()
        special = [t["content"] for t in (self._fast or {}).get("added_tokens", [])]
        return max((s for s in special if after.startswith(s)), key=len, default=None)

    def _id(self, text: str) -> int | None:
        found: int | None = None if self._fast is None else self._backend.token_to_id(text)
        return found

    @cached_property
    def _fast(self) -> dict[str, Any] | None:
        text = self.contents.get("tokenizer.json")
        return None if text is None else json_object(text, self.directory / "tokenizer.json")

    @cached_property
    def _backend(self) -> Any:
        if "tokenizer.json" not in self.contents:
            raise ConfigError(
                "the checkpoint has no tokenizer",
                where=self.directory,
                todo="Copy tokenizer.json and tokenizer_config.json of the original model here",
            )
        return open_tokenizer(self.contents["tokenizer.json"], self.directory / "tokenizer.json")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from error


def _whole_prompts(text: bytes, where: Path) -> tuple[bytes, list[str]]:
    """tokenizer.json without truncation and padding; refuses tokens that are listed twice."""
    found = json_object(text, where)
    seen: set[str] = set()
    for token in checked(TokenizerJson, found, where).added_tokens or []:
        if token.content in seen:
            raise ConfigError(
                "added_tokens lists a token twice, which makes the tokenizer read text wrongly",
                where=where,
                found=repr(token.content),
                todo="Remove the wrong entry from added_tokens",
            )
        seen.add(token.content)
    cut = [key for key in ("truncation", "padding") if found.get(key)]
    if not cut:
        return text, []
    whole = {**found, **dict.fromkeys(cut)}
    note = f"{' and '.join(cut)} taken out of tokenizer.json: it would have changed prompts"
    return json.dumps(whole, indent=2, ensure_ascii=False).encode(), [note]


def _has_slow_tokenizer(directory: Path, contents: Mapping[str, bytes]) -> bool:
    pair = {"vocab.json", "merges.txt"} <= contents.keys()
    return "tokenizer.model" in contents or pair or any(directory.glob("*.tiktoken"))


def _converted(directory: Path) -> bytes:
    """tokenizer.json of a checkpoint that has only a slow tokenizer."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingDependency(
            "transformers",
            f"{directory}: making tokenizer.json from a slow tokenizer",
            "pip install 'mlc-bridge[tokenizers]'",
        ) from None
    try:
        text: str = AutoTokenizer.from_pretrained(directory).backend_tokenizer.to_str()
    except Exception as error:  # whatever the tokenizer's own code raises
        raise ConfigError(
            f"transformers cannot make tokenizer.json from the slow tokenizer: {error}",
            where=directory,
            todo="Install mlc-bridge[tokenizers], or take tokenizer.json from "
            "another copy of the model",
        ) from error
    return text.encode()
