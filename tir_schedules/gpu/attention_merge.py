"""Two attentions over different keys as one, in place, told to spare heads.

    lse = log2(2**a + 2**b),    out = out_a 2**(a - lse) + out_b 2**(b - lse)

TVM's own kernel does the same without spare heads.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from . import warp
from .attention_function import Arguments, Heads, function, i32, when

WARPS = 4  # heads of a block


def merge_state(heads: Heads) -> PrimFunc:
    """`v, v_other [n, num_q, d]`, `s, s_other [n, num_q]` float32 in base 2."""
    return function("merge_state", partial(_emit, heads))


def _emit(heads: Heads, a: Arguments) -> None:
    n = a.size("n")
    rows, scores = (n, heads.num_q, heads.d), (n, heads.num_q)
    v, s = a.tensor("v", rows, heads.dtype), a.tensor("s", scores, "float32")
    v_other = a.tensor("v_other", rows, heads.dtype)
    s_other = a.tensor("s_other", scores, "float32")
    blocks = [n, i32(-(-heads.num_q // WARPS))]
    with warp.kernel("int32", blocks, WARPS) as (row, block, w, lane):
        head = T.bind(tirx.min(block * WARPS + w, i32(heads.num_q - 1)))
        # by one lane for all, so that all have it before the same lane writes
        one, other = (T.bind(warp.of_lane(x[row, head], i32(0))) for x in (s, s_other))
        top = T.bind(tirx.max(one, other))
        shares = [T.bind(warp.exp2(x - top)) for x in (one, other)]
        total = T.bind(shares[0] + shares[1])
        with when(block * WARPS + w < heads.num_q):
            for i in range(-(-heads.d // warp.WARP)):
                dim = T.bind(lane + warp.WARP * i)
                with when(dim < heads.d):
                    place = [row, head, dim]
                    values = [x[tuple(place)].astype("float32") for x in (v, v_other)]
                    both = values[0] * shares[0] + values[1] * shares[1]
                    heads.put(v, place, both / total)
            with when(lane == 0):
                score = T.bind(top + tirx.log2(total))
                T.buffer_store(s, score, [row, head])
                heads.tell(v, row, head, score)
