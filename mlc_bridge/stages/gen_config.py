"""Stage 1, ``gen-config``: ``mlc-chat-config.json`` and the tokenizer files of an MLC directory.

Reads config.json, generation_config.json, the tokenizer files and the chat template; what the
weights have to say is ``recognise``'s answer, the same that convert gets. Without weights beside
the config, ``quantization`` must be named. Values come in MLC's order: command line,
generation_config.json, config.json, MLC's defaults. Everything is worked out before the first file
is written, the config last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mlc_bridge import __version__
from mlc_bridge.artifact.chat_config import CONFIG_NAME, GENERATION_DEFAULTS, ChatConfig
from mlc_bridge.artifact.chat_template import ChatTemplate
from mlc_bridge.artifact.conv_template import Derived, derive
from mlc_bridge.artifact.conversation import Conversation, template
from mlc_bridge.artifact.tokenizer_files import COPIED, TokenizerFiles
from mlc_bridge.artifact.workspace import Workspace, refuse_overlap, told
from mlc_bridge.errors import ConfigError
from mlc_bridge.record import Record
from mlc_bridge.stages import wishes
from mlc_bridge.stages.door import door
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import (
    Model,
    Recognised,
    describe,
    has_weights,
    home_of,
    read_config,
    recognise,
)
from mlc_bridge.stages.text_part import text_config


@dataclass(frozen=True)
class GenConfigJob(Record):
    """What to write where; sizes are in tokens, None means the checkpoint's own value."""

    model_dir: wishes.CheckpointPath
    output: wishes.Output
    quantization: wishes.Quantization = "auto"
    conv_template: wishes.ConvTemplate = "auto"
    source: wishes.SourceWeights = None
    source_format: wishes.SourceFormat = "auto"
    requantize: wishes.Requantize = False
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
class GenConfigReport(Record):
    """What was written: the config, the tokenizer files, and what the user should know."""

    output: Annotated[Path, "Directory written."]
    config: Annotated[ChatConfig, "What mlc-chat-config.json says."]
    source: Annotated[str | None, "Source format of the weights; none without weights."]
    prompts_proven_equal: Annotated[int, "Prompts equal to those of the checkpoint's own template."]
    files: Annotated[tuple[str, ...], "Tokenizer files written."]
    notes: Annotated[tuple[str, ...], "What the user should know."]


@door
def gen_config(job: GenConfigJob, progress: Progress = silent) -> GenConfigReport:
    """Write the config and tokenizer files of ``job.output``.

    Raises ``SourceError``, ``ConfigError`` or ``CannotExpress`` for the checkpoint, and
    ``ArtifactError`` when the output cannot be written; then nothing is left behind.
    """
    if (job.tensor_parallel_shards or 1) != 1:
        raise ConfigError(
            wishes.ONE_DEVICE,
            where="tensor_parallel_shards",
            found=job.tensor_parallel_shards,
            expected=1,
        )
    directory = _checkpoint_dir(job)
    hf = text_config(read_config(directory))
    tokenizer = TokenizerFiles.read(directory)
    model = _model(job)
    derived = _conversation(job, directory, hf, tokenizer)
    chat = _chat_config(model, derived.conversation)
    chat = _generation_values(chat, directory, hf).model_copy(
        update={
            "tokenizer_files": list(tokenizer.names),
            "tokenizer_info": tokenizer.info,
            "active_vocab_size": active_vocab_size(
                model.config.vocab_size, (*tokenizer.ids, *derived.conversation.stop_token_ids)
            ),
        }
    )
    progress("config", 1, 2)
    _publish(Path(job.output), tokenizer, chat)
    progress("config", 2, 2)
    return GenConfigReport(
        Path(job.output),
        chat,
        model.source.name if isinstance(model, Recognised) else None,
        derived.proven,
        tokenizer.names,
        (*_told(model), *tokenizer.notes, *derived.notes, *_stop_notes(chat)),
    )


def active_vocab_size(vocab_size: int, ids: Iterable[int]) -> int:
    """The highest id that the model can give, plus one: what follows is padding.

    Not the number of tokens: ids may have holes, and what ends an answer often stands behind them.
    """
    return max((i for i in ids if 0 <= i < vocab_size), default=vocab_size - 1) + 1


def _checkpoint_dir(job: GenConfigJob) -> Path:
    directory = home_of(job.model_dir)
    refuse_overlap(job.output, directory, job.source)
    return directory


def _model(job: GenConfigJob) -> Model:
    """The model at the sizes that were asked for, recognised where there are weights."""
    limits = {"max_batch_size": 128, **job.limits()}
    if job.source is None and not has_weights(job.model_dir):
        model = describe(job.model_dir, job.quantization, limits)
    else:
        model = recognise(
            job.model_dir,
            job.source,
            job.source_format,
            job.quantization,
            requantize=job.requantize,
            limits=limits,
        )
    for name in job.limits():
        if name not in model.config.asdict():
            raise ConfigError(f"{model.arch.name} has no {name}", todo=f"Leave out --{_flag(name)}")
    return model


def _told(model: Model) -> tuple[str, ...]:
    return model.notes if isinstance(model, Recognised) else ()


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


def _chat_config(model: Model, conversation: Conversation) -> ChatConfig:
    block = model.config.asdict()
    stamp = {"version": __version__, "fingerprint": model.fingerprint}
    return ChatConfig.model_validate(
        {
            "model_type": model.arch.name,
            "quantization": model.scheme.name,
            "model_config": block,
            "vocab_size": model.config.vocab_size,
            "context_window_size": block.get("context_window_size", -1),
            "sliding_window_size": -1,  # a window is a mask in our lib; else MLC's cache rolls too
            "prefill_chunk_size": model.config.prefill_chunk_size,
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


def _read_json(path: Path) -> dict[str, Any]:
    return read_config(path.parent, path.name) if path.is_file() else {}
