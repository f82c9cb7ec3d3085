"""The router's choice as one kernel: a few experts, counted against each other.

The rank of an expert is the number of better ones (of equals, the earlier is better), so that no
sorting is needed; groups are ranked alike. What every stage means: ``router.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlc_bridge.models.decoder.layers import Expr

if TYPE_CHECKING:
    from mlc_bridge.models.decoder.router import Router

OPAQUE = {"op_pattern": 8}
LOWEST = -3.0e38


def choose(
    scores: nn.Tensor, router: Router, correction: nn.Tensor | None
) -> tuple[nn.Tensor, nn.Tensor]:
    """``scores float32 [b, s, e]`` -> ``chosen int32 [m, c]`` and ``share float32 [m, c]``."""

    def outputs(scores: te.Tensor, *correction: te.Tensor) -> list[te.Tensor]:
        return [*route(router, scores, *correction)]

    b, s, count = scores.shape
    flat = op.reshape(scores, (b * s, count))
    args = [flat] if correction is None else [flat, correction]
    chosen, share = op.tensor_expr_op(outputs, "router", args, attrs=OPAQUE)
    return chosen, share


def route(router: Router, scores: te.Tensor, *correction: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """``scores float32 [m, e]``, the correction ``[e]`` where there is one -> chosen, shares."""
    p = _probabilities(scores, router)
    pool = _corrected(p, *correction) if correction else p
    pool = _in_best_groups(pool, router) if router.best_groups < router.groups else pool
    rank = _rank(pool, "rank")
    found = _of_rank(rank, router.chosen, lambda t, e: e.astype("int32"), "found", "int32")
    last = int(scores.shape[1]) - 1  # NaN is ahead of nothing: no rank is whose it should be
    chosen = te.compute(found.shape, lambda *i: tirx.min(found(*i), last), name="chosen")
    picked = _of_rank(rank, router.chosen, lambda t, e: p[t, e], "picked", "float32")
    return chosen, _shares(picked, router)


def _probabilities(scores: te.Tensor, router: Router) -> te.Tensor:
    m, count = scores.shape
    if router.score == "sigmoid":
        return te.compute((m, count), lambda t, e: tirx.sigmoid(scores[t, e]), name="p")
    f, g = (te.reduce_axis((0, count), name=name) for name in "fg")
    top = te.compute((m,), lambda t: te.max(scores[t, f], axis=f), name="largest")
    powers = te.compute((m, count), lambda t, e: tirx.exp(scores[t, e] - top[t]), name="powers")
    total = te.compute((m,), lambda t: te.sum(powers[t, g], axis=g), name="total")
    return te.compute((m, count), lambda t, e: powers[t, e] / total[t], name="p")


def _corrected(p: te.Tensor, correction: te.Tensor) -> te.Tensor:
    return te.compute(p.shape, lambda t, e: p[t, e] + correction[e], name="corrected")


def _in_best_groups(pool: te.Tensor, router: Router) -> te.Tensor:
    """Experts of other groups are worse than all."""
    m, count = pool.shape
    size = int(count) // router.groups
    e = te.reduce_axis((0, size), name="e")
    place = _rank(pool, "place_in_group", size)

    def best(t: Expr, g: Expr) -> Expr:
        at = g * size + e
        return te.sum(tirx.Select(place[t, at] < router.top, pool[t, at], 0.0), axis=e)

    group = te.compute((m, router.groups), best, name="group")
    place_of = _rank(group, "place_of_group")
    return te.compute(
        pool.shape,
        lambda t, i: tirx.Select(place_of[t, i // size] < router.best_groups, pool[t, i], LOWEST),
        name="eligible",
    )


def _rank(values: te.Tensor, name: str, among: int | None = None) -> te.Tensor:
    """``int32``: how many are better, of all in the row or of a group of ``among``."""
    size = among or int(values.shape[1])
    j = te.reduce_axis((0, size), name="j")

    def better(t: Expr, i: Expr) -> Expr:
        other = i // size * size + j
        ahead = tirx.any(
            values[t, other] > values[t, i],
            tirx.all(values[t, other] == values[t, i], other < i),
        )
        return te.sum(ahead.astype("int32"), axis=j)

    return te.compute(values.shape, better, name=name)


def _of_rank(
    rank: te.Tensor, best: int, value: Callable[[Expr, Expr], Expr], name: str, dtype: str
) -> te.Tensor:
    e = te.reduce_axis((0, rank.shape[1]), name="e")
    zero = tirx.const(0, dtype)
    return te.compute(
        (rank.shape[0], best),
        lambda t, i: te.sum(
            tirx.Select(rank[t, e] == i.astype("int32"), value(t, e), zero), axis=e
        ),
        name=name,
    )


def _shares(picked: te.Tensor, router: Router) -> te.Tensor:
    m, best = picked.shape
    if not router.renormalize:
        return te.compute((m, best), lambda t, i: picked[t, i] * router.scale, name="share")
    j = te.reduce_axis((0, best), name="j")
    total = te.compute((m,), lambda t: te.sum(picked[t, j], axis=j), name="sum")

    def share(t: Expr, i: Expr) -> Expr:
        return picked[t, i] / (total[t] + router.floor) * router.scale

    return te.compute((m, best), share, name="share")
