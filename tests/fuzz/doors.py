"""The doors that a stranger's file comes in by: a good file each, and what is done with it.

A door gets a directory with good files, one of which is replaced by damaged bytes; it may return or
raise an error of the tree. ``weight`` is its share of the mutants.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.artifact import tokenizer_backend
from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.chat_template import ChatTemplate
from mlc_bridge.artifact.conv_template import derive
from mlc_bridge.artifact.lib_file import check_functions, read_lib
from mlc_bridge.artifact.lib_metadata import check_cpu, check_runnable, parse_metadata
from mlc_bridge.artifact.manifest import check_lib
from mlc_bridge.artifact.tensor_cache import ShardWriter, read_index
from mlc_bridge.artifact.tokenizer_files import TokenizerFiles
from mlc_bridge.artifact.tokenizer_schema import TokenizerConfig
from mlc_bridge.engine.runtime import EngineConfig, plan_limits
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.errors import ArtifactError
from mlc_bridge.stages.build import BuildJob
from mlc_bridge.stages.calibration_data import draw, read_records, tokenize
from mlc_bridge.stages.compile import CompileJob, make_plan
from mlc_bridge.stages.gen_config import GenConfigJob, gen_config
from mlc_bridge.stages.inspect_artifact import CheckJob, check_artifact, inspect_artifact
from tests.fuzz.mutate import damaged_bytes, damaged_json
from tests.fuzz.tiny_lib import write_lib

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "examples/models/stdlib-llama-7m"
TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n * 2 + 1 %}{% endfor %}"
    "{% macro say(m) %}{{ m.role | upper }}: {{ m.content | trim }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }} {{ '%d' | format(ns.n / 3) }}{{ 'x' * 9 }}\n{% endfor %}",
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no') }}{% endif %}{{ '[INST] ' + m.content.strip() if m.role == 'user' "
    "else m.content + eos_token }}{% endfor %}{{ messages[0] | tojson(indent=2) if false }}",
)
RECORDS = [
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "c"}]}]},
    {"prompt": "d", "response": "e"},
    {"text": "f"},
]


@dataclass(frozen=True)
class Door:
    """``file`` in the good directory is damaged as ``kind``; ``use`` looks at the directory."""

    name: str
    file: str
    kind: Callable[[bytes, random.Random], bytes]
    use: Callable[[Path], Any]
    weight: int = 10


def as_json(data: bytes, rng: random.Random) -> bytes:
    whole = rng.random() < 0.85
    return damaged_json(data.decode(), rng) if whole else damaged_bytes(data, rng)


def good(directory: Path) -> Path:
    """``hf``, a checkpoint without weights, and ``mlc``, a model directory that it could make."""
    hf, mlc = directory / "hf", directory / "mlc"
    hf.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(MODEL / name, hf)
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": TEMPLATES[0]}]
    settings["added_tokens_decoder"] = {"2": {"content": "<|im_end|>", "special": True}}
    (hf / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (hf / "special_tokens_map.json").write_text(json.dumps(special))
    (hf / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[0]}))
    report = gen_config(GenConfigJob(hf, mlc, "q0f16", "chatml"))
    stamp = {"BitsPerParam": 16.0, "mlc_bridge": {"fingerprint": report.config.fingerprint}}
    with ShardWriter(mlc, stamp) as writer:
        for i in range(4):
            writer.add(f"model.layers.{i}.weight", np.full((3, 5 + i), i, np.float16))
        writer.add("model.norm.q_scale", np.ones(4, np.float32))
    write_lib(mlc / "lib.so", report.config)
    (directory / "template.jinja").write_text("\0".join(TEMPLATES))
    (directory / "records.json").write_text(json.dumps(RECORDS))
    shutil.copy(REPOSITORY / "configs/deploy/awq_7b_cpu.yml", directory / "recipe.yml")
    return directory


def tokenizer(directory: Path) -> None:
    conversation = ChatConfig.load(directory / "mlc").conv_template
    files = TokenizerFiles.read(directory / "hf")
    _ = files.ids, files.added, files.special_tokens, files.bos, files.chat_template, files.info
    files.encode("import os  # größer 世界")
    files.stop_ids(conversation)
    files.stop_strings(conversation)


def engine_tokenizer(directory: Path) -> None:
    tokenizer(directory)
    tokens = Tokenizer(directory / "hf")
    ids = tokens.encode("import os  # größer 世界")
    tokens.decode([*ids, 0, 10**9])


def configure(directory: Path) -> None:
    gen_config(GenConfigJob(directory / "hf", directory / "out", "q0f16", "auto"))


def configured(directory: Path) -> None:
    chat = ChatConfig.load(directory / "mlc")
    chat.save(directory / "out")
    make_plan(CompileJob(directory / "mlc", target="llvm -mcpu=x86-64-v3"))
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    chat.conv_template.prompt(messages)


def template(directory: Path) -> None:
    text = (directory / "template.jinja").read_bytes().decode("utf-8", "replace")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    derive(ChatTemplate(text.split("\0")[0], tokens, ("<s>", 1)))


def weights(directory: Path) -> None:
    cache = read_index(directory / "mlc")
    for name in cache.records:
        cache.array(name)


def library(directory: Path) -> None:
    lib = read_lib(directory / "mlc/lib.so")
    check_functions(lib.functions, lib.metadata, lib.path)
    limits(lib.metadata, directory / "mlc")


def metadata(directory: Path) -> None:
    mlc = directory / "mlc"
    limits(parse_metadata((mlc / "metadata.json").read_bytes(), mlc), mlc)


def limits(found: Any, mlc: Path) -> None:
    check_runnable(found, mlc)
    check_cpu(found, mlc)
    for mode in ("local", "interactive", "server"):
        plan_limits(found, ChatConfig.load(mlc), mode, EngineConfig())
    check_lib(found, mlc)


def records(directory: Path) -> None:
    conversation = ChatConfig.load(directory / "mlc").conv_template
    for record in draw(read_records(directory / "records.json"), 3, 0):
        tokenize(record, conversation, lambda text: [len(text)], 64)


def recipe(directory: Path) -> None:
    BuildJob.from_recipe(directory / "recipe.yml", model_dir="m", output="o")


def whole(directory: Path) -> None:
    inspect_artifact(directory / "mlc")
    report = check_artifact(CheckJob(directory / "mlc"))
    if not report.passed:
        raise ArtifactError(next(check.detail for check in report.checks if not check.passed))


def template_file(directory: Path) -> None:
    files = replace(TokenizerFiles.read(directory / "hf"), settings=TokenizerConfig())
    _ = files.chat_template


def one_template(data: bytes, rng: random.Random) -> bytes:
    return damaged_bytes(rng.choice(data.split(b"\0")), rng)


DOORS = (
    Door("tokenizer_config", "hf/tokenizer_config.json", as_json, tokenizer, 15),
    Door("special tokens", "hf/special_tokens_map.json", as_json, tokenizer, 5),
    Door("tokenizer", "hf/tokenizer.json", as_json, engine_tokenizer, 4),
    Door("template file", "hf/chat_template.json", as_json, template_file, 3),
    Door("config", "hf/config.json", as_json, configure, 10),
    Door("generation config", "hf/generation_config.json", as_json, configure, 5),
    Door("chat config", "mlc/mlc-chat-config.json", as_json, configured, 20),
    Door("template", "template.jinja", one_template, template, 10),
    Door("index", "mlc/tensor-cache.json", as_json, weights, 20),
    Door("index in check", "mlc/tensor-cache.json", as_json, whole, 3),
    Door("chat config in check", "mlc/mlc-chat-config.json", as_json, whole, 3),
    Door("lib", "mlc/lib.so", damaged_bytes, library, 10),
    Door("metadata", "mlc/metadata.json", as_json, metadata, 10),
    Door("records", "records.json", as_json, records, 10),
    Door("recipe", "recipe.yml", damaged_bytes, recipe, 4),
)


@contextmanager
def keep_children() -> Iterator[None]:
    """Children stay from one mutant to the next; a real run gives each back."""
    child = tokenizer_backend._child(tokenizer_backend.MEMORY)
    close = child.close
    child.close = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        child.close = close  # type: ignore[method-assign]
        child.close()
