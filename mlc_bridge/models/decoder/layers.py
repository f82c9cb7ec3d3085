"""The layers of the decoder family as relax modules, each one kernel.

Every layer is a single tensor expression, so that one PrimFunc holds it whatever the graph passes
do, and the schedules of ``tir_schedules`` find the same shape in every model. Arithmetic is float32
in registers; tensors stay in the scheme's model dtype.

======================  =================================================================
``QLinear``             x @ W^T + b for every scheme: parameters and expression are the scheme's
``Embedding``           rows of the table; with a tied head also x @ table^T
``RMSNorm``             x / sqrt(mean(x^2) + eps) * weight
``LayerNorm``           (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
``gated``               act(gate) * up on the fused [.., 2 * inner] tensor
``activated``           act(x)
``qk_norm``             RMS norm of query and key heads, value heads passed through
``cap``                 c * tanh(x / c)
``take_rows``           rows of the last but one axis by index; ``last_token`` takes the last one
``attend``              rope, append to the cache and attention, all inside the runtime's cache
======================  =================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from mlc_bridge.models.arch import Stored, Weight, own_scheme, parameters
from mlc_bridge.models.decoder.mlp import Activation
from mlc_bridge.schemes.matmul import nt_matmul
from mlc_bridge.schemes.scheme import Scheme

Expr = Any


class Layer(nn.Module):
    """Owns the parameters of one row of the weight table, under the suffixes of the scheme."""

    def __init__(self, weight: Weight, scheme: Scheme, stored: Stored | None = None) -> None:
        own = own_scheme(weight, scheme, stored)
        self.scheme, self.path = own or scheme, weight.path
        self.width = weight.k
        self.specs = parameters(weight, scheme, stored)
        self.quantized = own is not None
        for suffix, spec in self.specs.items():
            setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

    def stored(self) -> dict[str, nn.Tensor]:
        """Suffix -> parameter, without the bias."""
        return {suffix: getattr(self, suffix) for suffix in self.specs if suffix != "bias"}

    def matmul(self, x: nn.Tensor, out_dtype: str) -> nn.Tensor:
        if self.quantized:
            observe = getattr(self.scheme, "observe", None)  # calibration builds show their inputs
            x = observe(x, self.path) if observe else x
            return self.scheme.linear(x, self.stored(), out_dtype)
        return nt_matmul(x, self.weight, out_dtype)


class QLinear(Layer):
    """``x [.., k] -> [.., n]``; ``out_dtype`` is the model dtype unless given."""

    def forward(self, x: nn.Tensor, out_dtype: str | None = None) -> nn.Tensor:
        y = self.matmul(x, out_dtype or self.scheme.model_dtype)
        return y + op.astype(self.bias, y.dtype) if "bias" in self.specs else y


class Embedding(Layer):
    """``ids int32 [s] -> [s, h]``; ``head`` is the tied output layer."""

    def forward(self, ids: nn.Tensor) -> nn.Tensor:
        if self.quantized:
            return self.scheme.embedding(ids, self.stored(), self.width, self.scheme.model_dtype)
        return take_rows(self.weight, ids)

    def head(self, x: nn.Tensor, out_dtype: str) -> nn.Tensor:
        return self.matmul(x, out_dtype)


class RMSNorm(Layer):
    """Over the last axis."""

    def __init__(self, weight: Weight, scheme: Scheme, eps: float) -> None:
        super().__init__(weight, scheme)
        self.eps = eps

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: nn.Tensor, weight: nn.Tensor, eps: float) -> nn.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""

    def rms_norm(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
        *outer, width = x.shape
        k = te.reduce_axis((0, width), name="k")
        squares = te.compute(
            outer,
            lambda *i: te.sum(_f32(x(*i, k)) * _f32(x(*i, k)), axis=k),
            name="sum_of_squares",
        )
        return te.compute(
            x.shape,
            lambda *i: (
                _f32(x(*i))
                * tirx.rsqrt(squares(*i[:-1]) / float(int(width)) + eps)
                * _f32(weight(i[-1]))
            ).astype(x.dtype),
            name="rms_norm",
        )

    return op.tensor_expr_op(rms_norm, "rms_norm", [x, weight])


class LayerNorm(RMSNorm):
    """Over the last axis; without a bias where the weight has none."""

    def __init__(self, weight: Weight, scheme: Scheme, eps: float, shift: float = 0.0) -> None:
        super().__init__(weight, scheme, eps)
        self.shift = shift

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        def layer_norm(x: te.Tensor, weight: te.Tensor, *bias: te.Tensor) -> te.Tensor:
            *outer, width = x.shape
            size = float(int(width))

            def summed(value: Callable[..., Expr], name: str) -> te.Tensor:
                k = te.reduce_axis((0, width), name="k")
                return te.compute(outer, lambda *i: te.sum(value(*i, k), axis=k), name=name)

            total = summed(lambda *i: _f32(x(*i)), "total")

            def apart(*i: Expr) -> Expr:
                return _f32(x(*i)) - total(*i[:-1]) / size

            squares = summed(lambda *i: apart(*i) * apart(*i), "squares")

            def normed(*i: Expr) -> Expr:
                scale = _f32(weight(i[-1])) + self.shift
                y = apart(*i) * tirx.rsqrt(squares(*i[:-1]) / size + self.eps) * scale
                return (y + _f32(bias[0](i[-1])) if bias else y).astype(x.dtype)

            return te.compute(x.shape, normed, name="layer_norm")

        return op.tensor_expr_op(
            layer_norm, "layer_norm", [x, *(getattr(self, name) for name in self.specs)]
        )


def qk_norm(x: nn.Tensor, q_norm: RMSNorm, k_norm: RMSNorm, heads: int, kv_heads: int) -> nn.Tensor:
    """``[m, heads + 2 * kv_heads, d]`` with every query and key head normed over ``d``."""
    eps = q_norm.eps

    def norm(x: te.Tensor, q: te.Tensor, k: te.Tensor) -> te.Tensor:
        m, every, width = x.shape
        j = te.reduce_axis((0, width), name="k")
        squares = te.compute(
            (m, every),
            lambda i, h: te.sum(_f32(x[i, h, j]) * _f32(x[i, h, j]), axis=j),
            name="sum_of_squares",
        )

        def normed(i: Expr, h: Expr, d: Expr) -> Expr:
            weight = tirx.if_then_else(h < heads, _f32(q[d]), _f32(k[d]))
            scale = tirx.rsqrt(squares[i, h] / float(int(width)) + eps)
            value = (_f32(x[i, h, d]) * scale * weight).astype(x.dtype)
            return tirx.if_then_else(h < heads + kv_heads, value, x[i, h, d])

        return te.compute(x.shape, normed, name="qk_norm")

    return op.tensor_expr_op(norm, "qk_norm", [x, q_norm.weight, k_norm.weight])


def joint_norm(
    x: nn.Tensor, q_norm: RMSNorm, k_norm: RMSNorm, heads: int, kv_heads: int
) -> nn.Tensor:
    """``[m, heads + 2 * kv_heads, d]``: all query heads normed as one row, all key heads as one."""
    eps = q_norm.eps

    def norm(x: te.Tensor, q: te.Tensor, k: te.Tensor) -> te.Tensor:
        m, _, width = x.shape

        def scale(first: int, count: int, name: str) -> te.Tensor:
            h, d = te.reduce_axis((0, count), name="h"), te.reduce_axis((0, width), name="d")
            squares = te.compute(
                (m,),
                lambda i: te.sum(_f32(x[i, first + h, d]) * _f32(x[i, first + h, d]), axis=[h, d]),
                name=f"{name}_squares",
            )
            size = float(count * int(width))
            return te.compute((m,), lambda i: tirx.rsqrt(squares[i] / size + eps), name=name)

        of_q, of_k = scale(0, heads, "of_q"), scale(heads, kv_heads, "of_k")

        def normed(i: Expr, h: Expr, d: Expr) -> Expr:
            query = of_q[i] * _f32(q[h * width + d])
            key = of_k[i] * _f32(k[(h - heads) * width + d])
            value = _f32(x[i, h, d]) * tirx.if_then_else(h < heads, query, key)
            return tirx.if_then_else(h < heads + kv_heads, value.astype(x.dtype), x[i, h, d])

        return te.compute(x.shape, normed, name="joint_norm")

    return op.tensor_expr_op(norm, "joint_norm", [x, q_norm.weight, k_norm.weight])


def cap(x: nn.Tensor, limit: float) -> nn.Tensor:
    def soft_cap(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: limit * tirx.tanh(x(*i) / limit), name="soft_cap")

    return op.tensor_expr_op(soft_cap, "soft_cap", [x])


def gated(x: nn.Tensor, activation: Activation) -> nn.Tensor:
    """``[.., 2 * inner] -> [.., inner]``: the first half gates the second."""
    act = ACTIVATIONS[activation]

    def gated_mlp(x: te.Tensor) -> te.Tensor:
        *outer, both = x.shape
        inner = both // 2
        return te.compute(
            (*outer, inner),
            lambda *i: (act(_f32(x(*i))) * _f32(x(*i[:-1], i[-1] + inner))).astype(x.dtype),
            name=f"gated_{activation}",
        )

    return op.tensor_expr_op(gated_mlp, f"gated_{activation}", [x])


def activated(x: nn.Tensor, activation: Activation) -> nn.Tensor:
    """Element by element."""
    act = ACTIVATIONS[activation]

    def activate(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: act(_f32(x(*i))).astype(x.dtype), name=activation)

    return op.tensor_expr_op(activate, activation, [x])


def take_rows(x: nn.Tensor, index: nn.Tensor) -> nn.Tensor:
    """``x [.., s, h]``, ``index int32 [b] -> [.., b, h]``; indices are trusted to be in range."""

    def take(x: te.Tensor, index: te.Tensor) -> te.Tensor:
        *outer, _, width = x.shape
        return te.compute(
            (*outer, index.shape[0], width),
            lambda *i: x(*i[:-2], index[i[-2]], i[-1]),
            name="take",
        )

    return op.tensor_expr_op(take, "take", [x, index])


def last_token(x: nn.Tensor) -> nn.Tensor:
    def take_last(x: te.Tensor) -> te.Tensor:
        b, s, h = x.shape
        return te.compute((b, 1, h), lambda i, _, j: x[i, s - 1, j], name="last_token")

    return op.tensor_expr_op(take_last, "last_token", [x])


def attend(
    kv: PagedKVCache, layer: int, qkv: nn.Tensor, heads: int, scale: float, *, local: bool
) -> nn.Tensor:
    """``qkv [m, heads + 2 * kv_heads, d] -> [m, heads, d]``: the cache knows the sequences.

    The kernels mask what lies outside the window where a layer is ``local``; the runtime carries no
    more than a scale from here to them, so its sign tells it.
    """
    rows, _, width = qkv.shape
    scale = -scale if local else scale
    call = relax.call_dps_packed(
        "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
        [kv._expr, relax.prim_value(layer), relax.prim_value(scale), qkv._expr],
        out_ty=relax.TensorType((rows, heads, width), qkv.dtype),
    )
    return nn.Tensor(_expr=relax.BlockBuilder.current().emit(call))


def _f32(x: Expr) -> Expr:
    return x.astype("float32")


def _silu(x: Expr) -> Expr:
    return x / (1.0 + tirx.exp(-x))


def _gelu(x: Expr) -> Expr:
    return 0.5 * x * (1.0 + tirx.erf(x * 0.7071067811865476))


def _gelu_tanh(x: Expr) -> Expr:
    return 0.5 * x * (1.0 + tirx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def _relu2(x: Expr) -> Expr:
    return tirx.max(x, 0.0) * tirx.max(x, 0.0)


ACTIVATIONS: dict[Activation, Callable[[Expr], Expr]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu2": _relu2,
}
