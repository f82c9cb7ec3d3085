"""What is measured: shapes, their variants, inputs that numpy makes, and results in float64.

A case knows two sides. `functions(target)` needs the compiler: variant -> scheduled PrimFunc.
`inputs(rng)` and `expected()` need numpy alone. Weights are 256 channels repeated, so that the
matrix is made in no time and all channels can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
MULTIPROCESSORS = 132
REPEATED = 256
LAYERS = {
    "tiny": [(256, 512)],
    "7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
    "70b": [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)],
}


class Case(Protocol):
    """One thing to measure."""

    @property
    def name(self) -> str:
        """Unique in a suite."""

    @property
    def rotating(self) -> Sequence[int]:
        """The arguments of which a call reads another copy, so that no cache holds them."""

    @property
    def traffic(self) -> int:
        """Bytes that a call must read."""

    @property
    def work(self) -> float:
        """Floating-point operations."""

    @property
    def limit(self) -> float:
        """The largest error that is right, relative to the largest value."""

    def functions(self, target: Any) -> Mapping[str, Any]:
        """Variant -> scheduled function; "rules" is what models get."""

    def predicted(self, variant: str) -> dict[str, float]:
        """What the variant should do on a GPU; empty for "rules"."""

    def inputs(self) -> list[Any]:
        """Arrays and numbers, `None` where the results belong."""

    def results(self) -> list[Array]:
        """Empty arrays for the results, the first of which is compared."""

    def expected(self) -> Array:
        """In float64."""

    def choice(self, variant: str) -> tuple[str, str, dict[str, int]] | None:
        """Kernel, key and plan for the table of choices; `None` for what is no choice."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of one scheme over so many rows."""

    scheme: str
    n: int
    k: int
    rows: int

    @property
    def rotating(self) -> Sequence[int]:
        return range(len(self.weights))

    @property
    def name(self) -> str:
        return f"{self.scheme} {self.n}x{self.k} m={self.rows}"

    @cached_property
    def _scheme(self) -> Any:
        from mlc_bridge.schemes import SCHEMES

        return SCHEMES[self.scheme]

    @cached_property
    def _part(self) -> tuple[dict[str, Array], Array]:
        """Parameters of the repeated channels, and the matrix `[256, k]` they stand for."""
        weight = np.random.default_rng(0).standard_normal((REPEATED, self.k), np.float32) * 0.02
        scheme = self._scheme
        names = list(scheme.params(*weight.shape))
        if len(names) == 1:
            half = weight.astype(np.float16)
            return {names[0]: half}, half.astype(np.float64)
        stored = scheme.encode(scheme.quantize(weight))
        scale = stored.get("q_scale")
        if scale is not None and scale.size == 1:  # of a whole weight: applied after the sum
            codes = stored["q_weight"]
            return {"q_weight": codes}, codes.astype(np.float64)
        return stored, scheme.decode(stored).dequantize().astype(np.float64)

    @property
    def x_dtype(self) -> str:
        return "float8_e4m3fn" if self.scheme.startswith("e4m3") else str(self._scheme.model_dtype)

    @cached_property
    def _x(self) -> Array:
        dtype = np.dtype(getattr(ml_dtypes, self.x_dtype, self.x_dtype))
        x = np.random.default_rng(1).standard_normal((self.rows, self.k), np.float32)
        return x.astype(dtype)

    @cached_property
    def weights(self) -> list[Array]:
        """The parameters of all channels."""
        whole = self._scheme.params(self.n, self.k)
        return [
            np.tile(part, [w // p for w, p in zip(whole[name].shape, part.shape, strict=True)])
            for name, part in self._part[0].items()
        ]

    @property
    def traffic(self) -> int:
        return sum(a.nbytes for a in self.weights)

    @property
    def work(self) -> float:
        return 2.0 * self.rows * self.n * self.k

    @property
    def limit(self) -> float:
        return 2e-3

    def inputs(self) -> list[Any]:
        return [*self.weights, self._x, None]

    def results(self) -> list[Array]:
        return [np.zeros((self.rows, self.n), np.float16)]

    def expected(self) -> Array:
        part = self._x.astype(np.float64) @ self._part[1].T
        return np.tile(part, (1, self.n // REPEATED))

    def functions(self, target: Any) -> Mapping[str, Any]:
        from benchmarks.gpu.compiled import layer_functions

        return layer_functions(self, target)

    def predicted(self, variant: str) -> dict[str, float]:
        plan = self._plan(variant)
        if plan is None:
            return {}
        blocks = -(-self.n // (64 * plan.words))
        return on_card(self.traffic, blocks, plan.under_way(), 32 * plan.warps)

    def choice(self, variant: str) -> tuple[str, str, dict[str, int]] | None:
        plan = self._plan(variant)
        if plan is None:
            return None
        from tir_schedules.gpu.choices import layer

        most = 8 if self.rows <= 8 else 16
        group = self.k // self._scheme.params(REPEATED, self.k)["scales"].shape[0]
        return "awq_few", layer(self.n, self.k, group, most), asdict(plan)

    def _plan(self, variant: str) -> Any:
        return next((p for p in awq_plans() if plan_name(p) == variant), None)


@dataclass(frozen=True)
class Decode:
    """Attention of one new token a sequence over `keys` cached ones."""

    num_q: int
    num_kv: int
    d: int
    keys: int
    batch: int = 1
    rotating = (1,)  # the pages

    @property
    def name(self) -> str:
        return f"decode {self.num_q}/{self.num_kv}x{self.d} keys={self.keys} batch={self.batch}"

    @property
    def _pages(self) -> int:
        return -(-self.keys // 16)

    @cached_property
    def _cache(self) -> Array:
        """One page's content in all pages: the softmax is known from 16 keys."""
        page = np.random.default_rng(2).standard_normal((1, 2, self.num_kv, 16, self.d))
        return page.astype(np.float16).repeat(self.batch * self._pages, 0)

    @cached_property
    def _q(self) -> Array:
        q = np.random.default_rng(3).standard_normal((self.batch, self.num_q, self.d))
        return q.astype(np.float16)

    @property
    def traffic(self) -> int:
        return self._cache.nbytes

    @property
    def work(self) -> float:
        return 4.0 * self.batch * self.num_q * self.d * self.keys

    @property
    def limit(self) -> float:
        return 2e-3

    def inputs(self) -> list[Any]:
        batch, pages = self.batch, self._pages
        zero = np.zeros(batch, np.int32)
        used = np.full(batch, (self.keys - 1) % 16 + 1, np.int32)
        indptr = (np.arange(batch + 1) * pages).astype(np.int32)
        values = np.random.default_rng(4).permutation(batch * pages).astype(np.int32)
        numbers = (0, 1.0, 1e4, self.d**-0.5)
        table = (indptr, values, used, zero, zero)
        return [self._q, self._cache, *table, None, None, *numbers]

    def results(self) -> list[Array]:
        shape = (self.batch, self.num_q)
        return [np.zeros((*shape, self.d), np.float16), np.zeros(shape, np.float32)]

    def expected(self) -> Array:
        group = self.num_q // self.num_kv
        k, v = (self._cache[0, i].astype(np.float64).repeat(group, 0) for i in (0, 1))
        score = np.einsum("bhd,hjd->bhj", self._q.astype(np.float64), k) * self.d**-0.5
        weight = np.exp(score - score.max(-1, keepdims=True))
        times = np.full(16, self.keys // 16) + (np.arange(16) < self.keys % 16)
        weight *= times
        out = np.einsum("bhj,hjd->bhd", weight, v)
        return np.asarray(out / weight.sum(-1)[..., None])

    def functions(self, target: Any) -> Mapping[str, Any]:
        from benchmarks.gpu.compiled import decode_functions

        return decode_functions(self, target)

    def predicted(self, variant: str) -> dict[str, float]:
        plan = next((p for p in decode_plans() if plan_name(p) == variant), None)
        if plan is None:
            return {}
        heads = self.heads()
        _, blocks = plan.parts(heads, self.keys, self.batch)
        return on_card(self.traffic, blocks, plan.under_way(heads), 32 * plan.warps)

    def choice(self, variant: str) -> tuple[str, str, dict[str, int]] | None:
        plan = next((p for p in decode_plans() if plan_name(p) == variant), None)
        if plan is None:
            return None
        from tir_schedules.gpu.choices import attention

        return "decode", attention(self.heads()), asdict(plan)

    def heads(self) -> Any:
        from tir_schedules.gpu.attention_function import Heads

        return Heads(self.num_q, self.num_kv, self.d, "float16")


@dataclass(frozen=True)
class Copy:
    """The bound of everything that reads memory: bytes read and written by a copy."""

    size: int
    name = "copy"
    rotating = (0,)
    limit = 0.0
    work = 0.0

    @property
    def traffic(self) -> int:
        return 2 * self.size

    def inputs(self) -> list[Any]:
        return [np.arange(self.size // 4, dtype=np.float32), None]

    def results(self) -> list[Array]:
        return [np.zeros(self.size // 4, np.float32)]

    def expected(self) -> Array:
        return np.arange(self.size // 4, dtype=np.float32)

    def functions(self, target: Any) -> Mapping[str, Any]:
        from benchmarks.gpu.compiled import copy_functions

        return copy_functions(self, target)

    def predicted(self, variant: str) -> dict[str, float]:
        return {}

    def choice(self, variant: str) -> None:
        return None


def on_card(traffic: int, blocks: int, under_way: int, threads: int) -> dict[str, float]:
    """Prediction for a large card, with 128 registers a thread."""
    resident = max(1, (64 << 10) // (threads * 128))
    spread = min(blocks / MULTIPROCESSORS, resident)
    return {
        "bytes": traffic,
        "blocks": blocks,
        "waves": round(blocks / (MULTIPROCESSORS * resident), 2),
        "under_way_kib": round(spread * under_way / 1024, 1),
    }


def awq_plans() -> Sequence[Any]:
    """Variants of few rows over AWQ words."""
    from tir_schedules.gpu.awq_few import Plan

    sizes = [(1, 16, 8), (1, 16, 4), (1, 8, 8), (1, 4, 8), (2, 8, 4), (2, 8, 8), (2, 4, 8)]
    return [Plan(*size) for size in sizes]


def decode_plans() -> Sequence[Any]:
    """Variants of decode attention; with 8 warps and heads of 128 ptxas spills."""
    from tir_schedules.gpu.attention_decode import Plan

    return [Plan(blocks, warps) for blocks in (264, 528, 1056) for warps in (2, 4)]


def plan_name(plan: Any) -> str:
    """words=1 warps=16 ahead=8"""
    return " ".join(f"{name}={value}" for name, value in asdict(plan).items())


def _suite(shapes: str, schemes: Sequence[str], rows: Sequence[int]) -> list[Case]:
    layers = [Layer(s, n, k, m) for s in schemes for n, k in LAYERS[shapes] for m in rows]
    heads = {"tiny": (4, 2, 64), "7b": (32, 32, 128), "70b": (64, 8, 128)}[shapes]
    lengths = {"tiny": [(40, 2)]}.get(shapes, [(512, 1), (8192, 1), (65536, 1), (2048, 16)])
    copied = (1 if shapes == "tiny" else 256) << 20
    return [Copy(copied), *layers, *(Decode(*heads, keys, batch) for keys, batch in lengths)]


SCHEMES = ("q4f16_autoawq", "q4f16_1", "q0f16", "e4m3_e4m3_f16")
SUITES: Mapping[str, list[Case]] = {
    "tiny": _suite("tiny", ("q4f16_autoawq",), (1, 3)),
    "7b": _suite("7b", SCHEMES, (1, 16, 512)),
    "70b": _suite("70b", SCHEMES[:2], (1, 8, 2048)),
}
