"""The loop: one decoder layer at a time from the mapped file to a quantized part on disk.

For each layer: fill it, see what its linears see, edit, round, write, let the texts through. After
each layer its part, its report and the texts' states are on disk, so that a killed run goes on
there. ``Work.key`` says of which run they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.quantizers import edits, tensor_file
from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.chain import Chain
from mlc_bridge.quantizers.extra import float32, torch_here
from mlc_bridge.quantizers.grid import check_fits
from mlc_bridge.quantizers.heldout import Heldout
from mlc_bridge.quantizers.inputs import quantized_inputs, settling, stored
from mlc_bridge.quantizers.layer_report import LayerReport, compared
from mlc_bridge.quantizers.observe import cache_scales, scored, watching_attention
from mlc_bridge.quantizers.outputs import OUTPUTS, Rounded
from mlc_bridge.quantizers.recipe import OmniQuant, Recipe
from mlc_bridge.quantizers.roundings import Format, is_rounded, round_block
from mlc_bridge.quantizers.scores import Score, chosen
from mlc_bridge.quantizers.skeleton import HEAD, Skeleton
from mlc_bridge.quantizers.wiring import watch
from mlc_bridge.sources.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

Told = Callable[[str, int, int], None]
STATE = "state.jsonl"


@dataclass(frozen=True)
class Work:
    """What is to be done: ``linears`` are the checkpoint's linear layers, ``samples`` token ids.

    ``heldout``: windows of token ids that only measure. ``floats``: layers that stay float.
    ``dtype``: the model's, where config.json says another than the weights have.
    """

    ckpt: Checkpoint
    recipe: Recipe
    linears: frozenset[str]
    floats: frozenset[str]
    samples: Sequence[Sequence[int]]
    heldout: Sequence[Sequence[int]]
    key: str
    dtype: np.dtype[Any] | None = None


@dataclass
class Done:
    """What the loop leaves: part files in the order of the layers, and a report of each linear."""

    parts: list[Path] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    measured: Mapping[str, float] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()


def run(work: Work, folder: Path, told: Told) -> Done:
    """Quantize into parts in ``folder``; goes on where an earlier run of this key stopped."""
    folder.mkdir(exist_ok=True)
    return _Loop(work, folder, told).run()


def continues(folder: Path, key: str) -> bool:
    """Whether ``folder`` holds the beginning of the run with this key."""
    try:
        with (folder / STATE).open(encoding="utf-8") as file:
            return bool(json.loads(file.readline()) == {"job": key})
    except (OSError, ValueError):
        return False


class _Loop:
    def __init__(self, work: Work, folder: Path, told: Told) -> None:
        self.work, self.folder, self.told = work, folder, told
        self.recipe, self.ckpt = work.recipe, work.ckpt
        self.skeleton = Skeleton(work.ckpt)
        self.output = OUTPUTS[self.recipe.output.format]
        self.chains = self._chains()
        self.floats = work.floats
        self.rotation = edits.rotation(self.recipe, self.skeleton)

    def run(self) -> Done:
        done, first = self._resumed()
        if first == 0:
            self._begin()
        self.floats = done.floats = self._floats()
        for name in sorted(self.work.linears - self.floats):
            check_fits(self.recipe.weights, name, self.ckpt.matrix(f"{name}.weight"))
        n = self.skeleton.n_layers
        for i in range(first, n):
            self.told("quantize", i, n)
            part, reports = self._layer(i)
            self._note({"layer": i, "part": part.name,
                        "reports": [r.model_dump() for r in reports]})  # fmt: skip
            done.parts.append(part)
            done.layers += reports
            for chain in self.chains.values():
                chain.drop(i)
        self.told("quantize", n, n)
        done.parts.append(self._rest())
        if self.work.heldout:
            done.measured = Heldout(self.skeleton, self.chains, self.rotation).measure(
                self.work.heldout, n)  # fmt: skip
        return done

    def _floats(self) -> frozenset[str]:
        """Layers left in float; where scores decide, after a pass through the edited model."""
        keep, named = self.recipe.keep, self.work.floats
        if not (keep.level or keep.threshold):
            return named
        for line in _lines(self.folder / STATE):
            if "floats" in line:
                return frozenset(line["floats"])
        chain = Chain(self.folder, "scores", [len(s) for s in self.work.samples],
                      self.skeleton.hidden)  # fmt: skip
        self._fill(chain, self.work.samples, self.rotation)
        scores: dict[str, Score] = {}
        for i in range(self.skeleton.n_layers):
            self.told("scores", i, self.skeleton.n_layers)
            with self.skeleton.layer(i) as layer, torch_here().no_grad():
                block = self._block(i, layer, chain)
                self._edit(block)
                scores |= {self.skeleton.name(i, n): s for n, s in scored(block).items()}
                chain.advance(i, block)
            chain.drop(i)
        head = named & {HEAD}
        order = [name for name in scores if name in self.work.linears]
        found = chosen(keep, named - head, head, scores, order)
        self._note({"floats": sorted(found)})
        return found

    def _chains(self) -> dict[str, Chain]:
        chain = partial(Chain, self.folder, hidden=self.skeleton.hidden)
        made = {}
        samples, heldout = self.work.samples, self.work.heldout
        if self.recipe.needs_data:
            made["inputs"] = chain("inputs", [len(s) for s in samples])
        if isinstance(self.recipe.rounding, OmniQuant):
            made["targets"] = chain("targets", [len(s) for s in samples])
        if heldout:
            made["float"] = chain("float", [len(s) for s in heldout])
            made["quantized"] = chain("quantized", [len(s) for s in heldout])
        return made

    def _begin(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        (self.folder / STATE).write_text(json.dumps({"job": self.work.key}) + "\n", "utf-8")
        for name, chain in self.chains.items():
            texts = self.work.samples if name in ("inputs", "targets") else self.work.heldout
            self._fill(chain, texts, self.rotation if name != "float" else None)

    def _fill(self, chain: Chain, texts: Sequence[Sequence[int]], rotation: Any) -> None:
        """What the first layer sees."""
        embedded = (self.skeleton.embed(np.asarray(ids, np.int64)[None]) for ids in texts)
        chain.write(0, (x if rotation is None else rotation.states(x) for x in embedded))

    def _resumed(self) -> tuple[Done, int]:
        done, first = Done(), 0
        if not continues(self.folder, self.work.key):
            return done, 0
        for line in _lines(self.folder / STATE):
            part = self.folder / str(line.get("part"))
            if "layer" in line and line["layer"] == first and part.is_file():
                done.parts.append(part)
                done.layers += [LayerReport(**r) for r in line["reports"]]
                first += 1
        if not all(chain.complete(first) for chain in self.chains.values()):
            return Done(), 0
        return done, first

    def _note(self, value: Mapping[str, Any]) -> None:
        with (self.folder / STATE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def _layer(self, i: int) -> tuple[Path, list[LayerReport]]:
        torch = torch_here()
        with self.skeleton.layer(i) as layer, torch.no_grad():
            block = self._block(i, layer, self.chains.get("inputs"))
            if "float" in self.chains:
                self.chains["float"].advance(i, block)
            self._edit(block)
            settles = self._settles()
            if "inputs" in self.chains and not self.recipe.chained and not settles:
                self.chains["inputs"].advance(i, block)
            before = {n: block.weight(n).clone() for n in self._rounded_names(i, block)}
            self.beside: dict[str, Array] = {}
            scales = cache_scales(block) if self.recipe.cache == "int8" else {}
            form = Format(self.recipe, self._dtype(i), self.work.dtype or self._model_dtype(i))
            targets = self.chains.get("targets")
            if targets is not None:
                targets.advance(i, block)
            wanted = None if targets is None else lambda: targets.batches(i + 1)
            found = round_block(block, list(before), form, wanted)
            if settles:
                found = self._settled(i, block, found)
            with quantized_inputs(block, self.recipe, found):
                if "inputs" in self.chains and self.recipe.chained:
                    self.chains["inputs"].advance(i, block)
                if "quantized" in self.chains:
                    self.chains["quantized"].advance(i, block)
            reports = [compared(f"{block.name}.{n}", before[n], block.weight(n), found[n],
                                block.stats.get(n)) for n in before]  # fmt: skip
            part = self.folder / f"part-{i:05d}.safetensors"
            beside = {f"{block.name}.{n}": a for n, a in {**scales, **self.beside}.items()}
            tensor_file.write(part, {**self._tensors(i, block, found), **beside})
        return part, reports

    def _block(self, i: int, layer: Any, inputs: Chain | None) -> Block:
        arguments = partial(self.skeleton.arguments, i)
        wiring = watch(layer, self.skeleton.hidden, arguments(2))
        batches = (lambda: inputs.batches(i)) if inputs is not None else (lambda: iter(()))
        return Block(self.skeleton.name(i), layer, wiring, arguments, batches)

    def _settles(self) -> bool:
        """Whether stored scales are taken the way msModelSlim takes them."""
        recipe = self.recipe
        tool = recipe.output.format == "msmodelslim" and recipe.inputs.method == 1
        return tool and stored(recipe)

    def _settled(self, i: int, block: Block, found: dict[str, Rounded]) -> dict[str, Rounded]:
        chain = self.chains["inputs"]
        for length in set(chain.lengths):  # masks are made before attention is watched
            block.arguments(length)
        watching: AbstractContextManager[dict[str, Array]] = (
            watching_attention(block) if self.recipe.attention else nullcontext({})
        )
        with settling(block, self.recipe, list(found)) as scales, watching as attention:
            chain.write(i + 1, (block(x) for x in chain.batches(i, 1)))
        self.beside |= attention
        return {name: replace(r, inputs=scales[name]) for name, r in found.items()}

    def _edit(self, block: Block) -> None:
        if self.rotation is not None:
            self.rotation.layer(block)
        if not self.recipe.needs_data:
            return
        block.watch(block.wiring.linears)
        for edit in self.recipe.scalings:
            edits.apply(edit, block, self.recipe, self._store())

    def _rounded_names(self, i: int, block: Block) -> list[str]:
        names = [n for group in block.wiring.linears for n in group]
        every = [n for n in names if self.skeleton.name(i, n) in self.work.linears]
        kept = self.floats
        return [
            n for n in every if is_rounded(self.recipe) and self.skeleton.name(i, n) not in kept
        ]

    def _dtype(self, i: int) -> np.dtype[Any]:
        """Of scales and edited tensors."""
        wished = self.recipe.output.dtype
        if self.recipe.output.format == "msmodelslim":
            return np.dtype(np.float32)
        return np.dtype(_dtype(wished)) if wished else self._model_dtype(i)

    def _model_dtype(self, i: int) -> np.dtype[Any]:
        weight = next(n for n in self.ckpt.names if n.startswith(f"{self.skeleton.name(i)}."))
        return self.ckpt.dtype(weight)

    def _store(self) -> Callable[[Tensor], Tensor]:
        dtype = self._dtype(0)
        return lambda t: float32(t.numpy().astype(dtype))

    def _tensors(self, i: int, block: Block, found: Mapping[str, Rounded]) -> dict[str, Array]:
        """Everything of layer ``i``: quantized, edited, or as it was."""
        tensors: dict[str, Array] = {}
        prefix = f"{self.skeleton.name(i)}."
        dtype = self._dtype(i)
        changed = dict(block.layer.named_parameters())
        for name in (n for n in self.ckpt.names if n.startswith(prefix)):
            inside = name.removeprefix(prefix)
            module, _, suffix = inside.rpartition(".")
            if module in found:
                if suffix == "weight":
                    tensors.update(self.output.tensors(prefix + module, found[module], self.recipe))
                    continue
                if suffix == "bias" and found[module].bias is not None:
                    continue
            tensor = self.ckpt.tensor(name)
            if module in block.edited:
                tensor = changed[inside].detach().numpy().astype(dtype)
            tensors.update(self.output.floats(name, tensor, self.recipe))
        return tensors

    def _rest(self) -> Path:
        """Embedding, final norm and head."""
        inside = f"{self.skeleton.prefix}layers."
        names = [n for n in self.ckpt.names if not n.startswith(inside)]
        tensors: dict[str, Array] = {}
        for name in names:
            tensors |= self.output.floats(name, self.ckpt.tensor(name), self.recipe)
        if self.rotation is not None:
            tensors |= self.rotation.rest(self._dtype(0))
        part = self.folder / "part-rest.safetensors"
        tensor_file.write(part, tensors)
        return part


def _dtype(name: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bfloat16" else name


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return
