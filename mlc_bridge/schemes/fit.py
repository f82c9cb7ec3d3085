"""Whether a layout has a place for a tensor: what its codes are, then what comes with them.

The kind of the codes is asked before any value is looked at: float8 codes that happen to be small
lie in the range of an integer scheme and mean something else there.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes.float8 import FORMATS


def misfit(
    q: QTensor, kinds: Sequence[str], group: int | None = None, *, zeros: bool = True,
    static: bool = False,
) -> str | None:  # fmt: skip
    """Why a layout of these ``kinds`` of codes (``QTensor.kind``) cannot hold ``q``, or None.

    ``group``: the width of its groups, where it has groups; ``zeros``: whether it has zero points;
    ``static``: whether a static activation scale may come along (stored, or left to the caller to
    report).
    """
    if q.kind not in kinds:
        return f"its codes are {q.kind}, the scheme's {' or '.join(kinds)}"
    if q.perm is not None:
        return "its input columns are permuted (activation order)"
    if q.zero is not None and not zeros:
        return "it has zero points, the scheme none"
    if q.input_scale is not None and not static:
        return "it brings a static activation scale"
    if q.kind in FORMATS and not FORMATS[q.kind].finite(q.codes.words):
        return "it holds NaN or infinity codes"
    return None if group is None else _blocks(q, group)


def _blocks(q: QTensor, group: int) -> str | None:
    """Why the blocks of ``q`` do not divide into rows of groups of ``group`` columns, or None."""
    k, width = q.shape[1], q.block[1]
    if width == group or (width % group == 0 and (k % group == 0 or width >= k)):
        return None
    if width >= k and k % group == 0:
        return None
    return f"groups of {width} do not divide into groups of {group}"
