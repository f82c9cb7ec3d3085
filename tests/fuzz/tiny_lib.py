"""A shared object of a few hundred bytes that says what a lib says; only its data are there."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.lib_file import MAGIC, REQUIRED_FUNCTIONS, SYMBOL


def metadata_of(chat: ChatConfig) -> str:
    return json.dumps(
        {
            "model_type": chat.model_type,
            "quantization": chat.quantization,
            "context_window_size": 2048,
            "prefill_chunk_size": 512,
            "max_batch_size": 8,
            "tensor_parallel_shards": 1,
            "params": [
                {"name": f"model.layers.{i}.weight", "shape": [3, 5 + i], "dtype": "float16"}
                for i in range(4)
            ],
            "kv_cache": {
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 64,
            },
            "mlc_bridge": {"fingerprint": chat.fingerprint, "cpu_flags": []},
        }
    )


def write_lib(path: Path, chat: ChatConfig) -> None:
    """Also ``metadata.json`` beside it, for the door of its own."""
    text = metadata_of(chat)
    (path.parent / "metadata.json").write_text(text)
    path.write_bytes(_elf(_blob(text.encode())))


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _blob(metadata: bytes) -> bytes:
    functions = [
        struct.pack("<i", 1) + _text(name.encode()) + struct.pack("<qqqqQ", 0, 1, arity, 4, 0)
        for name, arity in REQUIRED_FUNCTIONS.items()
    ]
    head = struct.pack("<Q", MAGIC) + _text(b"0.14") + struct.pack("<Q", len(functions))
    executable = head + b"".join(functions) + struct.pack("<i", 65) + _text(metadata)
    tree = struct.pack("<QQQQQQ", 3, 0, 1, 1, 1, 1)
    modules = _text(b"relax.VMExecutable") + _text(executable) + _text(b"_lib")
    return _text(tree + modules)


def _elf(blob: bytes) -> bytes:
    """Header, then data, symbol and names; three sections besides the empty one."""
    names = b"\0" + SYMBOL + b"\0"
    data_at = 64
    symbol_at = data_at + len(blob)
    names_at = symbol_at + 24
    table_at = names_at + len(names)
    symbol = struct.pack("<IBBHQQ", 1, 0x11, 0, 1, data_at, len(blob))
    sections = [
        _section(0, 0, 0, 0, 0),
        _section(1, data_at, len(blob), 0, 0),
        _section(11, symbol_at, 24, 3, 24),
        _section(3, names_at, len(names), 0, 0),
    ]
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack(
            "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table_at, 0, 64, 56, 0, 64, len(sections), 0
        )
    )
    return header + blob + symbol + names + b"".join(sections)


def _section(kind: int, offset: int, nbytes: int, link: int, entry: int) -> bytes:
    return struct.pack("<IIQQQQIIQQ", 0, kind, 2, offset, offset, nbytes, link, 0, 8, entry)
