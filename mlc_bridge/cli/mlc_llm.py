"""MLC LLM's own command line, read word for word: ``mlc_llm X`` becomes ``mlc-bridge X``.

Commands and flags may be spelt with underscores or hyphens. A flag of MLC's that is ours too is
left alone. Each other one is a row of ``FLAGS`` and is one of

    renamed    ours has another name or form: ``--debug-dump D`` is ``--dump D``
    noted      it has no effect here; a line on stderr says what it does in MLC and why
    refused    what it asks for is not here; the error says what to do instead

``--overrides "a=1;b=2"`` is MLC's way to write further flags; ``spelling.py`` spells it out.
The table that this follows, flag by command, is ``tests/cli/mlc_llm_flags.tsv``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from mlc_bridge.errors import ConfigError
from mlc_bridge.stages.wishes import ONE_DEVICE

COMMANDS = {"convert-weight": "convert", "convert-weights": "convert"}
NOT_HERE = {
    "package": (
        "package builds the model libraries of MLC's iOS and Android apps out of MLC LLM's sources",
        "Build the model with mlc-bridge build; the weights and mlc-chat-config.json that it "
        "writes can be named in an mlc-package-config.json for mlc_llm package",
    ),
    "router": (
        "router spreads requests over several MLC servers",
        "Start mlc-bridge serve for each and put any HTTP balancer before them",
    ),
}
# Keys of --overrides: of the model's config where MLC compiles or chats, of the engine elsewhere.
MODEL = {
    "context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size",
    "max_batch_size", "tensor_parallel_shards", "pipeline_parallel_stages", "disaggregation",
}  # fmt: skip
ENGINE = {
    "max_num_sequence", "max_total_seq_length", "prefill_chunk_size", "max_history_size",
    "gpu_memory_utilization", "spec_draft_length", "spec_tree_width", "prefix_cache_mode",
    "prefix_cache_max_num_recycling_seqs", "prefill_mode", "context_window_size",
    "sliding_window_size", "attention_sink_size", "tensor_parallel_shards",
    "pipeline_parallel_stages", "opt",
}  # fmt: skip
OVERRIDES = {
    "build": MODEL,
    "compile": MODEL,
    "chat": MODEL | {"opt"},
    "calibrate": ENGINE,
    "serve": ENGINE,
}


@dataclass(frozen=True)
class Theirs:
    """One flag of MLC LLM's in ``commands``; ``says`` is what it does there and what holds here.

    ``fine``: values that ask for nothing else than what happens anyway. ``becomes``: our words.
    """

    commands: str
    flag: str
    says: str = ""
    fine: tuple[str, ...] = ()
    refused: bool = False
    switch: bool = False
    becomes: Callable[[str], list[str]] | None = None


def _renamed(flag: str) -> Callable[[str], list[str]]:
    return lambda value: [flag, value]


def _origins(value: str) -> list[str]:
    """MLC takes a JSON list, we take the flag once for each."""
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(origin, str) for origin in found):
        raise ConfigError(
            "no list of origins", where="--allow-origins", found=value,
            expected='JSON, as in \'["https://example.org"]\'',
        )  # fmt: skip
    return [word for origin in found for word in ("--allow-origin", origin)]


def _prefix_cache(value: str) -> list[str]:
    words = {"radix": "--prefix-cache", "disable": "--no-prefix-cache"}
    if value not in words:
        raise ConfigError(
            "unknown mode", where="--prefix-cache-mode", found=value, expected="radix or disable"
        )
    return [words[value]]


WINDOW = (
    "a window is part of the model's graph and of its config: give it to gen-config (or build) "
    "and compile again"
)
FLAGS = (
    Theirs("build convert compile calibrate chat serve inspect check verify bench",
           "--tensor-parallel-shards", ONE_DEVICE, ("1",), refused=True),
    Theirs("build gen-config compile chat calibrate serve", "--pipeline-parallel-stages",
           ONE_DEVICE, ("1",), refused=True),
    Theirs("build gen-config compile chat", "--disaggregation",
           "MLC splits prefill and decode between servers; here one engine does both",
           ("false", "False", "0", ""), refused=True),
    Theirs("convert", "--device",
           "MLC rounds weights on a GPU; here conversion copies codes and needs none", ("cpu",)),
    Theirs("build convert", "--lora-adapter",
           "MLC merges a LoRA adapter before it quantizes; here merge it first (peft's "
           "merge_and_unload) and give the merged checkpoint", refused=True),
    Theirs("build compile", "--system-lib-prefix",
           "MLC puts it before the symbols of a static library; a shared library has no need of it",
           ("auto", "")),
    Theirs("build compile", "--enable-subgroups",
           "it is for WebGPU, which is no target here", switch=True),
    Theirs("build compile", "--debug-dump", becomes=_renamed("--dump")),
    Theirs("compile calibrate chat serve", "--sliding-window-size", WINDOW, refused=True),
    Theirs("compile calibrate chat serve", "--attention-sink-size", WINDOW, refused=True),
    Theirs("chat calibrate serve", "--opt",
           "MLC compiles with it when the library is missing; here the library is compiled "
           "before, where compile takes --opt"),
    Theirs("chat", "--max-batch-size", "a chat is one sequence", ("1",)),
    Theirs("calibrate", "--max-num-sequence", "calibration takes as many as the library allows"),
    Theirs("calibrate", "--max-total-seq-length",
           "calibration takes as many tokens as its samples have"),
    Theirs("calibrate", "--context-window-size",
           "samples are cut to the window of mlc-chat-config.json"),
    Theirs("calibrate", "--prefill-chunk-size", "the library's own is used"),
    Theirs("serve", "--max-total-seq-length", becomes=_renamed("--max-total-sequence-length")),
    Theirs("calibrate serve", "--max-history-size",
           "MLC keeps so many states of recurrent models, of which none is here"),
    Theirs("calibrate serve", "--gpu-memory-utilization",
           "MLC sizes the KV cache by it; here --max-total-sequence-length of serve does"),
    Theirs("calibrate serve", "--spec-draft-length",
           "there is no speculative decoding here", ("0",)),
    Theirs("calibrate serve", "--spec-tree-width",
           "there is no speculative decoding here", ("1",)),
    Theirs("serve", "--prefix-cache-mode", becomes=_prefix_cache),
    Theirs("calibrate", "--prefix-cache-mode", "calibration reads every sample whole",
           ("disable",)),
    Theirs("calibrate serve", "--prefix-cache-max-num-recycling-seqs",
           "ended requests are kept while their pages are not needed"),
    Theirs("calibrate serve", "--prefill-mode",
           "decoding goes on between two chunks of a prompt, which is MLC's hybrid", ("hybrid",)),
    Theirs("serve", "--speculative-mode",
           "MLC lets a small model propose tokens; here every token comes from the model itself",
           ("disable",), refused=True),
    Theirs("serve", "--additional-models",
           "MLC loads draft models with it; there is no speculative decoding here", refused=True),
    Theirs("serve", "--embedding-model", "there are no embedding models here", refused=True),
    Theirs("serve", "--embedding-model-lib", "there are no embedding models here", refused=True),
    Theirs("serve", "--enable-debug", "MLC opens /debug routes; here there are none", switch=True),
    Theirs("serve", "--enable-tracing",
           "MLC records a Chrome trace; here /metrics tells times and numbers", switch=True),
    Theirs("serve", "--allow-origins", becomes=_origins),
    Theirs("serve", "--allow-credentials",
           "MLC lets web pages send cookies; the server here has none", switch=True),
    Theirs("serve", "--allow-methods", "all methods that a route has are allowed", ('["*"]',)),
    Theirs("serve", "--allow-headers", "all headers are allowed", ('["*"]',)),
)  # fmt: skip
AUTO = ("--source", "--model-lib")
"""Flags that MLC writes with ``auto`` where ours are left out."""
