"""Ids to bytes against the tokenizers library's own decoding, for both encodings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Tokens
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mlc_bridge.engine.tokenizer import Tokenizer, byte_alphabet
from mlc_bridge.errors import ArtifactError

TEXTS = [
    "",
    "Hello, world",
    "  two  spaces\n\ttabs",
    "größer 世界 🙂👍🏽",
    "def f(x):\n    return x\n",
]


def byte_level() -> Tokens:
    """Every byte is a token, plus some merges and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("Ġ", "w"), ("l", "l"), ("he", "ll")]
    pieces = [*alphabet, *("".join(m) for m in merges)]
    tokens = Tokens(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(["<|end|>"])
    return tokens


def byte_fallback() -> Tokens:
    """As Llama's SentencePiece tokenizers are written: ▁ for a space, bytes as <0x..>."""
    pieces = [f"<0x{b:02X}>" for b in range(256)] + list("▁abcdefghwxyz()") + ["▁w", "he"]
    tokens = Tokens(
        models.BPE(
            {p: i for i, p in enumerate(pieces)},
            [("▁", "w"), ("h", "e")],
            byte_fallback=True,
        )
    )
    tokens.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokens.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokens


KINDS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokens, Tokenizer]:
    theirs = KINDS[request.param]
    theirs.save(str(tmp_path / "tokenizer.json"))
    return theirs, Tokenizer(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(pair: tuple[Tokens, Tokenizer], text: str) -> None:
    theirs, ours = pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text == theirs.decode(ids, skip_special_tokens=False)


def test_special_tokens_in_text_are_recognised_and_shown(tmp_path: Path) -> None:
    KINDS["byte_level"].save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(tmp_path)
    ids = ours.encode("he<|end|>")
    assert len(ids) == 2
    assert ours.decode(ids) == "he<|end|>"


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 259), max_size=30))
def test_byte_level_decodes_any_ids_as_the_library_does(
    ids: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs = KINDS["byte_level"]
    path = tmp_path_factory.getbasetemp() / "byte_level"
    path.mkdir(exist_ok=True)
    if not (path / "tokenizer.json").exists():
        theirs.save(str(path / "tokenizer.json"))
    assert Tokenizer(path).decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_truncation_written_into_the_file_is_not_applied(tmp_path: Path) -> None:
    tokens = byte_level()
    tokens.enable_truncation(4)
    tokens.enable_padding(length=16)
    tokens.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer(tmp_path).encode("x" * 10)) == 10


def test_ids_beyond_the_table_have_no_text(pair: tuple[Tokens, Tokenizer]) -> None:
    assert pair[1].decode([100_000]) == ""


def test_alphabet_is_the_librarys() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == [bytes([b]) for b in range(256)]


@pytest.mark.parametrize("content", [None, "{", json.dumps({"model": {}})])
def test_missing_or_damaged_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer"):
        Tokenizer(tmp_path)
