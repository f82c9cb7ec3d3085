"""The contract of an architecture: HF config in, MLC config, weight table and relax graph out.

A file of this room is named after the HF ``model_type``. The weight table is plain data, so that
conversion needs no compiler; the graph imports tvm when it is built. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlc_bridge.schemes import SCHEMES
from mlc_bridge.schemes.scheme import Role, Scheme, Spec, for_role

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

    from mlc_bridge.models.decoder.state import State


Kind = Role | Literal["norm", "plain"]


@dataclass(frozen=True)
class Weight:
    """One weight as MLC names it, and the checkpoint layers that make it.

    ``path`` is MLC's module path; the scheme adds suffixes (``weight``, ``qweight``, ...). A matrix
    is ``[n, k]`` = (sum(rows), k); ``sources`` are stacked along n, ``rows[i]`` rows of source i.
    A norm has ``k == 0`` and shape ``[n]``. ``bias`` says that the layer also has a bias ``[n]``.
    ``offset`` is added to the source's values before they are stored. With ``experts`` the layer is
    a stack: ``rows``, ``n`` and ``k`` describe one expert, ``sources`` name those of expert 0, then
    of expert 1 and so on, and every stored array has the expert as its first axis. ``plain`` is a
    tensor that is no layer's matrix or norm: both names are whole ones, without a suffix; its shape
    is ``axes``, or ``[n]``. It is stored as float32, as it decides (a router's correction, say)
    rather than multiplies, or in the model dtype where ``follows``.
    """

    path: str
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    k: int
    role: Kind = "linear"
    bias: bool = False
    offset: float = 0.0
    experts: int = 0
    axes: tuple[int, ...] = ()
    follows: bool = False

    def expert_sources(self, number: int) -> tuple[str, ...]:
        """The checkpoint layers that make one expert."""
        parts = len(self.rows)
        return self.sources[number * parts : (number + 1) * parts]

    def parameter(self, suffix: str) -> str:
        """Full name of what is stored under ``suffix``."""
        return f"{self.path}.{suffix}" if suffix else self.path

    @property
    def tensor(self) -> str | None:
        """The checkpoint's tensor, of a weight that no scheme has a say in."""
        if self.role == "norm":
            return f"{self.sources[0]}.weight"
        return self.sources[0] if self.role == "plain" else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one expert, where there are experts."""
        return self.axes or ((self.n, self.k) if self.k else (self.n,))

    @property
    def n(self) -> int:
        return sum(self.rows)


class Stored(Protocol):
    """Where layers are stored otherwise than the model's scheme says (``ModelConfig``)."""

    @property
    def float_layers(self) -> tuple[str, ...]:
        """MLC paths of linears the checkpoint leaves unquantized (``modules_to_not_convert``)."""
        ...

    @property
    def layer_schemes(self) -> Mapping[str, str]:
        """MLC path -> name of the layer's own scheme, where a checkpoint mixes several."""
        ...


def own_scheme(weight: Weight, scheme: Scheme, stored: Stored | None = None) -> Scheme | None:
    """The scheme in whose form ``weight`` lies; None where it is float in the model dtype.

    ``scheme`` is the model's, ``stored`` says which layers differ. The converter and the graph both
    ask here, so that weights and lib agree by construction.
    """
    if weight.role == "norm" or weight.role == "plain":
        return None
    if stored and weight.path in stored.float_layers:
        return None
    if stored and weight.path in stored.layer_schemes:
        return for_role(SCHEMES[stored.layer_schemes[weight.path]], weight.role)
    return for_role(scheme, weight.role) if scheme.quantizes(weight.role) else None


def parameters(weight: Weight, scheme: Scheme, stored: Stored | None = None) -> dict[str, Spec]:
    """Suffix -> Spec of everything stored for ``weight``; full name: ``Weight.parameter``."""
    if weight.role == "plain":
        return {"": Spec(weight.shape, scheme.model_dtype if weight.follows else "float32")}
    plain = Spec(weight.shape, scheme.model_dtype)
    own = own_scheme(weight, scheme, stored)
    params = {"weight": plain} if own is None else dict(own.params(weight.n, weight.k))
    if weight.bias:
        params["bias"] = Spec((weight.n,), scheme.model_dtype)
    if weight.experts:
        if own is not None:
            own.dequantize(weight.k)  # refuses by name where a scheme has no experts
        params = {s: replace(p, shape=(weight.experts, *p.shape)) for s, p in params.items()}
    return params


class ModelConfig(Stored, Protocol):
    """MLC's compile-time config of one architecture; ``asdict`` is its ``model_config`` block."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_window_size(self) -> int: ...
    @property
    def prefill_chunk_size(self) -> int: ...
    @property
    def max_batch_size(self) -> int: ...
    @property
    def restart_beyond(self) -> int | None:
        """Tokens beyond which a sequence that began shorter must be prefilled anew (longrope)."""
        ...

    @property
    def split_layers(self) -> tuple[str, ...]:
        """MLC paths of fused linears that this checkpoint cannot hold in one parameter.

        Their parts are stored differently (``v_proj`` in float, say); each becomes a weight of its
        own under the checkpoint's name, which may stand in ``float_layers``.
        """
        ...

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """MLC paths of head and routers that the checkpoint quantizes as it does its linears."""
        ...

    def asdict(self) -> dict[str, Any]: ...


class Graph(Protocol):
    """A relax ``nn.Module`` that also says how it is called and what it needs from the runtime."""

    def functions(self) -> nn.spec.ModuleSpec:
        """Input shapes of every function; all take the parameters as one packed tuple."""
        ...

    def states(self) -> Sequence[State]:
        """What the runtime must hold for every layer, in the layers' order."""
        ...

    def export_tvm(self, spec: Any) -> Any:
        """``nn.Module``'s own: the traced functions, and the parameters in their order."""
        ...


class Arch(Protocol):
    @property
    def name(self) -> str: ...

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> ModelConfig:
        """From config.json (any transformers version) or from MLC's own ``model_config`` block."""
        ...

    def unused(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of config.json that are neither read nor known to be harmless, to be named."""
        ...

    def weights(self, config: Any) -> Sequence[Weight]:
        """Every weight in MLC's parameter order."""
        ...

    def graph(self, config: Any, scheme: Scheme) -> Graph:
        """The relax module with MLC's parameter names and function set."""
        ...
