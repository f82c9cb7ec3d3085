"""What a lib says is read from its bytes, and is what it says when it runs; nothing of it runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tvm
from tvm import relax

from mlc_bridge import CheckJob, check_artifact, inspect_artifact
from mlc_bridge.artifact.lib_file import REQUIRED_FUNCTIONS, _blob, _mapped, read_lib
from mlc_bridge.artifact.lib_metadata import parse_metadata
from mlc_bridge.compiler.linker import find_linker
from mlc_bridge.errors import ArtifactError

pytestmark = pytest.mark.slow

Copy = Callable[[], Path]
HOSTILE = """
#include <fcntl.h>
__asm__(".section .rodata\\n.globl __tvm_ffi__library_bin\\n"
        ".type __tvm_ffi__library_bin, @object\\n.size __tvm_ffi__library_bin, {nbytes}\\n"
        "__tvm_ffi__library_bin: .incbin \\"{blob}\\"\\n.previous\\n");
__attribute__((constructor)) static void runs(void) {{ creat("{mark}", 0600); }}
"""


def said(directory: Path, **wish: object) -> dict[str, tuple[bool, str]]:
    report = check_artifact(CheckJob(directory, **wish))
    return {check.name: (check.passed, check.detail) for check in report.checks}


def test_the_bytes_say_what_the_lib_says(artifact: Path) -> None:
    found = read_lib(artifact / "lib.so")
    module = tvm.runtime.load_module(str(artifact / "lib.so"))
    vm = relax.VirtualMachine(module, tvm.cpu())
    assert found.metadata == json.loads(vm["_metadata"]())
    for name in REQUIRED_FUNCTIONS:
        assert found.functions[name] == vm.module["get_function_arity"](name)
    assert found.device == "cpu"
    assert inspect_artifact(artifact).lib == inspect_artifact(artifact, load_lib=True).lib


def test_check_and_inspect_run_nothing_of_a_strangers_lib(copy_of: Copy, tmp_path: Path) -> None:
    directory = copy_of()
    with _mapped(directory / "lib.so") as data:
        blob = _blob(data)
    mark, source = tmp_path / "mark", tmp_path / "hostile.c"
    (tmp_path / "blob").write_bytes(blob)
    source.write_text(HOSTILE.format(nbytes=len(blob), blob=tmp_path / "blob", mark=mark))
    (directory / "lib.so").unlink()
    command = [*find_linker(), "-shared", "-fPIC", "-o", directory / "lib.so", source]
    subprocess.run([*command, "-Wno-everything"], check=True, capture_output=True)
    passed, detail = said(directory)["lib"]
    assert passed
    assert "read, not loaded" in detail
    assert inspect_artifact(directory).lib["model_type"] == "llama"
    assert not mark.exists()
    assert not said(directory, load_lib=True)["lib"][0]  # it has no kernels
    assert mark.exists()


def test_a_lib_without_readable_words_is_loaded_only_on_wish(copy_of: Copy, artifact: Path) -> None:
    directory = copy_of()
    data = bytearray((directory / "lib.so").read_bytes())
    with _mapped(directory / "lib.so") as file:
        at = data.index(_blob(file)[:200])
    magic = data.index((0xD225DE2F4214151E).to_bytes(8, "little"), at)
    data[magic] ^= 1
    (directory / "lib.so").unlink()
    (directory / "lib.so").write_bytes(data)
    passed, detail = said(directory)["lib"]
    assert not passed
    assert "unknown form of the executable" in detail
    assert "--load-lib" in detail
    assert said(artifact, load_lib=True)["lib"][0]


def test_wrong_device(artifact: Path) -> None:
    assert "compiled for cpu" in said(artifact, device="cuda")["lib"][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"params": None}, "params: .*valid list"),
        ({"params": [{"name": 3, "shape": [], "dtype": "float32"}]}, r"params\.0\.name"),
        ({"params": [{"name": "w", "shape": [1e400], "dtype": "f"}]}, r"params\.0\.shape\.0"),
        ({"context_window_size": "2048"}, "context_window_size"),
        ({"max_batch_size": 10**30}, "max_batch_size"),
        ({"prefill_chunk_size": True}, "prefill_chunk_size"),
        ({"mlc_bridge": "x"}, "mlc_bridge"),
        ({"mlc_bridge": {"cpu_flags": 5}}, r"mlc_bridge\.cpu_flags"),
        ({"kv_cache": {"head_dim": 1}}, r"kv_cache\.num_hidden_layers"),
    ],
)
def test_metadata_of_another_type_is_named(
    artifact: Path, change: dict[str, object], words: str
) -> None:
    metadata = dict(read_lib(artifact / "lib.so").metadata)
    assert parse_metadata(json.dumps(metadata), artifact) == metadata
    with pytest.raises(ArtifactError, match=f"_metadata: {words}"):
        parse_metadata(json.dumps(metadata | change), artifact)
    for text in ("[]", "{", "[" * 100_000, b"\xff"):
        with pytest.raises(ArtifactError, match="_metadata"):
            parse_metadata(text, artifact)
