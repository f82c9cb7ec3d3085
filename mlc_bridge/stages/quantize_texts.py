"""Calibration text as token ids: whole samples, or all text joined and cut into equal ones.

Chats pass through the checkpoint's own chat template where it has one (and the recipe does not say
otherwise); a note tells which it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlc_bridge.artifact.chat_template import ChatTemplate, own_template
from mlc_bridge.artifact.tokenizer_files import TokenizerFiles
from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.heldout import WINDOW
from mlc_bridge.quantizers.recipe import Calibration
from mlc_bridge.stages.calibration_data import Record, draw, read_records


def texts(
    dataset: str | Path | None, how: Calibration, tokenizer: TokenizerFiles
) -> tuple[tuple[tuple[int, ...], ...], list[str]]:
    """Samples of token ids, and notes. Raises ConfigError without data or text."""
    if dataset is None:
        raise ConfigError(
            "this recipe looks at activations and there is no calibration data",
            where="quantize",
            todo="Give --dataset FILE (ShareGPT JSON, JSONL or plain text)",
        )
    records = read_records(dataset)
    template = own_template(tokenizer.directory) if how.template else None
    encoded = (tokenizer.encode(_text(r, template)) for r in draw(records, len(records), how.seed))
    notes = [f"chats of the data set {'passed through' if template else 'did not pass through'} "
             "the model's chat template"] if any(r.turns for r in records) else []  # fmt: skip
    if not how.join:
        chosen = draw(records, how.samples, how.seed)
        samples = [tuple(tokenizer.encode(_text(r, template))[: how.length]) for r in chosen]
        samples = [s for s in samples if s]
    else:
        samples = _cut(encoded, how)
    if not samples:
        raise ConfigError("the data set is shorter than one sample", where=dataset,
                          expected=f"{how.length} tokens")  # fmt: skip
    if len(samples) < how.samples:
        notes.append(f"the data set gives {len(samples)} samples of {how.samples} wanted")
    return tuple(samples), notes


def windows(heldout: str | Path, tokenizer: TokenizerFiles) -> tuple[tuple[int, ...], ...]:
    """A text in windows of ``WINDOW`` predictions, the last one shorter."""
    # Plain text comes in pieces: encoded as one, or tokens would break where it was cut.
    ids = tokenizer.encode("".join(_text(r, None) for r in read_records(heldout)))
    cut = (tuple(ids[i : i + WINDOW + 1]) for i in range(0, len(ids) - 1, WINDOW))
    return tuple(w for w in cut if len(w) > 1)


def _cut(encoded: Iterable[list[int]], how: Calibration) -> list[tuple[int, ...]]:
    """All texts end to end, in pieces of one length; what is left over is dropped."""
    wanted, ids = how.samples * how.length, list[int]()
    for text in encoded:
        ids += text
        if len(ids) >= wanted:
            break
    count = min(len(ids) // how.length, how.samples)
    return [tuple(ids[i * how.length : (i + 1) * how.length]) for i in range(count)]


def _text(record: Record, template: ChatTemplate | None) -> str:
    if not record.turns:
        return record.text
    if template is None:
        return "\n".join(content for _, content in record.turns)
    messages = [{"role": role, "content": content} for role, content in record.turns]
    return template.render(messages)
