"""What a checkpoint is, answered once: format, architecture, scheme, weights, every tensor's fate.

Every stage takes this answer and asks nothing again, so gen-config, convert, inspect, verify, build
and the MLC LLM backend cannot differ. Nothing is written, and what can be known before the long
work is refused here. Read are headers, the small tensors (scales, column orders), the codes of one
weight of every kind (``kinds.py``), and two tables where one is said to be a copy of the other.

``Model`` is what config.json and a scheme say; ``Recognised`` adds the checkpoint's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.generation_values import GenerationValues
from mlc_bridge.artifact.json_text import checked, json_object, text_of
from mlc_bridge.artifact.manifest import fingerprint
from mlc_bridge.errors import CannotExpress, ConfigError, SourceError
from mlc_bridge.models import MODELS, Arch, ModelConfig, Weight
from mlc_bridge.models.arch import own_scheme, parameters
from mlc_bridge.schemes import SCHEMES, Scheme, Spec
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.sources import SOURCES, Checkpoint, Source, detect
from mlc_bridge.sources.activation_order import folded
from mlc_bridge.sources.hub import resolve
from mlc_bridge.sources.source import FLOATS
from mlc_bridge.stages.choose_scheme import choose_scheme, nbytes_of, widened
from mlc_bridge.stages.draft_layers import without_draft_layers
from mlc_bridge.stages.joined_experts import experts_apart
from mlc_bridge.stages.kinds import Kind, kinds, nbytes
from mlc_bridge.stages.left_out import left_out, same_values
from mlc_bridge.stages.requantize import Requantize
from mlc_bridge.stages.scheme_map import AUTO, SchemeMap
from mlc_bridge.stages.text_part import text_config, text_part, told

NOTHING = Requantize()
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
Limits = Mapping[str, int]


@dataclass(frozen=True)
class Model:
    """What config.json says under one scheme: what the graph is built from."""

    arch: Arch
    config: ModelConfig
    scheme: Scheme

    @cached_property
    def weights(self) -> Sequence[Weight]:
        """Every weight in MLC's parameter order."""
        return self.arch.weights(self.config)

    def scheme_of(self, weight: Weight) -> Scheme:
        """The scheme in whose form ``weight`` is stored; a float one where it stays float."""
        own = own_scheme(weight, self.scheme, self.config)
        return own or BY_DTYPE[self.scheme.model_dtype]

    def params(self, weight: Weight) -> dict[str, Spec]:
        """Suffix -> Spec of one weight."""
        return parameters(weight, self.scheme, self.config)

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Full parameter name -> Spec, in the order in which they are written."""
        return {w.parameter(s): spec for w in self.weights for s, spec in self.params(w).items()}

    @property
    def fingerprint(self) -> str:
        params = [(name, spec.shape, spec.dtype) for name, spec in self.specs.items()]
        return fingerprint(self.arch.name, self.config.asdict(), params)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters together."""
        return sum(nbytes_of(spec) for spec in self.specs.values())

    @property
    def elements(self) -> int:
        """Logical elements: what the float model has."""
        return sum(
            (w.n * max(w.k, 1) + (w.n if w.bias else 0)) * max(w.experts, 1) for w in self.weights
        )


@dataclass(frozen=True)
class Recognised(Model):
    """A model and the bytes it comes from; ``left_out``: tensor -> why it is not converted."""

    ckpt: Checkpoint
    source: Source
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def checkpoint_nbytes(self) -> int:
        """Bytes of all tensors that are converted, as the checkpoint stores them."""
        kept = (name for name in self.ckpt.names if name not in self.left_out)
        return sum(nbytes(self.ckpt, name) for name in kept)

    def findings(self) -> tuple[str, ...]:
        """What the user should know before converting; reads data."""
        return (*self.notes, *self.source.findings(self.ckpt))


@dataclass(frozen=True)
class Surveyed:
    """What holds under every scheme; ``given`` is what the config says beyond config.json.

    ``untied``: why a tied head is kept after all.
    """

    ckpt: Checkpoint
    source: Source
    arch: Arch
    given: Mapping[str, Any]
    left_out: Mapping[str, str]
    untied: str | None

    @cached_property
    def config(self) -> ModelConfig:
        return self.arch.config(self.ckpt.config, **self.given)

    @cached_property
    def weights(self) -> Sequence[Weight]:
        return self.arch.weights(self.config)

    def split(self, paths: Sequence[str]) -> Surveyed:
        """The same with these fused layers in parts, beside those that are already."""
        every = (*self.config.split_layers, *paths)
        return replace(self, given={**self.given, "split_layers": every}) if paths else self

    def held(self, scheme: Scheme, own: Mapping[str, Scheme]) -> Surveyed:
        """The same with these layers (MLC paths) in schemes of their own beside ``scheme``."""
        return replace(self, given={**self.given, **_own(self.weights, self.config, scheme, own)})

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        notes = [*told(self.ckpt.outside), *([self.untied] if self.untied else [])]
        if split := self.config.split_layers:
            notes.append(
                f"{len(split)} fused layers (the first is {split[0]}) stand apart as in the "
                "checkpoint: no single weight holds their parts exactly"
            )
        if keys := self.arch.unused(self.ckpt.config):
            notes.append(f"unknown in config.json, not used: {', '.join(keys)}")
        return tuple(notes)


def recognise(
    model_dir: str | Path,
    source: str | Path | None = None,
    source_format: str = AUTO,
    quantization: str = AUTO,
    *,
    requantize: bool | str = False,
    limits: Limits | None = None,
) -> Recognised:
    """Decide everything that a conversion does; ``limits`` are sizes for the model's config.

    Raises SourceError (the files), ConfigError (config.json, flags), CannotExpress (the scheme).
    """
    ckpt, fmt = detected(open_checkpoint(model_dir, source), source_format)
    wish = Requantize.of(requantize)
    found = survey(ckpt, fmt, limits, wish)
    wish.check(found.weights)
    named = SchemeMap.of(quantization)
    named.check(found.weights)
    return settled(found, named, wish)


def settled(found: Surveyed, named: SchemeMap, requantize: Requantize = NOTHING) -> Recognised:
    """What was surveyed, with a scheme for every layer; CannotExpress, ConfigError."""
    found, scheme, alike = _settled(found, named, requantize)
    ckpt, fmt = found.ckpt, found.source
    model = Recognised(found.arch, found.config, scheme, ckpt, fmt, found.left_out, found.notes)
    model.specs  # noqa: B018  raises where a shape does not fit the scheme
    told = (_several(model), widened(model.scheme_of, alike), *_narrowed(model))
    return replace(model, notes=(*found.notes, *filter(None, told)))


def _settled(
    found: Surveyed, named: SchemeMap, requantize: Requantize
) -> tuple[Surveyed, Scheme, list[Kind]]:
    """Schemes for all layers, fused ones in parts where the parts want several."""
    ckpt, source = found.ckpt, found.source
    while True:
        alike = kinds(ckpt, source, found.weights)
        choice = choose_scheme(ckpt, source, found.weights, alike, named, requantize)
        if choice.scheme is not None and not choice.split:
            return found.held(choice.scheme, choice.own), choice.scheme, alike
        found = _apart(found, choice.split)


def _apart(found: Surveyed, paths: tuple[str, ...]) -> Surveyed:
    """These fused layers in parts; a part of a float layer stays float."""
    floats = set(found.config.float_layers).intersection(paths)
    split = found.split(paths)
    if not floats:
        return split
    parts = {s for w in found.weights if w.path in floats for s in w.sources}
    new = (w.path for w in split.weights if parts.issuperset(w.sources))
    kept = (path for path in found.config.float_layers if path not in floats)
    return replace(split, given={**split.given, "float_layers": (*kept, *new)})


def _several(model: Model) -> str | None:
    """How many layers are of which scheme, where there are several."""
    if not model.config.layer_schemes:
        return None
    count: dict[str, int] = {}
    for weight in model.weights:
        if (scheme := own_scheme(weight, model.scheme, model.config)) is not None:
            count[scheme.name] = count.get(scheme.name, 0) + 1
    return "layers of several schemes: " + ", ".join(f"{n} {name}" for name, n in count.items())


def _narrowed(model: Recognised) -> tuple[str, ...]:
    """Float tensors that lose bits in the scheme's model dtype, by their headers.

    bfloat16 in float16 is not told: its bits fit, and what overflows is refused.
    """
    stored = model.scheme.model_dtype
    wider = {"float16": ("float32",), "bfloat16": ("float32", "float16")}.get(stored, ())
    plain = (w for w in model.weights if model.scheme_of(w) in BY_DTYPE.values())
    names = (f"{layer}.weight" for w in plain for layer in w.sources)
    lossy = [n for n in names if n in model.ckpt and str(model.ckpt.dtype(n)) in wider]
    if not lossy:
        return ()
    found = str(model.ckpt.dtype(lossy[0]))
    return (f"{len(lossy)} tensors of {found} are rounded to {stored}; the first is {lossy[0]}",)


def describe(
    model_dir: str | Path, quantization: str = AUTO, limits: Limits | None = None
) -> Model:
    """What config.json alone says, for a directory without weights."""
    home = home_of(model_dir)
    if quantization == AUTO:
        raise SourceError(
            "no weights here to choose a scheme from",
            where=home,
            todo="Name one with --quantization",
        )
    config_json = text_config(read_config(home))
    arch = architecture(config_json, home)
    config = arch.config(config_json, **(limits or {}))
    named, weights = SchemeMap.of(quantization), arch.weights(config)
    named.check(weights)
    own = {w.path: s for w in weights if (s := named.of_weight(w))}
    scheme = SCHEMES[named.first]
    given = {**(limits or {}), **_own(weights, config, scheme, own)}
    return Model(arch, arch.config(config_json, **given), scheme)


def _own(
    weights: Sequence[Weight], config: ModelConfig, scheme: Scheme, own: Mapping[str, Scheme]
) -> dict[str, Any]:
    """``own`` as the config says it, which is silent of what ``scheme`` makes of a layer anyway."""
    kept = [path for path in config.float_layers if path not in own]
    names: dict[str, str] = {}
    for weight in weights:
        form = own.get(weight.path)
        usual = own_scheme(weight, scheme) is not None
        if form in BY_DTYPE.values():
            kept += [weight.path] if usual else []
        elif form is not None and not (usual and form.name == scheme.name):
            names[weight.path] = form.name
    return {"float_layers": tuple(kept), "layer_schemes": names}


def described(chat: ChatConfig) -> Model:
    """What an MLC directory says of itself."""
    arch = MODELS[chat.model_type]
    return Model(arch, arch.config(chat.arch_config), SCHEMES[chat.quantization])


def home_of(model_dir: str | Path) -> Path:
    """The directory of config.json and tokenizer; MODEL_DIR may be a weights file in it."""
    path = resolve(model_dir)
    return path if path.is_dir() else path.parent


def has_weights(model_dir: str | Path) -> bool:
    """Whether MODEL_DIR is a weights file, or a directory that holds one."""
    path = resolve(model_dir)
    return not path.is_dir() or any(any(path.glob(pattern)) for pattern in WEIGHTS)


def open_checkpoint(model_dir: str | Path, source: str | Path | None = None) -> Checkpoint:
    """Config of ``model_dir`` and weights of ``source``, or of ``model_dir``; the part that is run.

    That is the text model, without layers that guess ahead, every expert with its own tensors.
    """
    path = resolve(model_dir if source is None else source)
    whole = Checkpoint.open(path, config_dir=home_of(model_dir))
    return experts_apart(without_draft_layers(text_part(whole)))


def detected(ckpt: Checkpoint, source_format: str = AUTO) -> tuple[Checkpoint, Source]:
    """The format of the checkpoint, activation order folded where that changes nothing.

    A format that is named goes over the config's own word; the tensors must still be of it.
    """
    ckpt = replace(ckpt, read_as=source_format) if source_format in SOURCES else ckpt
    return ckpt, folded(detect(ckpt, source_format), ckpt)


def architecture(config_json: Mapping[str, Any], home: Path) -> Arch:
    """The architecture that config.json names, of a multimodal checkpoint its text model's."""
    named = text_config(config_json).get("model_type")
    if not named:
        raise ConfigError("there is no model_type", where=home / "config.json")
    return MODELS[str(named)]


def read_config(home: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON object in ``home / name``; ConfigError where there is none, or where an id or a
    sampling value in it has another type.
    """
    path = home / name
    if not path.exists():
        raise ConfigError(
            "no such file", where=path, todo="Give a directory that holds a Hugging Face model"
        )
    found = json_object(text_of(path), path)
    checked(GenerationValues, found, path)
    return found


def survey(
    ckpt: Checkpoint,
    source: Source,
    limits: Limits | None = None,
    requantize: Requantize = NOTHING,
) -> Surveyed:
    """Config and tensors held against each other; what no scheme has a say in."""
    if not ckpt.config:
        read_config(ckpt.path)
    arch = architecture(ckpt.config, ckpt.path)
    given: dict[str, Any] = dict(limits or {})
    untied = _untied(ckpt, source, arch, given)
    if untied:
        given["tie_word_embeddings"] = False

    def weights() -> Sequence[Weight]:
        return arch.weights(arch.config(ckpt.config, **given))

    quantized = set(source.layers(ckpt))
    if split := _partly_float(weights(), quantized, requantize):
        given["split_layers"] = split
    if linear := _quantized_heads(weights(), quantized, requantize):
        given["linear_layers"] = linear
    if floats := _float_layers(weights(), quantized, requantize):
        given["float_layers"] = floats
    table = weights()
    source.check_whole(ckpt)
    for weight in table:
        _check(ckpt, source, weight)
    left = {**ckpt.outside, **left_out(ckpt, source, table)}
    return Surveyed(ckpt, source, arch, given, left, untied)


def _untied(ckpt: Checkpoint, source: Source, arch: Arch, given: Mapping[str, Any]) -> str | None:
    """Why config.json's tied head is none: the file has another one. None where all is well."""
    weights = arch.weights(arch.config(ckpt.config, **given))
    if any(weight.role == "lm_head" for weight in weights):
        return None
    embedding = f"{weights[0].sources[0]}.weight"
    head = [n for n in ckpt.names if n.startswith("lm_head.") and not n.endswith(".bias")]
    if not head or (head == ["lm_head.weight"] and same_values(ckpt, head[0], embedding)):
        return None
    try:
        untied = arch.weights(arch.config(ckpt.config, **given, tie_word_embeddings=False))
    except ConfigError:  # an architecture that is always tied
        untied = []
    if all(weight.role != "lm_head" for weight in untied):
        raise SourceError(
            f"{arch.name} has one table for embedding and head, the checkpoint two that differ",
            where=head[0],
            expected=f"a copy of {embedding}",
        )
    return (
        f"config.json ties the head to the embedding, but {head[0]} differs from {embedding}: "
        "they are kept apart"
    )


def _partly_float(
    weights: Sequence[Weight], quantized: Set[str], requantize: Requantize
) -> tuple[str, ...]:
    """MLC paths of fused linears whose parts are float here and quantized there."""

    def mixed(layers: Sequence[str]) -> bool:
        return len({layer in quantized for layer in layers}) > 1

    fused = [w for w in weights if w.role == "linear" and len(w.rows) > 1]
    return tuple(w.path for w in fused if mixed(w.sources) and not requantize.covers(w))


def _quantized_heads(
    weights: Sequence[Weight], quantized: Set[str], requantize: Requantize
) -> tuple[str, ...]:
    """MLC paths of head and routers that the checkpoint quantizes; schemes leave them float."""
    others = [w for w in weights if w.role in ("lm_head", "router")]
    return tuple(w.path for w in others if w.sources[0] in quantized and not requantize.covers(w))


def _float_layers(
    weights: Sequence[Weight], quantized: Set[str], requantize: Requantize
) -> tuple[str, ...]:
    """MLC paths of linears that a quantized checkpoint leaves float; the tensors on disk say it.

    Tools leave layers out by lists of names (``modules_to_not_convert``, ``ignore``) or by mixed
    precision without any list. Raises CannotExpress for experts of which only some are float.
    """
    found = []
    for weight in weights if quantized else ():
        left = [layer for layer in weight.sources if layer not in quantized]
        if weight.role != "linear" or not left:
            continue
        if len(left) == len(weight.sources):
            found.append(weight.path)
        elif not requantize.covers(weight):
            raise CannotExpress(
                weight.path,
                "One stack of experts",
                f"the checkpoint leaves {', '.join(left[:3])} in float and quantizes the others",
                todo="Quantize the model again with its experts treated alike",
            )
    return tuple(found)


def _check(ckpt: Checkpoint, source: Source, weight: Weight) -> None:
    """Headers only: every part of ``weight`` is there and has the shape that config.json wants."""
    if weight.tensor is not None:
        _check_vector(ckpt, weight, weight.tensor)
    rows = weight.rows * max(weight.experts, 1)
    for layer, n in zip(weight.sources, rows, strict=True):
        if weight.tensor is None:
            source.check(ckpt, layer, (n, weight.k))
        if weight.bias and f"{layer}.bias" in ckpt:
            ckpt.require(f"{layer}.bias", (n,))
        elif weight.bias and source.bias(ckpt, layer) is None:
            raise SourceError("the checkpoint lacks this tensor", where=f"{layer}.bias")


def _check_vector(ckpt: Checkpoint, weight: Weight, tensor: str) -> None:
    """Axes of one element (``[1, n]``, ``[n, 1, k]``) are the tool's, and no matter."""
    found = ckpt.shape(tensor) if tensor in ckpt else ()
    alike = tuple(n for n in found if n > 1) == tuple(n for n in weight.shape if n > 1)
    ckpt.require(tensor, found if alike and weight.role == "plain" else weight.shape, *FLOATS)
