"""Commands made from Jobs: each field of a stage's frozen Job becomes one flag.

A flag that is not given is left out, so defaults live in the Job alone. The first field is the
command's argument, ``output`` is ``-o/--output``, and a ``bool`` is a switch.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

HELP = {
    "model_dir": "Checkpoint directory, or a hub id org/name[@revision].",
    "output": "Where to write.",
    "quantization": "Scheme under MLC's name; auto keeps the checkpoint as it is.",
    "conv_template": "MLC's template name; auto derives it from the checkpoint and proves it.",
    "source": "Weights that lie elsewhere: directory, file or index.",
    "source_format": "Source format; auto looks at config and tensors.",
    "requantize": "Allow rounding into the scheme where it cannot hold a weight exactly.",
    "context_window_size": "Tokens of prompt and answer together.",
    "sliding_window_size": "Tokens of the sliding attention window.",
    "prefill_chunk_size": "Tokens of the prompt that are computed at once.",
    "attention_sink_size": "Tokens kept at the start of a sliding window.",
    "max_batch_size": "Sequences computed together.",
    "tensor_parallel_shards": "Devices that share one model.",
    "device": "Device to compile for: auto, cpu, cuda.",
    "target": "Target of another machine, as JSON or a tag; overrides --device.",
    "checkpoint": "What the model was made from: directory or hub id.",
    "text": "Text file to read; default is some of Python's own library.",
    "tokens": "Positions to compare.",
    "window": "Tokens of one window.",
    "max_kl": "KL divergence (nats) that still passes.",
    "prompt_tokens": "Tokens of the prompt.",
    "decode_tokens": "Tokens to decode.",
    "batch": "Sequences decoded together.",
    "repeats": "Runs of each measurement.",
    "backend": "embedded, or mlc_llm: MLC LLM's own tools.",
    "cache": "Take an equal library from the user's cache, and keep a new one there.",
    "dump": "Directory for the module after each phase.",
    "threads": "Threads to use.",
    "model_lib": "Compiled library; default is lib.so in the model directory.",
    "dataset": "Calibration data: ShareGPT JSON, JSONL or plain text.",
    "calibration_dataset": "Data for FP8 activation scales: ShareGPT JSON, JSONL or plain text.",
    "mode": "forced runs prompts with their answers; generate lets the model answer.",
    "observer": "How to read the scale off what was seen: max, percentile, mse.",
    "num_calibration_samples": "Samples to take from it.",
    "md5": "Write the shards' md5; by default only for small models.",
    "seed": "Seed of all randomness.",
}


def job_command(
    job: type,
    run: Callable[[dict[str, Any]], None],
    doc: str,
    more: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A typer command whose flags are the fields of ``job``; ``run`` gets those that were given.

    ``more``: further text flags and their help. With ``config`` among them (a recipe) nothing else
    must be given.
    """
    more = more or {}
    recipe = "config" in more
    hints = get_type_hints(job)
    fields = dataclasses.fields(job)

    def command(**values: Any) -> None:
        run({name: value for name, value in values.items() if value is not None})

    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if _needed(field) and not recipe else None,
            annotation=_annotation(field, hints[field.name], first=field is fields[0]),
        )
        for field in fields
    ]
    for name, text in more.items():
        hint = Annotated[str | None, typer.Option(f"--{name}", help=text, show_default=False)]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=None, annotation=hint))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = doc
    return command


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _annotation(field: dataclasses.Field[Any], hint: Any, *, first: bool) -> Any:
    wanted = _plain(hint) | None
    text = HELP.get(field.name, "")
    if first:
        return Annotated[wanted, typer.Argument(help=text, show_default=False)]
    if not _needed(field) and field.default not in (None, False, True):
        text = f"{text} [default: {field.default}]".strip()
    flag = f"--{field.name.replace('_', '-')}"
    if hint == bool | None or field.default is True:  # where "no" must be sayable
        flag = f"{flag}/--no-{flag[2:]}"
    names = ("-o", flag) if field.name == "output" else (flag,)
    return Annotated[wanted, typer.Option(*names, help=text, show_default=False)]


def _plain(hint: Any) -> Any:
    """The type typer shall parse: of a union the simplest member, paths and literals as text."""
    if get_origin(hint) in (types.UnionType,) or "Union" in str(get_origin(hint)):
        members = [a for a in get_args(hint) if a is not type(None)]
        return str if str in members else _plain(members[0])
    return hint if hint in (bool, int, float, str, Path) else str
