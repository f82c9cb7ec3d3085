"""``inspect`` and ``check`` of an MLC directory: config, weights, lib, and whether they agree.

``inspect`` shows what is there even where parts are missing. ``check`` goes through everything an
engine needs, in the order in which it would need it: most of these mistakes let MLC's engine hang
or crash, here each is a line with its reason. Neither runs a line of the directory's code: the lib
is read as a file (``artifact/lib_file.py``), and loaded only on wish.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.lib_file import read_lib
from mlc_bridge.artifact.place import model_directory
from mlc_bridge.artifact.stamp import stamp_of
from mlc_bridge.artifact.tensor_cache import INDEX, TensorCache, read_index
from mlc_bridge.artifact.tokenizer_files import TokenizerFiles
from mlc_bridge.engine.library import (
    check_lib_file,
    find_library,
    loaded_metadata,
    open_library,
)
from mlc_bridge.errors import ArtifactError, BridgeError
from mlc_bridge.record import Record
from mlc_bridge.stages import wishes
from mlc_bridge.stages.certificate import certificate_said
from mlc_bridge.stages.check_bytes import files_said, weights_said
from mlc_bridge.stages.compare_weights import compare_weights
from mlc_bridge.stages.door import door
from mlc_bridge.stages.located import located
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import detected, open_checkpoint

T = TypeVar("T")


@dataclass(frozen=True)
class CheckJob(Record):
    """``model_dir``: an MLC directory; ``md5`` reads every byte that has a digest or md5 sum.

    ``checkpoint``: what it was made from, to compare every weight with.
    """

    model_dir: wishes.ArtifactPath
    model_lib: wishes.ModelLib = None
    device: wishes.RunDevice = "auto"
    md5: Annotated[bool, "Read every byte that has a digest or md5 sum, and compare."] = True
    load_lib: wishes.LoadLib = False
    deep: Annotated[
        bool, "Compare the files of the checkpoint that it was made from with their digests too."
    ] = False
    checkpoint: Annotated[
        str | Path | None, "Compare every weight with this checkpoint: directory or hub id."
    ] = None


@dataclass(frozen=True)
class Check(Record):
    """One question; ``detail`` is the answer or the reason of the failure."""

    name: Annotated[str, "What was asked."]
    passed: Annotated[bool, "Whether it holds."]
    detail: Annotated[str, "The answer, or the reason of the failure."]


@dataclass(frozen=True)
class CheckReport(Record):
    model_dir: Annotated[Path, "Directory that was checked."]
    passed: Annotated[bool, "Whether all holds."]
    checks: Annotated[tuple[Check, ...], "Every question with its answer."]


@dataclass(frozen=True)
class ArtifactReport(Record):
    """What an MLC directory holds; ``dtypes`` is dtype -> (parameters, bytes on disk)."""

    path: Annotated[Path, "Directory."]
    model_type: Annotated[str | None, "Architecture."]
    quantization: Annotated[str | None, "Scheme."]
    conv_template: Annotated[str | None, "Conversation template."]
    context_window_size: Annotated[int | None, "Tokens of prompt and answer together."]
    n_params: Annotated[int, "Parameters (arrays)."]
    nbytes: Annotated[int, "Bytes of all parameters."]
    bits_per_param: Annotated[float | None, "Bits for each logical weight, scales included."]
    dtypes: Annotated[Mapping[str, tuple[int, int]], "dtype -> (parameters, bytes on disk)."]
    fingerprints: Annotated[
        Mapping[str, str | None], "Graph's hash in config, weights and library."
    ]
    lib: Annotated[Mapping[str, Any], "What the library says of itself, without its parameters."]
    findings: Annotated[tuple[str, ...], "What is missing or unreadable."]


def is_artifact(model: str | Path) -> bool:
    """Whether ``model`` looks like an MLC directory rather than a checkpoint."""
    path = Path(model)
    path = path.parent if path.name == CONFIG_NAME else path
    return (path / CONFIG_NAME).is_file() or (path / INDEX).is_file()


def inspect_artifact(directory: str | Path, *, load_lib: bool = False) -> ArtifactReport:
    """Look at an MLC directory; what is missing or unreadable becomes a finding.

    The lib is read, not run, unless ``load_lib`` says so.
    """
    path = model_directory(directory)
    findings: list[str] = []
    config = _tried(lambda: ChatConfig.load(path), findings)
    cache = _tried(lambda: read_index(path), findings)
    lib = _tried(lambda: _lib_metadata(path, load_lib), findings) or {}
    records = list(cache.records.values()) if cache else []
    dtypes: dict[str, tuple[int, int]] = {}
    for record in records:
        count, nbytes = dtypes.get(record.dtype, (0, 0))
        dtypes[record.dtype] = (count + 1, nbytes + record.nbytes)
    metadata = dict(cache.metadata) if cache else {}
    return ArtifactReport(
        path=path,
        model_type=config.model_type if config else None,
        quantization=config.quantization if config else None,
        conv_template=config.conv_template.name if config else None,
        context_window_size=config.context_window_size if config else None,
        n_params=len(records),
        nbytes=sum(record.nbytes for record in records),
        bits_per_param=metadata.get("BitsPerParam"),
        dtypes=dtypes,
        fingerprints={
            "config": config.fingerprint if config else None,
            "weights": stamp_of(metadata, path).fingerprint,
            "lib": stamp_of(lib, path).fingerprint,
        },
        lib={key: value for key, value in lib.items() if key != "params"},
        findings=tuple(findings),
    )


@door
def check_artifact(job: CheckJob, progress: Progress = silent) -> CheckReport:
    """Everything an engine needs, each with its answer; never raises for what it finds."""
    job = located(job)
    path = Path(job.model_dir)
    checks: list[Check] = []
    for done, (name, question) in enumerate(steps := tuple(_questions(job, path))):
        progress("check", done, len(steps))
        try:
            checks.append(Check(name, True, question()))
        except BridgeError as error:
            checks.append(Check(name, False, str(error)))
    progress("check", len(steps), len(steps))
    return CheckReport(path, all(check.passed for check in checks), tuple(checks))


def _questions(job: CheckJob, path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "config", lambda: _config_said(ChatConfig.load(path))
    yield "tokenizer", lambda: _tokenizer_said(path)
    yield "weights", lambda: weights_said(read_index(path), job.md5)
    yield "files", lambda: files_said(path, job.md5)
    yield "numbers", lambda: _numbers_said(read_index(path))
    yield "certificate", lambda: certificate_said(path, job.deep)
    yield "config and weights", lambda: _same_build(ChatConfig.load(path), read_index(path))
    yield "lib", lambda: _lib_said(job, path)
    if (made_from := job.checkpoint) is not None:
        yield "weights and checkpoint", lambda: _compared(path, made_from)


def _compared(path: Path, checkpoint: str | Path) -> str:
    found = compare_weights(path, *detected(open_checkpoint(checkpoint)))
    if not found.passed:
        raise ArtifactError(f"not the checkpoint's weights: {found.verdict}", where=path)
    return found.verdict


def _config_said(config: ChatConfig) -> str:
    block = config.arch_config
    for key in ("vocab_size", "prefill_chunk_size"):
        if block.get(key) != getattr(config, key):
            raise ArtifactError(
                f"{key} differs between model_config and the top level",
                where=CONFIG_NAME,
                found=f"{block.get(key)} and {getattr(config, key)}",
            )
    conversation = config.conv_template
    if not conversation.stop_str and not conversation.stop_token_ids:
        raise ArtifactError("nothing ends an answer: no stop token is known", where=CONFIG_NAME)
    return f"{config.model_type}, {config.quantization}, template {conversation.name}"


def _tokenizer_said(path: Path) -> str:
    files = TokenizerFiles.read(path)
    if "tokenizer.json" not in files.names:
        raise ArtifactError("no tokenizer.json", where=path)
    vocab = ChatConfig.load(path).vocab_size
    said = f"{len(files.ids)} tokens for a vocabulary of {vocab}"
    beyond = {i: token for i, token in files.ids.items() if i >= vocab}
    if ordinary := sorted(beyond.keys() - files.added):
        raise ArtifactError(
            "ordinary text gives ids that the model does not have: another model's tokenizer",
            where=path,
            found=f"{beyond[ordinary[0]]!r} is {ordinary[0]}",
            expected=f"ids below {vocab}",
        )
    if not beyond:
        return said
    first = min(beyond)
    # gemma-3's text models bring such a one: <image_soft_token>.
    return (
        f"{said}; {len(beyond)} beyond it ({beyond[first]!r} is {first}), which the model cannot "
        "give and a prompt must not hold"
    )


def _numbers_said(cache: TensorCache) -> str:
    """Scales and other float parameters hold finite numbers (weights of 16 bits are not read)."""
    seen = 0
    for name in cache.records:
        if "scale" not in name.rpartition(".")[2]:
            continue
        seen += 1
        if not np.isfinite(cache.array(name).astype(np.float32)).all():
            raise ArtifactError(
                "scales that are not finite numbers",
                where=name,
                todo="Run mlc-bridge calibrate, or convert again",
            )
    return f"{seen} scale tensors are finite"


def _same_build(config: ChatConfig, cache: TensorCache) -> str:
    weights = stamp_of(cache.metadata, cache.directory).fingerprint
    if config.fingerprint is None or weights is None:
        return "no fingerprints to compare (written by MLC LLM)"
    if config.fingerprint != weights:
        raise ArtifactError(
            "config and weights come from different builds",
            where=cache.directory,
            found=weights[:12],
            expected=config.fingerprint[:12],
            todo="Run gen-config and convert again with the same checkpoint and scheme",
        )
    return f"the same build ({weights[:12]})"


def _lib_said(job: CheckJob, path: Path) -> str:
    place = find_library(path, job.model_lib)
    size = f"{place.name} ({os.path.getsize(place) / 1e6:.2f} MB)"
    if job.load_lib:
        library = open_library(place, path, job.device)
        return f"{size} runs on {library.device} and fits"
    lib = read_lib(place)
    check_lib_file(lib, path, job.device)
    return f"{size} says that it runs on {lib.device} and fits; it was read, not loaded"


def _lib_metadata(path: Path, load_lib: bool) -> dict[str, Any]:
    """``_metadata`` of the lib, whether or not it fits the weights."""
    place = find_library(path, None)
    metadata = loaded_metadata(place) if load_lib else read_lib(place).metadata
    return {"file": place.name, "nbytes": place.stat().st_size, **metadata}


def _tried(look: Callable[[], T], findings: list[str]) -> T | None:
    try:
        return look()
    except BridgeError as error:
        findings.append(str(error))
    return None
