"""The one recipe inside: what every spelling (short name, LLMC's YAML, msModelSlim's flags) means.

    Recipe(edits=(Awq(),), clip="search", rounding=Rtn(), weights=Grid(bits=4, group_size=128))

Immutable, JSON both ways, and strict: an unknown key is refused with the nearest known one. A
recipe speaks of the mathematics alone; data and paths are the job's.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlc_bridge.errors import ConfigError

Dtype = Literal["float16", "bfloat16", "float32"]


class Form(BaseModel):
    """Frozen and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(Form):
    """Codes 0 .. 2^bits - 1, and which weights share a scale.

    ``symmetric``: the zero is 2^(bits-1) everywhere. ``fit``: range from the extreme values, or the
    one with the smallest error among shrunk ones.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    symmetric: bool = False
    granularity: Literal["group", "channel", "tensor"] = "group"
    group_size: Annotated[int, Field(ge=1)] = 128
    fit: Literal["minmax", "mse"] = "minmax"

    @property
    def top(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero of symmetric codes."""
        return 1 << (self.bits - 1)

    def width(self, k: int) -> int:
        """Input columns that share a scale."""
        return self.group_size if self.granularity == "group" else k


class Awq(Form):
    """Scale input channels by how large activations are there; ``awq.py``.

    ``first_batch``: msModelSlim's m3: norms alone, by the first sample's mean|x| and the error of
    each layer's own output on it.
    """

    method: Literal["awq"] = "awq"
    version: Literal["v1", "v2"] = "v2"
    first_batch: bool = False
    steps: Annotated[int, Field(ge=1)] = 20


class Smooth(Form):
    """s = max|x|^alpha / max|w|^beta; ``smooth.py``. ``outputs``: v -> o and up -> down as well."""

    method: Literal["smooth"] = "smooth"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    outputs: bool = False


class OsPlus(Form):
    """Outlier Suppression+: scale channels into a range that a search finds; ``os_plus.py``."""

    method: Literal["os_plus"] = "os_plus"


class Outliers(Form):
    """Scale the outlier channels alone (msModelSlim's m5); ``outliers.py``."""

    method: Literal["outliers"] = "outliers"


class Flex(Form):
    """``smooth`` with exponents found by a search (msModelSlim's m6); ``flex.py``."""

    method: Literal["flex"] = "flex"
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    beta: Annotated[float, Field(ge=0, le=1)] | None = None


class Rotate(Form):
    """Rotate the residual stream (R1) and the heads' values (R2) offline; ``rotate.py``."""

    method: Literal["rotate"] = "rotate"
    kind: Literal["hadamard", "random"] = "hadamard"
    values: bool = True
    seed: int = 0


Edit = Annotated[Awq | Smooth | OsPlus | Outliers | Flex | Rotate, Field(discriminator="method")]


class Rtn(Form):
    """Round to nearest; ``rtn.py``."""

    method: Literal["rtn"] = "rtn"


class NoRounding(Form):
    """Edits alone; the weights stay float."""

    method: Literal["none"] = "none"


class Gptq(Form):
    """Round column by column, let later columns make good; ``gptq.py``."""

    method: Literal["gptq"] = "gptq"
    damping: Annotated[float, Field(ge=0)] = 0.01
    block: Annotated[int, Field(ge=1)] = 128
    order: bool = True
    static_groups: bool = True


class OmniQuant(Form):
    """Learn how far each group is clipped; ``omniquant.py``."""

    method: Literal["omniquant"] = "omniquant"
    epochs: Annotated[int, Field(ge=1)] = 5
    rate: Annotated[float, Field(gt=0)] = 0.01
    decay: Annotated[float, Field(ge=0)] = 0.0
    second_loss: bool = False
    from_clip: bool = True


class Sparse(Form):
    """4-bit grid whose outliers are simply larger codes (W8A8S); ``sparse.py``."""

    method: Literal["sparse"] = "sparse"
    per_row: bool = False
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    sigma: float | None = None


class Progressive(Form):
    """4-bit groups of int8 channels (W4A8 in two levels); ``progressive.py``."""

    method: Literal["progressive"] = "progressive"


Rounding = Annotated[
    Rtn | NoRounding | Gptq | OmniQuant | Sparse | Progressive, Field(discriminator="method")
]


class Inputs(Form):
    """How a layer's input is quantized: at run time per token, with stored scales, or both.

    ``method``: the range of stored scales: 1 mean of the batches' extremes, 2 histogram, 3 either.
    """

    kind: Literal["float", "dynamic", "static", "mixed"] = "float"
    symmetric: bool = False
    method: Literal[1, 2, 3] = 1


class Keep(Form):
    """Layers left in float: by name or pattern, the head, the ``level`` ones hardest to quantize.

    ``threshold``: of the named layers only those with a larger score stay float.
    """

    names: tuple[str, ...] = ()
    last_linear: bool = True
    level: Annotated[int, Field(ge=0)] = 0
    threshold: float = 0.0


class Calibration(Form):
    """How much text is read: ``samples`` of ``length`` tokens; joined text is cut without rest."""

    samples: Annotated[int, Field(ge=1)] = 128
    length: Annotated[int, Field(ge=2)] = 512
    join: bool = True
    template: bool = True
    seed: int = 0


class Output(Form):
    """The checkpoint's form; ``dtype`` of scales and float tensors, None for the model's own."""

    format: Literal["compressed-tensors", "autoawq", "msmodelslim", "float"] = "compressed-tensors"
    folder: str | None = None
    shard_bytes: Annotated[int, Field(ge=1 << 16)] = 5 << 30
    safe_tensor: bool = False
    dtype: Dtype | None = None


class Recipe(Form):
    """Everything that decides the numbers. ``chained``: a layer sees what quantized layers give.

    ``clip_steps``: candidates of the clip search between the whole range and half of it.
    ``sequential``: inside a layer, later linears see earlier ones quantized.
    """

    name: str = "recipe"
    edits: tuple[Edit, ...] = ()
    clip: bool = False
    clip_steps: Annotated[int, Field(ge=1)] = 10
    rounding: Rounding = Rtn()
    weights: Grid = Grid()
    inputs: Inputs = Inputs()
    cache: Literal["float", "int8"] = "float"
    attention: bool = False
    keep: Keep = Keep()
    chained: bool = True
    sequential: bool = False
    calibration: Calibration = Calibration()
    output: Output = Output()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.clip and not isinstance(self.rounding, Rtn | OmniQuant):
            raise ValueError(f"clip has no meaning before {self.rounding.method}")
        return self

    @property
    def rotations(self) -> tuple[Rotate, ...]:
        return tuple(e for e in self.edits if isinstance(e, Rotate))

    @property
    def scalings(self) -> tuple[Any, ...]:
        return tuple(e for e in self.edits if not isinstance(e, Rotate))

    @property
    def needs_data(self) -> bool:
        """Whether any number depends on activations."""
        return bool(
            self.scalings
            or self.clip
            or isinstance(self.rounding, Gptq | OmniQuant)
            or self.inputs.kind in ("static", "mixed")
            or self.cache != "float"
            or self.attention
            or self.keep.level
            or self.keep.threshold
        )

    @classmethod
    def of(cls, values: Mapping[str, Any], where: object) -> Recipe:
        """Raises ConfigError naming the key at fault and the nearest known one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise refused(error, cls, where) from error


def refused(error: ValidationError, kind: type[BaseModel], where: object) -> ConfigError:
    """The first complaint of pydantic in the user's words."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        said = first["msg"].removeprefix("Value error, ")
        return ConfigError(f"{'.'.join(path) or 'recipe'}: {said[:1].lower()}{said[1:]}",
                           where=where)  # fmt: skip
    return unknown_key(path[-1], fields_at(kind, path[:-1]), where, ".".join(path))


def unknown_key(key: str, known: Any, where: object, path: str | None = None) -> ConfigError:
    """An unknown key, with the nearest of the known ones."""
    near = get_close_matches(key, list(known), 1)
    return ConfigError(
        f"{path or key}: unknown key",
        where=where,
        expected=f"{near[0]}" if near else "one of " + ", ".join(sorted(known)),
    )


def fields_at(kind: Any, path: list[str]) -> list[str]:
    """Field names of the model that ``path`` leads to; of all edits or roundings in a union."""
    for part in path:
        found = _models(kind)
        named = [m for m in found if m.model_fields.get("method") and part == m.model_fields[
            "method"].default]  # fmt: skip
        if named:
            kind = named[0]
        elif not part.isdigit():
            kind = next((m.model_fields[part].annotation for m in found if part in m.model_fields),
                        kind)  # fmt: skip
    return [name for model in _models(kind) for name in model.model_fields]


def _models(kind: Any) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [m for part in getattr(kind, "__args__", ()) for m in _models(part)]
