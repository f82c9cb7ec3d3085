"""The certificate of a model: sections of its ``mlc-bridge.json``, each by the stage that knows.

::

    "made_from": the checkpoint's files with their digests, source format, scheme by layer,
                 what was rounded and by how much, the job, versions
    "compiled":  target, versions; the library's digest stands under "files"
    "verified":  what ``verify`` found, over which text, with which versions and on which machine,
                 and the digests of the very weights and library that it read

So the chain goes from the hash of the file that came in to the answers that go out, and ``check``
says which links still hold. There is no date and no output path in it: the same job makes the same
bytes. XXH3 proves against accidents, not against an adversary; see ``artifact/inventory.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mlc_bridge.artifact.inventory import INDEX, INVENTORY, LIB_NAME, Entry, Inventory
from mlc_bridge.artifact.json_text import checked
from mlc_bridge.errors import ArtifactError
from mlc_bridge.record import Record
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages.recognise import Model, Recognised
from mlc_bridge.stages.weight_encoding import LayerError

Section = Literal["made_from", "compiled", "verified"]
Digests = Mapping[str, "Future[Entry]"]
REVISION = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")


class MadeFrom(BaseModel):
    """What is read back of the section; other keys are for people."""

    model_config = ConfigDict(extra="allow")

    checkpoint: str
    files: dict[str, Entry]
    quantization: str


class Verified(BaseModel):
    model_config = ConfigDict(extra="allow")

    passed: bool
    verdict: str
    files: dict[str, Entry]


@contextmanager
def digests_of(ckpt: Checkpoint) -> Iterator[Digests]:
    """The checkpoint's files are hashed by a thread while the weights are converted from them."""
    pool = ThreadPoolExecutor(1)
    try:
        yield {name: pool.submit(Entry.of, path) for name, path in _files(ckpt).items()}
    finally:
        pool.shutdown(cancel_futures=True)


def is_origin(ckpt: Checkpoint, directory: Path) -> bool:
    """Whether the model was made from these very files, as far as it says; reads them."""
    block = (Inventory.read(directory) or Inventory()).more.get("made_from")
    if block is None:
        return True
    made = checked(MadeFrom, block, f"{directory / INVENTORY}: made_from", ArtifactError)
    files = _files(ckpt)
    return {Path(n).name for n in files} == {Path(n).name for n in made.files} and all(
        Entry.of(path) in made.files.values() for path in files.values()
    )


def _files(ckpt: Checkpoint) -> dict[str, Path]:
    """Weights, config and index, by their names in the checkpoint."""
    files = {entry.file for entry in ckpt.entries.values()}
    files |= {ckpt.path / "config.json", *ckpt.path.glob("*.index.json")}
    there = sorted(path for path in files if path.is_file())
    return {path.name if path.parent == ckpt.path else str(path): path for path in there}


def made_from(
    plan: Recognised, job: Record, digests: Digests, errors: Iterable[LayerError]
) -> dict[str, Any]:
    """The section of ``convert``."""
    rounded = {e.layer: {"relative": e.relative, "max": e.max, "cosine": e.cosine} for e in errors}
    wish = {k: v for k, v in json.loads(job.to_json()).items() if k != "output" and v is not None}
    found = REVISION.search(f"{plan.ckpt.path}")
    return {
        "checkpoint": str(plan.ckpt.path),
        **({"revision": found[1]} if found else {}),
        "files": {n: f.result().model_dump(exclude_none=True) for n, f in digests.items()},
        "source_format": plan.source.name,
        "quantization": plan.scheme.name,
        "schemes": schemes_of(plan),
        "rounded": rounded,
        "left_out": sorted(plan.left_out),
        "job": wish,
        "versions": versions("mlc-bridge", "numpy", "ml_dtypes"),
    }


def schemes_of(model: Model) -> dict[str, list[str]]:
    """Scheme -> its weights, numbers as ``*`` where all of one name are alike."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for weight in model.weights:
        pattern = re.sub(r"\.\d+\.", ".*.", weight.path)
        alike = kinds.setdefault(pattern, {})
        alike.setdefault(model.scheme_of(weight).name, []).append(weight.path)
    found: dict[str, list[str]] = {}
    for pattern, alike in kinds.items():
        for scheme, paths in alike.items():
            found.setdefault(scheme, []).extend([pattern] if len(alike) == 1 else paths)
    return found


def verified(directory: Path, lib: Path, report: Record, text: str, **job: Any) -> dict[str, Any]:
    """The section of ``verify``: its report, and what it holds for."""
    found = json.loads(report.to_json())
    weights, behaviour = found.pop("weights"), found["behaviour"] or {}
    for detail in ("by_position", "worst"):
        behaviour.pop(detail, None)
    kept = ("verdict", "exact", "weights", "rounded", "scales_rounded")
    read = {INDEX: directory / INDEX, LIB_NAME: lib}
    return {
        "passed": found["passed"],
        "verdict": "; ".join(found["failures"]) or weights["verdict"],
        "weights": {key: weights[key] for key in kept},
        "behaviour": found["behaviour"],
        "text": {**job, "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "files": {n: Entry.of(p).model_dump() for n, p in read.items() if p.is_file()},
        "machine": machine(),
        "versions": versions("mlc-bridge", "apache-tvm", "torch", "transformers"),
    }


def write(directory: Path, section: Section, found: Mapping[str, Any]) -> bool:
    """Put one section in place of the one before; False in a directory that cannot be written, or
    that MLC LLM wrote."""
    listed = Inventory.read(directory)
    if listed is None or listed.unfinished:
        return False
    text = Inventory(listed.files, False, {**listed.more, section: dict(found)}).text()
    part = directory / f".{INVENTORY}.part"
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, directory / INVENTORY)
    except OSError:
        with suppress(OSError):
            part.unlink()
        return False
    return True


def inherited(directory: Path) -> dict[str, Any]:
    """What holds for a model made from that of ``directory`` too."""
    more = (Inventory.read(directory) or Inventory()).more
    return {"made_from": more["made_from"]} if "made_from" in more else {}


def certificate_said(directory: Path, deep: bool) -> str:
    """What of the certificate still holds. Raises ArtifactError for what does not: another
    checkpoint (``deep`` reads its files), or weights and library that verify rejected."""
    more = (Inventory.read(directory) or Inventory()).more
    where = directory / INVENTORY
    said = []
    if block := more.get("made_from"):
        made = checked(MadeFrom, block, f"{where}: made_from", ArtifactError)
        said.append(f"{made.quantization} from {made.checkpoint}: {_inputs_said(made, deep)}")
    if block := more.get("verified"):
        said.append(_verified_said(checked(Verified, block, f"{where}: verified", ArtifactError),
                                   directory))  # fmt: skip
    return "; ".join(said) or "none: made by MLC LLM or an older version"


def card_rows(directory: Path) -> Iterator[tuple[str, str]]:
    """What a model card says of the certificate: where the weights come from, what was measured."""
    more = (Inventory.read(directory) or Inventory()).more
    if made := more.get("made_from"):
        errors = [error["relative"] for error in made["rounded"].values()]
        worst = f"{len(errors)} matrices, RMS error {max(errors):.2%} at most" if errors else ""
        yield "made from", f"`{made['source_format']}` weights"
        yield "rounded", worst or "nothing: the checkpoint's values bit for bit"
    found = more.get("verified")
    if found and (said := found["behaviour"]) and _holds(found, directory):
        yield "KL to the checkpoint in float32", f"{said['kl']:.2g} nats"
        yield "same likeliest token", f"{said['top1']:.2%} of {said['tokens']} positions"
        ours, theirs = said["perplexity"], said["reference_perplexity"]
        yield "perplexity", f"{ours:.3f}, checkpoint {theirs:.3f}"
        yield "text", f"{found['text']['name']}"


def _holds(block: Mapping[str, Any], directory: Path) -> bool:
    found = checked(Verified, block, f"{directory / INVENTORY}: verified", ArtifactError)
    return found.passed and not _changed(found, directory)


def _changed(found: Verified, directory: Path) -> list[str]:
    """Files that are no longer those of the section."""
    now = {n: Entry.of(directory / n) for n in found.files if (directory / n).is_file()}
    return [name for name, entry in found.files.items() if now.get(name) != entry]


def _inputs_said(made: MadeFrom, deep: bool) -> str:
    home, count = Path(made.checkpoint), len(made.files)
    if not deep:
        return f"{count} files with digests, none was read"
    if not home.is_dir():
        return f"{count} files with digests, which are not here"
    for name, entry in made.files.items():
        path = home / name
        if not path.is_file() or Entry.of(path) != entry:
            raise ArtifactError(
                "the checkpoint is no longer the one that this model was made from",
                where=path,
                expected=f"{entry.nbytes} bytes, xxh3 {entry.xxh3_128}",
                todo="Convert again, or get that version of the checkpoint",
            )
    return f"{count} files are as they were"


def _verified_said(found: Verified, directory: Path) -> str:
    if changed := _changed(found, directory):
        return f"verified before {' and '.join(changed)} changed: verify it again"
    if not found.passed:
        raise ArtifactError(
            f"verify did not pass: {found.verdict}",
            where=directory,
            todo="Build it again and verify; what it found stands in mlc-bridge.json",
        )
    said = (found.model_extra or {}).get("behaviour") or {}
    numbers = f", KL {said['kl']:.3g}, top-1 {said['top1']:.2%}" if said else ""
    return f"verified: {found.verdict}{numbers}; weights and lib are those it read"


def versions(*names: str) -> dict[str, str]:
    """Of the packages that are here."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """System, architecture, and the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return " ".join(filter(None, (platform.system(), platform.machine(), name)))
