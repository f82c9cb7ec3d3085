"""Tokenizer files: what MLC detects, what is copied, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mlc_bridge.artifact.tokenizer_files import TokenizerFiles
from mlc_bridge.artifact.tokenizer_info import tokenizer_info
from mlc_bridge.errors import ConfigError

BYTE_LEVEL = {"type": "ByteLevel"}
LLAMA2 = {
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
}


@pytest.mark.parametrize(
    ("found", "method", "prepend", "strip"),
    [
        (None, "byte_fallback", False, False),
        ({"decoder": BYTE_LEVEL, "normalizer": None}, "byte_level", False, False),
        (LLAMA2, "byte_fallback", True, True),
        ({"decoder": {"type": "WordPiece"}}, "byte_fallback", False, False),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "byte_fallback", True, False),
        (
            {"decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 1}},
            "byte_fallback",
            False,
            False,
        ),
    ],
)
def test_tokenizer_info(
    found: dict[str, Any] | None, method: str, prepend: bool, strip: bool
) -> None:
    assert tokenizer_info(found) == {
        "token_postproc_method": method,
        "prepend_space_in_encode": prepend,
        "strip_space_in_decode": strip,
    }


@pytest.fixture
def directory(example_awq: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(example_awq / name, tmp_path / name)
    return tmp_path


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ids_are_hugging_faces(directory: Path) -> None:
    files, peer = TokenizerFiles.read(directory), AutoTokenizer.from_pretrained(directory)
    assert files.ids == {i: token for token, i in peer.get_vocab().items()}
    text = "def f(x):\n    return 'Grüße 世界' # <|im_end|>"
    assert files.encode(text) == peer.encode(text, add_special_tokens=False)


def test_truncation_is_taken_out(directory: Path, tmp_path: Path) -> None:
    assert json.loads((directory / "tokenizer.json").read_text())["truncation"] is not None
    files = TokenizerFiles.read(directory)
    assert len(files.encode("word " * 2000)) > 1500
    files.write(tmp_path / "..")  # beside: the source keeps its file
    assert json.loads((tmp_path.parent / "tokenizer.json").read_text())["truncation"] is None
    assert any("truncation" in note for note in files.notes)


def test_tokens_of_the_config_count(directory: Path) -> None:
    before = TokenizerFiles.read(directory)
    added = {"4100": {"content": "<|new|>"}, "2": {"content": "<|im_end|>"}}
    edited(directory / "tokenizer_config.json", added_tokens_decoder=added)
    files = TokenizerFiles.read(directory)
    assert files.ids == {**before.ids, 4100: "<|new|>"}
    assert files.added == {*before.added, 4100}


def test_duplicated_added_token_is_refused(directory: Path) -> None:
    found = json.loads((directory / "tokenizer.json").read_text())
    found["added_tokens"].append(found["added_tokens"][1])
    (directory / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"twice.*<\|im_start\|>"):
        TokenizerFiles.read(directory)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_tokenizer_is_named(directory: Path, text: str) -> None:
    (directory / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        TokenizerFiles.read(directory)


def test_slow_tokenizer_is_converted(directory: Path) -> None:
    """vocab.json and merges.txt alone; the ids must be those of the file they came from."""
    found = json.loads((directory / "tokenizer.json").read_text())
    before = TokenizerFiles.read(directory).encode("import os.path")
    (directory / "vocab.json").write_text(json.dumps(found["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (directory / "tokenizer.json").unlink()
    edited(directory / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    files = TokenizerFiles.read(directory)
    assert files.encode("import os.path") == before
    assert any("slow tokenizer" in note for note in files.notes)


def test_broken_slow_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="tokenizers"):
        TokenizerFiles.read(tmp_path)


def test_chat_template_places(directory: Path) -> None:
    settings = directory / "tokenizer_config.json"
    assert "im_start" in str(TokenizerFiles.read(directory).chat_template)
    (directory / "chat_template.jinja").unlink()
    assert TokenizerFiles.read(directory).chat_template is None
    edited(settings, chat_template="one")
    assert TokenizerFiles.read(directory).chat_template == "one"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    edited(settings, chat_template=named)
    assert TokenizerFiles.read(directory).chat_template == "d"


def test_special_tokens_as_text_or_object(directory: Path) -> None:
    edited(directory / "tokenizer_config.json", bos_token={"content": "<|im_start|>"})
    files = TokenizerFiles.read(directory)
    assert files.special_tokens["bos_token"] == "<|im_start|>"
    assert files.bos == ("<|im_start|>", 1)
    edited(directory / "tokenizer_config.json", bos_token="<none>")
    assert TokenizerFiles.read(directory).bos is None
