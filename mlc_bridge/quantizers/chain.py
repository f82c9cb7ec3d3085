"""Hidden states of a set of texts on their way through the layers, in files.

All samples end to end are one float32 matrix ``[tokens, hidden]``. The states before layer i lie in
one file, those after it are written to the next, so that a run which was stopped finds them; what
is not looked at is the page cache's business, not this process's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.quantizers.extra import float32

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 8192


class Chain:
    """``lengths``: tokens of each sample. ``at``: the layer whose input the file holds."""

    def __init__(self, folder: Path, name: str, lengths: Sequence[int], hidden: int) -> None:
        self.folder, self.name, self.hidden = folder, name, hidden
        self.lengths = tuple(lengths)
        self.starts = (0, *accumulate(self.lengths))

    def file(self, at: int) -> Path:
        return self.folder / f"{self.name}-{at:05d}.f32"

    def write(self, at: int, batches: Iterator[Tensor]) -> None:
        """The states before layer ``at``, batch by batch; complete before it has its name."""
        part = self.folder / f"{self.name}.part"
        with part.open("wb") as file:
            for batch in batches:
                file.write(np.ascontiguousarray(batch.detach().numpy(), np.float32).data)
        part.replace(self.file(at))

    def advance(self, at: int, layer: Callable[[Tensor], Tensor]) -> None:
        """From before layer ``at`` to before the next."""
        self.write(at + 1, (layer(x) for x in self.batches(at)))

    def drop(self, at: int) -> None:
        self.file(at).unlink(missing_ok=True)

    def complete(self, at: int) -> bool:
        file = self.file(at)
        return file.is_file() and file.stat().st_size == self.starts[-1] * self.hidden * 4

    def batches(self, at: int, tokens: int = BATCH_TOKENS) -> Iterator[Tensor]:
        """Samples of one length together, ``[samples, length, hidden]``."""
        states: Array = np.memmap(self.file(at), np.float32, "r").reshape(-1, self.hidden)
        for first, last in self.groups(tokens):
            rows = states[self.starts[first] : self.starts[last]]
            yield float32(rows).reshape(last - first, self.lengths[first], self.hidden)

    def groups(self, tokens: int) -> Iterator[tuple[int, int]]:
        """First and last sample of each batch."""
        first = 0
        for i in range(1, len(self.lengths) + 1):
            full = (i - first + 1) * self.lengths[first] > tokens
            if i == len(self.lengths) or self.lengths[i] != self.lengths[first] or full:
                yield first, i
                first = i
