"""Functions between the logits and the sampler, under the names that MLC's engine looks up.

    softmax_with_temperature  logits f32 [b, 1, v], temperature f32 [b] -> probabilities [b, 1, v]
    apply_logit_bias_inplace  logits [b, v], position -> sequence [t], token [t], bias [t]
    apply_penalty_inplace     logits [b, v], sequences [s], position -> index [t], token [t],
                              count [t], penalties [s, 3] = presence, frequency, repetition
    apply_bitmask_inplace     logits [b, v], sequences [s], bits int32 [b, ceil(v / 32)]

At temperature 0 the probability is one on the largest logit, shared evenly between equals. Tokens
from ``active`` on are padding of the vocabulary and get probability 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te, tirx
from tvm.script import tirx as T
from tvm.target import Target

GREEDY = 1e-5
WIDTH = 256


def attach_softmax(mod: tvm.IRModule, vocab: int, active: int | None) -> tvm.IRModule:
    batch = tirx.Var("batch_size", "int64")
    logits = relax.Var("logits", relax.TensorType([batch, 1, vocab], "float32"))
    temperature = relax.Var("temperature", relax.TensorType([batch], "float32"))
    builder = relax.BlockBuilder(mod)
    with builder.function("softmax_with_temperature", [logits, temperature]):
        with builder.dataflow():
            out = builder.emit_te(
                lambda a, t: _softmax(a, t, active),
                logits,
                temperature,
                primfunc_name_hint="softmax",
            )
            out = builder.emit_output(out)
        builder.emit_func_output(out)
    return builder.finalize()


def _softmax(logits: te.Tensor, temperature: te.Tensor, active: int | None) -> te.Tensor:
    batch, _, vocab = logits.shape
    lowest = tirx.min_value("float32")
    known = vocab if active is None else active

    def scaled(b: tirx.Var, v: tirx.Expr) -> tirx.Expr:
        t = temperature[b]
        value = logits[b, 0, v] / tirx.if_then_else(t > GREEDY, t, tirx.const(1.0, "float32"))
        return value if active is None else tirx.Select(v < known, value, lowest)

    k = te.reduce_axis((0, vocab), name="k")
    largest = te.compute((batch,), lambda b: te.max(scaled(b, k), axis=k), name="largest")

    def weight(b: tirx.Var, v: tirx.Expr) -> tirx.Expr:
        z = scaled(b, v)
        even = tirx.Select(z == largest[b], tirx.const(1.0, "float32"), tirx.const(0.0, "float32"))
        return tirx.Select(temperature[b] > GREEDY, tirx.exp(z - largest[b]), even)

    j = te.reduce_axis((0, vocab), name="j")
    total = te.compute((batch,), lambda b: te.sum(weight(b, j), axis=j), name="total")
    return te.compute(
        (batch, 1, vocab), lambda b, _, v: weight(b, v) / total[b], name="probability"
    )


def attach_logit_processors(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    blocks, threads = (_serial, _serial) if target.kind.name == "llvm" else (_blocks, _threads)
    mod = mod.clone()
    for kernel in (_logit_bias, _penalty, _bitmask):
        func = kernel(blocks, threads)
        mod[str(func.attrs["global_symbol"])] = func
    return mod


Loop = Callable[[tirx.Expr], Any]


def _serial(extent: tirx.Expr) -> Any:
    return T.serial(extent)


def _blocks(extent: tirx.Expr) -> Any:
    return T.thread_binding(0, extent, "blockIdx.x")


def _threads(extent: tirx.Expr) -> Any:
    return T.thread_binding(0, extent, "threadIdx.x")


def _logit_bias(blocks: Loop, threads: Loop) -> tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def logit_bias(
        var_logits: T.handle, var_sequence: T.handle, var_token: T.handle, var_bias: T.handle
    ) -> None:
        T.func_attr({"global_symbol": "apply_logit_bias_inplace", "tirx.is_scheduled": True})
        batch, vocab, tokens = T.int32(), T.int32(), T.int32()
        logits = T.match_buffer(var_logits, (batch, vocab), "float32")
        sequence = T.match_buffer(var_sequence, (tokens,), "int32")
        token = T.match_buffer(var_token, (tokens,), "int32")
        bias = T.match_buffer(var_bias, (tokens,), "float32")
        for i in blocks((tokens + WIDTH - 1) // WIDTH):
            for j in threads(WIDTH):
                with T.sblock("update"):
                    at = T.axis.spatial(tokens, i * WIDTH + j)
                    T.where(i * WIDTH + j < tokens)
                    T.reads()
                    T.writes()
                    logits[sequence[at], token[at]] = logits[sequence[at], token[at]] + bias[at]

    return logit_bias


def _penalty(blocks: Loop, threads: Loop) -> tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def penalty(
        var_logits: T.handle,
        var_sequence: T.handle,
        var_index: T.handle,
        var_token: T.handle,
        var_count: T.handle,
        var_penalties: T.handle,
    ) -> None:
        T.func_attr({"global_symbol": "apply_penalty_inplace", "tirx.is_scheduled": True})
        batch, vocab, tokens, sequences = T.int32(), T.int32(), T.int32(), T.int32()
        logits = T.match_buffer(var_logits, (batch, vocab), "float32")
        sequence = T.match_buffer(var_sequence, (sequences,), "int32")
        index = T.match_buffer(var_index, (tokens,), "int32")
        token = T.match_buffer(var_token, (tokens,), "int32")
        count = T.match_buffer(var_count, (tokens,), "int32")
        penalties = T.match_buffer(var_penalties, (sequences, 3), "float32")
        for i in blocks((tokens + WIDTH - 1) // WIDTH):
            for j in threads(WIDTH):
                with T.sblock("update"):
                    at = T.axis.spatial(tokens, i * WIDTH + j)
                    T.where(i * WIDTH + j < tokens)
                    T.reads()
                    T.writes()
                    row = T.meta_var(sequence[index[at]])
                    logits[row, token[at]] = logits[row, token[at]] - (
                        penalties[index[at], 0]
                        + T.Cast("float32", count[at]) * penalties[index[at], 1]
                    )
                    # Repetition makes a token less likely whatever the sign of its logit.
                    logits[row, token[at]] = T.if_then_else(
                        logits[row, token[at]] < T.float32(0),
                        logits[row, token[at]] * penalties[index[at], 2],
                        logits[row, token[at]] / penalties[index[at], 2],
                    )

    return penalty


def _bitmask(blocks: Loop, threads: Loop) -> tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def bitmask(var_logits: T.handle, var_sequence: T.handle, var_bits: T.handle) -> None:
        T.func_attr({"global_symbol": "apply_bitmask_inplace", "tirx.is_scheduled": True})
        batch, vocab, sequences = T.int32(), T.int32(), T.int32()
        logits = T.match_buffer(var_logits, (batch, vocab), "float32")
        sequence = T.match_buffer(var_sequence, (sequences,), "int32")
        bits = T.match_buffer(var_bits, (batch, (vocab + 31) // 32), "int32")
        for i in blocks((sequences * vocab + WIDTH - 1) // WIDTH):
            for j in threads(WIDTH):
                with T.sblock("update"):
                    at = T.axis.spatial(sequences * vocab, i * WIDTH + j)
                    T.where(i * WIDTH + j < sequences * vocab)
                    T.reads()
                    T.writes()
                    row, word = T.meta_var(sequence[at // vocab]), T.meta_var(at % vocab)
                    logits[row, word] = T.if_then_else(
                        (bits[row, word // 32] >> (word % 32)) & 1 == 1,
                        logits[row, word],
                        T.min_value("float32"),
                    )

    return bitmask
