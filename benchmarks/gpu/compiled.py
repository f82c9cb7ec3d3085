"""The compiler's side of the cases: variant -> function, scheduled for a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.cases import Copy, Decode, Layer, awq_plans, decode_plans, plan_name

Functions = Mapping[str, Any]


def layer_functions(case: Layer, target: Any) -> Functions:
    """The layer with its weights first, as models get it, and where it has them by every plan."""
    from tvm import te

    from tir_schedules.gpu.linear import planned

    x = te.placeholder((case.rows, case.k), case.x_dtype, "x")
    scheme, stored = case._scheme, case._part[0]
    whole = scheme.params(case.n, case.k)
    places = [te.placeholder(whole[p].shape, str(a.dtype), p) for p, a in stored.items()]
    weight = places[0] if len(places) == 1 else scheme.dequantize(case.k)(*places)
    axis = te.reduce_axis((0, case.k), "k")

    def product(r: Any, j: Any) -> Any:
        return te.sum(x[r, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis)

    total = te.compute((case.rows, case.n), product, name="NT_matmul")
    out = te.compute((case.rows, case.n), lambda *i: total[i].astype("float16"), name="cast")
    func = te.create_prim_func([*places, x, out])
    found = {"rules": func}
    if target.kind.name == "cuda":
        made = {plan_name(plan): planned(func, plan) for plan in awq_plans()}
        found |= {name: variant for name, variant in made.items() if variant is not None}
    return _scheduled(found, target)


def decode_functions(case: Decode, target: Any) -> Functions:
    """Every plan and TVM's own kernel; arguments as the runtime gives them."""
    if target.kind.name == "cuda":
        from tvm.relax.frontend.nn.llm import kv_cache as tvms

        from tir_schedules.gpu.attention_decode import decode

        heads = case.heads()
        found = {plan_name(plan): decode(heads, plan=plan) for plan in decode_plans()}
        theirs = tvms._attention_decode(
            case.num_kv, case.num_q, case.d, "float16", False, {}, target
        )
        return {"tvm": theirs, **found}
    from tir_schedules.cpu.attention_decode import decode_paged
    from tir_schedules.cpu.attention_tile import Heads
    from tir_schedules.cpu.vector_unit import VectorUnit

    shape = Heads(case.num_q, case.num_kv, case.d, case.d, "float16")
    return {"rules": decode_paged(shape, VectorUnit.of(target), {})}


def copy_functions(case: Copy, target: Any) -> Functions:
    from tvm import te

    source = te.placeholder((case.size // 4,), "float32", "source")
    out = te.compute((case.size // 4,), lambda i: source[i], name="out")
    return _scheduled({"rules": te.create_prim_func([source, out])}, target)


def _scheduled(functions: Functions, target: Any) -> Functions:
    import tvm
    from tvm.s_tir import dlight

    from tir_schedules import RULES

    names = {f"v{i}": name for i, name in enumerate(functions)}
    made = {v: functions[name].with_attr("global_symbol", v) for v, name in names.items()}
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(tvm.IRModule(made))
    return {name: module[v] for v, name in names.items()}
