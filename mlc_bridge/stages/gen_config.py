"""Stage 1, ``gen-config``: ``mlc-chat-config.json`` and the tokenizer files of an MLC directory.

Reads config.json, generation_config.json, the tokenizer files and the chat template; of the
weights only headers (which layers are float) and, for ``quantization="auto"``, one layer of every
kind. Values come in MLC's order: command line, generation_config.json, config.json, MLC's defaults.
Everything is worked out before the first file is written, the config last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mlc_bridge import __version__
from mlc_bridge.artifact.chat_config import CONFIG_NAME, GENERATION_DEFAULTS, ChatConfig
from mlc_bridge.artifact.chat_template import ChatTemplate
from mlc_bridge.artifact.conv_template import Derived, derive
from mlc_bridge.artifact.conversation import Conversation, template
from mlc_bridge.artifact.manifest import fingerprint
from mlc_bridge.artifact.tokenizer_files import COPIED, TokenizerFiles
from mlc_bridge.artifact.workspace import Workspace, refuse_overlap, told
from mlc_bridge.errors import ConfigError, SourceError
from mlc_bridge.models import MODELS, Arch, ModelConfig
from mlc_bridge.models.arch import parameters
from mlc_bridge.schemes import SCHEMES, Scheme
from mlc_bridge.sources import Checkpoint, Source, detect
from mlc_bridge.sources.hub import resolve
from mlc_bridge.stages import wishes
from mlc_bridge.stages.choose_scheme import choose_scheme
from mlc_bridge.stages.float_layers import float_layers
from mlc_bridge.stages.progress import Progress, silent


@dataclass(frozen=True)
class GenConfigJob:
    """What to write where; sizes are in tokens, None means the checkpoint's own value."""

    model_dir: wishes.CheckpointPath
    output: wishes.Output
    quantization: wishes.Quantization = "auto"
    conv_template: wishes.ConvTemplate = "auto"
    source: wishes.SourceWeights = None
    source_format: wishes.SourceFormat = "auto"
    context_window_size: wishes.ContextWindow = None
    sliding_window_size: wishes.SlidingWindow = None
    prefill_chunk_size: wishes.PrefillChunk = None
    attention_sink_size: wishes.AttentionSink = None
    max_batch_size: wishes.MaxBatch = None
    tensor_parallel_shards: Annotated[int | None, "Devices that share one model."] = None

    def limits(self) -> dict[str, int]:
        """The sizes that were given."""
        names = (
            "context_window_size",
            "sliding_window_size",
            "prefill_chunk_size",
            "attention_sink_size",
            "max_batch_size",
            "tensor_parallel_shards",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class GenConfigReport:
    """What was written: the config, the tokenizer files, and what the user should know."""

    output: Path
    config: ChatConfig
    source: str | None
    prompts_proven_equal: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


def gen_config(job: GenConfigJob, progress: Progress = silent) -> GenConfigReport:
    """Write the config and tokenizer files of ``job.output``.

    Raises ``SourceError``, ``ConfigError`` or ``CannotExpress`` for the checkpoint, and
    ``ArtifactError`` when the output cannot be written; then nothing is left behind.
    """
    directory = _checkpoint_dir(job)
    hf = _read_json(directory / "config.json", required=True)
    arch = _arch(hf, directory)
    tokenizer = TokenizerFiles.read(directory)
    config, scheme, source = _graph(job, directory, hf, arch)
    derived = _conversation(job, directory, hf, tokenizer)
    chat = _chat_config(arch, config, scheme, derived.conversation)
    chat = _generation_values(chat, directory, hf).model_copy(
        update={
            "tokenizer_files": list(tokenizer.names),
            "tokenizer_info": tokenizer.info,
            "active_vocab_size": active_vocab_size(
                config.vocab_size, (*tokenizer.ids, *derived.conversation.stop_token_ids)
            ),
        }
    )
    progress("config", 1, 2)
    _publish(Path(job.output), tokenizer, chat)
    progress("config", 2, 2)
    return GenConfigReport(
        Path(job.output),
        chat,
        source.name if source else None,
        derived.proven,
        tokenizer.names,
        (*tokenizer.notes, *derived.notes, *_stop_notes(chat)),
    )


def active_vocab_size(vocab_size: int, ids: Iterable[int]) -> int:
    """The highest id that the model can give, plus one: what follows is padding.

    Not the number of tokens: ids may have holes, and what ends an answer often stands behind them.
    """
    return max((i for i in ids if 0 <= i < vocab_size), default=vocab_size - 1) + 1


def _checkpoint_dir(job: GenConfigJob) -> Path:
    path = resolve(job.model_dir)
    directory = path if path.is_dir() else path.parent
    refuse_overlap(job.output, directory, job.source)
    return directory


def _arch(hf: Mapping[str, Any], directory: Path) -> Arch:
    """The architecture; a multimodal checkpoint names its text model in ``text_config``."""
    named = [c.get("model_type") for c in (hf, hf.get("text_config") or {}) if c.get("model_type")]
    if not named:
        raise ConfigError("there is no model_type", where=directory / "config.json")
    return MODELS[next((str(n) for n in named if n in MODELS), str(named[0]))]


def _graph(
    job: GenConfigJob, directory: Path, hf: Mapping[str, Any], arch: Arch
) -> tuple[ModelConfig, Scheme, Source | None]:
    """Config, scheme and source; float layers are known only where the weights lie beside."""
    limits = {"max_batch_size": 128, **job.limits()}
    config = arch.config(hf, **limits)
    for name in job.limits():
        if name not in config.asdict():
            raise ConfigError(f"{arch.name} has no {name}", todo=f"Leave out --{_flag(name)}")
    ckpt = _open(job, directory)
    if ckpt is None:
        if job.quantization == "auto":
            raise SourceError(
                "no weights here to choose a scheme from",
                where=directory,
                todo="Name one with --quantization",
            )
        return config, SCHEMES[job.quantization], None
    source = detect(ckpt, job.source_format)
    weights = arch.weights(config)
    scheme = (
        choose_scheme(ckpt, source, weights)
        if job.quantization == "auto"
        else SCHEMES[job.quantization]
    )
    left = float_layers(ckpt, source, weights)
    return arch.config(hf, **limits, float_layers=left) if left else config, scheme, source


def _open(job: GenConfigJob, directory: Path) -> Checkpoint | None:
    if job.source is not None:
        return Checkpoint.open(resolve(job.source), config_dir=directory)
    weights = ("*.safetensors", "*.bin", "*.pt")
    return Checkpoint.open(directory) if any(any(directory.glob(w)) for w in weights) else None


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _conversation(
    job: GenConfigJob, directory: Path, hf: Mapping[str, Any], tokenizer: TokenizerFiles
) -> Derived:
    if job.conv_template != "auto":
        return Derived(template(job.conv_template), proven=0)
    if tokenizer.chat_template is None:
        raise ConfigError(
            "the checkpoint has no chat template to derive one from",
            where=directory,
            expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            todo="Name one of MLC's templates with --conv-template; LM continues plain text",
        )
    derived = derive(
        ChatTemplate(
            tokenizer.chat_template,
            tokenizer.special_tokens,
            tokenizer.bos,
            tokenizer.encode,
            directory / "chat template",
        )
    )
    generation = _read_json(directory / "generation_config.json")
    stops = dict.fromkeys((*_ids(generation), *_ids(hf), *tokenizer.stop_ids(derived.conversation)))
    conversation = derived.conversation.model_copy(
        update={
            "stop_token_ids": list(stops),
            "stop_str": tokenizer.stop_strings(derived.conversation),
        }
    )
    return Derived(conversation, derived.proven, derived.notes)


def _ids(config: Mapping[str, Any]) -> list[int]:
    """``eos_token_id``: one, several or none."""
    found = config.get("eos_token_id")
    return list(found) if isinstance(found, list) else [] if found is None else [int(found)]


def _chat_config(
    arch: Arch, config: ModelConfig, scheme: Scheme, conversation: Conversation
) -> ChatConfig:
    block = config.asdict()
    stored = [
        (f"{weight.path}.{suffix}", spec.shape, spec.dtype)
        for weight in arch.weights(config)
        for suffix, spec in parameters(weight, scheme, config.float_layers).items()
    ]
    stamp = {"version": __version__, "fingerprint": fingerprint(arch.name, block, stored)}
    return ChatConfig.model_validate(
        {
            "model_type": arch.name,
            "quantization": scheme.name,
            "model_config": block,
            "vocab_size": config.vocab_size,
            "context_window_size": block.get("context_window_size", -1),
            "sliding_window_size": -1,  # a window is a mask in our lib; else MLC's cache rolls too
            "prefill_chunk_size": config.prefill_chunk_size,
            "attention_sink_size": block.get("attention_sink_size", -1),
            "tensor_parallel_shards": block.get("tensor_parallel_shards", 1),
            "pipeline_parallel_stages": block.get("pipeline_parallel_stages", 1),
            "conv_template": conversation,
            "mlc_bridge": stamp,
        }
    )


def _generation_values(chat: ChatConfig, directory: Path, hf: Mapping[str, Any]) -> ChatConfig:
    """Sampling defaults and special ids: generation_config.json, config.json, MLC's defaults."""
    places = (_read_json(directory / "generation_config.json"), hf, GENERATION_DEFAULTS)
    found = {
        key: next(p[key] for p in places if p.get(key) is not None) for key in GENERATION_DEFAULTS
    }
    return chat.model_copy(update=found)


def _stop_notes(chat: ChatConfig) -> list[str]:
    conversation = chat.conv_template
    eos = _ids({"eos_token_id": chat.eos_token_id})
    if not conversation.stop_token_ids and not conversation.stop_str:
        return ["nothing ends an answer but max_tokens: no stop token is known"]
    missing = [i for i in eos if i not in conversation.stop_token_ids]
    if missing and not conversation.stop_str:
        return [
            f"template {conversation.name} stops at tokens {conversation.stop_token_ids}, but this "
            f"checkpoint ends with {missing}; consider --conv-template auto"
        ]
    return []


def _publish(output: Path, tokenizer: TokenizerFiles, chat: ChatConfig) -> None:
    """All files at once; those of an earlier tokenizer go."""
    with Workspace(output, (CONFIG_NAME, *COPIED)) as space, told(output):
        tokenizer.write(space.temp)
        chat.save(space.temp)
        space.publish(CONFIG_NAME, stale=COPIED)


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    if not path.is_file() and not required:
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "no such file", where=path, todo="Give a directory that holds a Hugging Face model"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as JSON: {error}", where=path) from error
    if not isinstance(found, dict):
        raise ConfigError("must hold a JSON object", where=path)
    return found
