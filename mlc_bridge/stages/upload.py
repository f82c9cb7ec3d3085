"""``upload``: an MLC directory as a repository of the Hugging Face hub, with a model card.

Uploaded are the files that ``mlc-bridge.json`` lists, each compared with its digest before the
first byte leaves, in one commit: the repository holds the whole model or nothing of it. The
library stays here unless it is asked for, as it is made for one kind of machine. A README.md that
lies in the directory is taken as the card, else one is made of what is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlc_bridge import __version__
from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.inventory import INVENTORY, LIB_NAME, adopt
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import ArtifactError
from mlc_bridge.record import Record
from mlc_bridge.stages import wishes
from mlc_bridge.stages.certificate import card_rows
from mlc_bridge.stages.door import door
from mlc_bridge.stages.located import located
from mlc_bridge.stages.progress import Progress, silent

CARD = "README.md"


@dataclass(frozen=True)
class UploadJob(Record):
    """The token comes from HF_TOKEN or ``hf auth login``, as for every tool of the hub."""

    model_dir: wishes.ArtifactPath
    repo: Annotated[str, "Repository to write: org/name; made where there is none."]
    base_model: Annotated[str | None, "Repository the model was made from, for the card."] = None
    revision: Annotated[str | None, "Branch to write; default is the repository's main one."] = None
    private: Annotated[bool, "Make a new repository private."] = False
    with_lib: Annotated[bool, "Upload lib.so too, which is for one kind of machine."] = False


@dataclass(frozen=True)
class UploadReport(Record):
    """What went to the hub."""

    url: Annotated[str, "Commit that was made."]
    files: Annotated[tuple[str, ...], "Files of the commit."]
    nbytes: Annotated[int, "Bytes of the model's files."]


@door
def upload(job: UploadJob, progress: Progress = silent) -> UploadReport:
    """Upload a model. Raises ArtifactError for the directory, and for what the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi

    job = located(job)
    home = Path(job.model_dir)
    chat, names = ChatConfig.load(home), _files(home, job.with_lib)
    own_card = (home / CARD).is_file()
    card = (home / CARD).read_bytes() if own_card else model_card(job, chat, home).encode()
    added = [CommitOperationAdd(name, home / name) for name in names]
    added.append(CommitOperationAdd(CARD, card))
    progress("upload", 0, len(added))
    api = HfApi(library_name="mlc-bridge", library_version=__version__)
    try:
        api.create_repo(job.repo, private=job.private or None, exist_ok=True)
        commit = api.create_commit(
            job.repo, added, commit_message=f"{chat.quantization} by mlc-bridge {__version__}",
            revision=job.revision,
        )  # fmt: skip
    except Exception as error:  # its HTTP library was requests, is httpx, and changes again
        raise ArtifactError(
            "the hub does not take this model",
            where=job.repo,
            found=(str(error).strip().splitlines() or [type(error).__name__])[0],
            todo="Check the name and HF_TOKEN (it needs the right to write)",
        ) from error
    progress("upload", len(added), len(added))
    size = sum((home / name).stat().st_size for name in names)
    return UploadReport(commit.commit_url, (*names, CARD), size)


def _files(home: Path, with_lib: bool) -> list[str]:
    """The model's own files, whole and unchanged."""
    listed = adopt(home)
    read_index(home)
    if listed.unfinished:
        raise ArtifactError("a build of this model has not ended", where=home)
    names = [n for n in sorted(listed.files) if with_lib or not n.endswith((".so", ".dylib"))]
    if with_lib and LIB_NAME not in names:
        raise ArtifactError(
            "no compiled library to upload", where=home, todo="Run mlc-bridge compile first"
        )
    for name in names:
        listed.check(home, name)
    # The list itself describes files that may not go along.
    return [name for name in names if name != INVENTORY]


def model_card(job: UploadJob, chat: ChatConfig, home: Path) -> str:
    """README.md of the repository: YAML for the hub, then what it is and how to run it."""
    index = read_index(home)
    base = (
        f"base_model: {job.base_model}\nbase_model_relation: quantized\n" if job.base_model else ""
    )
    origin = f" of [{job.base_model}](https://hf.co/{job.base_model})" if job.base_model else ""
    size = sum(record.nbytes for record in index.records.values())
    proof = "".join(f"| {name} | {value} |\n" for name, value in card_rows(home))
    return f"""---
library_name: mlc-llm
pipeline_tag: text-generation
tags: [mlc-llm, {chat.model_type}, {chat.quantization}]
{base}---

# {job.repo.rpartition("/")[2]}

A model{origin} in the form of [MLC LLM](https://llm.mlc.ai), made by mlc-bridge {__version__}.

| | |
|---|---|
| architecture | {chat.model_type} |
| quantization | `{chat.quantization}` |
| weights | {len(index.records)} parameters, {size / 1e9:.2f} GB |
| context window | {chat.context_window_size} tokens |
| conversation template | `{chat.conv_template.name}` |
| fingerprint | `{chat.fingerprint or "none"}` |
{proof}
```
mlc-bridge compile HF://{job.repo} -o lib.so
mlc-bridge chat HF://{job.repo} --model-lib lib.so
```

`{CONFIG_NAME}`, the tokenizer and the weights are MLC LLM's own files; its tools read them too.
"""
