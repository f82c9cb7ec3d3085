"""The quantized matrices of a checkpoint, by kind: what no scheme can tell apart is one kind.

Whether a scheme holds a matrix depends on dtypes, shapes and settings, which headers show for every
layer, and on a little data: whether scales fit float16, whether columns are in order, whether zeros
are constant, whether the parts of a fused layer share their scales. That data is small (scales are
3 % of a 4-bit file) and read for every layer; the codes themselves are read of one matrix of each
kind. Only code - zero beyond a scheme's range can still surprise the conversion, which looks at
every code; ``inspect`` looks as well and hands its findings in as ``deeper``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.models import Weight
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import Scheme
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.express import Read, express

SMALL = 4  # a part this many times smaller than the layer's largest is worth reading
LOW, HIGH = 2.0**-14, 65504.0  # float16's normal range
Deeper = Callable[[str], Hashable]


@dataclass(frozen=True)
class Matrix:
    """Checkpoint ``layers`` that are one matrix here: a weight, or one expert of it."""

    weight: Weight
    layers: tuple[str, ...]

    @property
    def path(self) -> str:
        return self.layers[0] if self.weight.experts else self.weight.path


@dataclass
class Kind:
    """Matrices alike; the first one is read for all of them."""

    ckpt: Checkpoint
    source: Source
    matrices: list[Matrix] = field(default_factory=list)
    _parts: list[Read] | None = None
    _why: dict[tuple[str, bool], CannotExpress | None] = field(default_factory=dict)

    @property
    def first(self) -> Matrix:
        return self.matrices[0]

    @property
    def parts(self) -> list[Read]:
        """The layers of the first matrix, as the source reads them."""
        if self._parts is None:
            self._parts = [self.source.read(self.ckpt, layer) for layer in self.first.layers]
        return self._parts

    @property
    def nbytes(self) -> int:
        """Bytes of the weights of all matrices in the checkpoint; alike means equally large."""
        parts = (p for layer in self.first.layers for p in self.source.parts(self.ckpt, layer))
        return sum(nbytes(self.ckpt, part) for part in parts) * len(self.matrices)

    @property
    def bits(self) -> int:
        """Of the widest code."""
        return max(part.bits for part in self.parts if isinstance(part, QTensor))

    def why_not(self, scheme: Scheme, *, apart: bool = False) -> CannotExpress | None:
        """Why ``scheme`` cannot hold these matrices exactly; None when it can.

        ``apart``: it is enough that it holds each checkpoint layer as a weight of its own.
        """
        key = scheme.name, apart
        if key not in self._why:
            self._why[key] = self._ask(scheme)
            if apart and self._why[key] and len(self.parts) > 1:
                each = [self._ask(scheme, i) for i in range(len(self.parts))]
                self._why[key] = self._why[key] if any(each) else None
        return self._why[key]

    def _ask(self, scheme: Scheme, only: int | None = None) -> CannotExpress | None:
        """The same of all parts together, or of one alone."""
        weight, path = self.first.weight, self.first.path
        n, parts = weight.n, self.parts
        if only is not None:
            n, parts, path = weight.rows[only], [parts[only]], self.first.layers[only]
        try:
            if weight.experts:
                scheme.dequantize(weight.k)  # refuses by name where a scheme has no experts
            scheme.params(n, weight.k)
            express(parts, scheme, path)
        except CannotExpress as error:
            return error
        return None


def matrices(weights: Sequence[Weight]) -> Iterator[Matrix]:
    """Every matrix of the weight table, experts one by one."""
    for weight in weights:
        if weight.experts:
            yield from (Matrix(weight, weight.expert_sources(e)) for e in range(weight.experts))
        elif weight.tensor is None:
            yield Matrix(weight, weight.sources)


def kinds(
    ckpt: Checkpoint, source: Source, weights: Sequence[Weight], deeper: Deeper | None = None
) -> list[Kind]:
    """The kinds of matrices that the checkpoint stores quantized (or partly so)."""
    quantized = set(source.layers(ckpt))
    found: dict[Hashable, Kind] = {}
    for matrix in matrices(weights):
        if quantized.isdisjoint(matrix.layers):
            continue
        deep = tuple(map(deeper, matrix.layers)) if deeper else ()
        key = (matrix.weight.role, matrix.weight.experts > 0, *_looks(ckpt, source, matrix), deep)
        found.setdefault(key, Kind(ckpt, source)).matrices.append(matrix)
    return list(found.values())


def _looks(ckpt: Checkpoint, source: Source, matrix: Matrix) -> tuple[Hashable, ...]:
    """Headers of all parts, and what their small tensors say."""
    values: dict[bytes, int] = {}
    looks: list[Hashable] = [matrix.weight.rows, matrix.weight.k]
    for layer in matrix.layers:
        parts = source.parts(ckpt, layer)
        largest = max(nbytes(ckpt, part) for part in parts)
        for part in parts:
            look: Hashable = None
            if prod(ckpt.shape(part)) == 1:  # equal numbers get equal numbers
                number = ckpt.tensor(part)
                look = values.setdefault(number.tobytes(), len(values)), bool(np.all(number == 1))
            elif nbytes(ckpt, part) * SMALL <= largest:
                look = _says(ckpt.tensor(part), part)
            looks.append((part.removeprefix(layer), ckpt.dtype(part), ckpt.shape(part), look))
    return tuple(looks)


def _says(small: Array, name: str) -> Hashable:
    if name.endswith("g_idx"):
        return bool((np.diff(small) >= 0).all())
    if small.dtype.kind in "iub":
        return bool(small.size and small.min() == small.max())
    size = np.abs(small.astype(np.float32))
    return bool(((size == 0) | ((size >= LOW) & (size <= HIGH))).all())


def nbytes(ckpt: Checkpoint, name: str) -> int:
    """Bytes of one tensor."""
    return prod(ckpt.shape(name)) * ckpt.dtype(name).itemsize
