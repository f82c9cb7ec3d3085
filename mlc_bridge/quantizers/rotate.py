"""QuaRot and SpinQuant offline: turn the residual stream, and each head's values, by a rotation.

    E' = E Q    W_in' = W_in diag(g) Q    W_out' = Q^T W_out    head' = head diag(g) Q    g' = 1
    v' = R^T v   (each head)              o' = o R              (each head's columns)

Q^T Q = 1, and an RMS norm without gain commutes with Q, so the function stays; outliers of single
channels are spread over all of them. All in float64. What needs a rotation at run time (QuaRot's
R3, R4) has no place in a file of weights. A norm whose output goes back into the stream (Gemma 2,
OLMo 2) cannot be turned: refused. A tied head is written out.

Origin: arXiv 2404.00456 (R1), 2405.16406 (R2); LLMC's Quarot subtracts the mean of each embedding
as well, which changes the function under RMS norms: left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import ConfigError
from mlc_bridge.packing import Array
from mlc_bridge.quantizers.block import Block, gain_offset
from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.hadamard import rotation_matrix
from mlc_bridge.quantizers.recipe import Rotate
from mlc_bridge.quantizers.skeleton import HEAD, Skeleton

if TYPE_CHECKING:
    from torch import Tensor

OUTPUTS = ("o_proj", "down_proj")


class Rotation:
    """One rotation of a whole model; raises ConfigError where its layers cannot be turned."""

    def __init__(self, how: Rotate, skeleton: Skeleton) -> None:
        torch = torch_here()
        self.how, self.skeleton = how, skeleton
        self.q = torch.from_numpy(rotation_matrix(skeleton.hidden, how.kind, how.seed))
        heads = skeleton.model.config.num_attention_heads
        self.head_dim = int(getattr(skeleton.model.config, "head_dim", None)
                            or skeleton.hidden // heads)  # fmt: skip
        self.r = torch.from_numpy(rotation_matrix(self.head_dim, how.kind, how.seed + 1))

    def states(self, x: Tensor) -> Tensor:
        return (x.double() @ self.q).float()

    def back(self, x: Tensor) -> Tensor:
        return (x.double() @ self.q.T).float()

    def layer(self, block: Block) -> None:
        """Turn one decoder layer in place."""
        wiring, hidden = block.wiring, self.skeleton.hidden
        for norm in wiring.loose:
            if block.module(norm).weight.shape[0] == hidden:
                raise ConfigError("this norm's output goes back into the residual stream, "
                                  "which cannot be turned", where=f"{block.name}.{norm}",
                                  todo="Leave the rotation out")  # fmt: skip
        for pair in (p for p in wiring.pairs if p.is_norm):
            norm = block.module(pair.feeder)
            gain = norm.weight.data + gain_offset(norm)
            norm.weight.data = torch_here().full_like(gain, 1 - gain_offset(norm))
            for name in pair.linears:
                self._set(block, name, partial(self._read, gain.double()))
            block.edited |= {pair.feeder, *pair.linears}
        for name in (n for group in wiring.linears for n in group if n.endswith(OUTPUTS)):
            self._set(block, name, lambda w: self.q.T @ w)
            if block.module(name).bias is not None:
                block.module(name).bias.data = self.states(block.module(name).bias.data)
            block.edited.add(name)
        if self.how.values:
            self._values(block)

    def _read(self, gain: Tensor, w: Tensor) -> Tensor:
        return (w * gain) @ self.q

    def rest(self, dtype: np.dtype[Any]) -> dict[str, Array]:
        """Embedding, final norm and head, turned."""
        torch, skeleton = torch_here(), self.skeleton
        norm = skeleton.final_norm()
        offset = gain_offset(norm)
        gain = norm.weight.data.double() + offset
        embedding = f"{skeleton.prefix}embed_tokens.weight"
        head = (torch.from_numpy(skeleton.head.astype(np.float64)) * gain) @ self.q
        stream = torch.from_numpy(skeleton.ckpt.tensor(embedding).astype(np.float64)) @ self.q
        ones = np.full(len(gain), 1 - offset, np.float64)
        found = {embedding: stream.numpy(), f"{HEAD}.weight": head.numpy(),
                 f"{skeleton.prefix}norm.weight": ones}  # fmt: skip
        return {name: array.astype(dtype) for name, array in found.items()}

    def _values(self, block: Block) -> None:
        """Each head's values and the columns of o_proj that read them, where v has its own layer.

        A head's columns follow each other in o_proj, whichever value head they read.
        """
        names = [n for group in block.wiring.linears for n in group]
        v = next((n for n in names if n.endswith("v_proj")), None)
        o = next((n for n in names if n.endswith("o_proj")), None)
        if v is None or o is None:
            return
        d = self.head_dim
        self._set(block, v, lambda w: self._rows(w, d))
        self._set(block, o, lambda w: (w.reshape(len(w), -1, d) @ self.r).reshape(w.shape))
        if (bias := block.module(v).bias) is not None:
            bias.data = (bias.data.double().reshape(-1, d) @ self.r).reshape(-1).float()

    def _rows(self, w: Tensor, d: int) -> Tensor:
        return (self.r.T @ w.reshape(-1, d, w.shape[1])).reshape(w.shape)

    @staticmethod
    def _set(block: Block, name: str, change: Callable[[Any], Any]) -> None:
        weight = block.module(name).weight
        weight.data = change(weight.data.double()).float()
