"""Passes over a block that look at more than sums: samples one by one, histograms, outputs.

Each runs the calibration text through the block once with hooks, and leaves the block as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.scores import Score

if TYPE_CHECKING:
    from torch import Tensor

RECALL = 0.9999
WATCHED = "mlc_bridge_watched"


@contextmanager
def _hooked(block: Block, hooks: Iterable[Any]) -> Iterator[None]:
    hooks = list(hooks)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(block: Block, hooks: Iterable[Any]) -> None:
    torch = torch_here()
    with _hooked(block, hooks), torch.no_grad():
        for x in block.batches():
            block(x)


def _inputs(block: Block, names: Sequence[str], see: Callable[[str, Tensor], object]) -> None:
    """``see`` gets every sample ``[tokens, k]`` of these layers' inputs."""

    def hook(name: str) -> Callable[[Any, Any], None]:
        def before(_: Any, args: Any) -> None:
            for sample in args[0]:
                see(name, sample)

        return before

    _run(block, [block.module(n).register_forward_pre_hook(hook(n)) for n in names])


def scored(block: Block) -> dict[str, Score]:
    """The score of every linear layer's input, by its name in the block."""
    found = {group[0]: Score() for group in block.wiring.linears}
    _inputs(block, list(found), lambda name, x: found[name].add(x))
    return {name: found[group[0]] for group in block.wiring.linears for name in group}


def histogram_ranges(block: Block, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Lowest and highest kept input by torch's histogram search (2048 bins, L2 error)."""
    torch = torch_here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces another home for its observers
        from torch.ao.quantization.observer import HistogramObserver

        found = {name: HistogramObserver(dtype=torch.quint8) for name in names}
        _inputs(block, names, lambda name, x: found[name].forward(x[None]))
        ends = {name: o._non_linear_param_search() for name, o in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def cache_scales(block: Block) -> dict[str, Array]:
    """Scales and offsets of an int8 KV cache, by channel of k_proj's and v_proj's output."""
    names = [n for g in block.wiring.linears for n in g if n.endswith(("k_proj", "v_proj"))]
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    torch = torch_here()

    def hook(name: str) -> Callable[[Any, Any, Any], None]:
        def after(_: Any, args: Any, out: Any) -> None:
            rows = out.reshape(-1, out.shape[-1])
            low, high = ends.get(name, (rows.amin(0), rows.amax(0)))
            ends[name] = (torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0)))

        return after

    _run(block, [block.module(n).register_forward_hook(hook(n)) for n in names])
    found: dict[str, Array] = {}
    for name, (low, high) in ends.items():
        scale = torch.maximum(low.abs(), high.abs()).clamp(min=1e-10) / 127
        found[f"{name}.kv_cache_scale"] = scale.numpy()
        found[f"{name}.kv_cache_offset"] = np.zeros(len(scale), np.float32)
    return found


@contextmanager
def watching_attention(block: Block) -> Iterator[dict[str, Array]]:
    """Scales of int8 attention (q and k after RoPE, v), by head; filled when the block has run.

    The shortest interval that holds 99.99 % of q or k, all of v; symmetric. By transformers' own
    door for attention functions, which the model is told to go through meanwhile.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found: dict[str, Array] = {}
    largest: dict[str, Tensor] = {}
    module = next(m for m in block.layer.modules() if hasattr(m, "o_proj"))
    owner = next(n for n, m in block.layer.named_modules() if m is module)
    before = module.config._attn_implementation
    plain: Any = ALL_ATTENTION_FUNCTIONS[before]
    torch = torch_here()

    def watched(mod: Any, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> Any:
        for name, states in (("q", q), ("k", k), ("v", v)):
            heads = states.transpose(0, 1).reshape(states.shape[1], -1)
            low, high = recall_window(heads, 1.0 if name == "v" else RECALL)
            end = torch.maximum(low.abs(), high.abs())
            largest[name] = torch.maximum(largest.get(name, end), end)
            scale = (largest[name] / 127)[:, None]
            found[f"{owner}.fa_{name}.scale"] = scale.numpy().copy()
            found[f"{owner}.fa_{name}.offset"] = np.zeros(scale.shape, np.int8)
        return plain(mod, q, k, v, *rest, **more)

    ALL_ATTENTION_FUNCTIONS[WATCHED] = watched
    module.config._attn_implementation = WATCHED
    try:
        yield found
    finally:
        module.config._attn_implementation = before


def recall_window(values: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Ends of the shortest interval of each row ``[heads, values]`` with that share of values."""
    ordered = values.sort(-1).values
    count = max(int(ratio * ordered.shape[-1]), 1)
    starts = ordered.shape[-1] - count + 1
    widths = ordered[:, count - 1 :] - ordered[:, :starts]
    at = widths.argmin(-1, keepdim=True)
    return ordered.gather(1, at)[:, 0], ordered.gather(1, at + count - 1)[:, 0]
