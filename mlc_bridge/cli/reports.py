"""Reports of the stages as text; one function per report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from mlc_bridge.cli import show
from mlc_bridge.stages.bench import BenchReport
from mlc_bridge.stages.build import BuildReport
from mlc_bridge.stages.build_plan import BuildPlan
from mlc_bridge.stages.calibrate import CalibrateReport
from mlc_bridge.stages.compile import CompileReport
from mlc_bridge.stages.convert_weight import ConvertReport, LayerError
from mlc_bridge.stages.doctor import Diagnosis
from mlc_bridge.stages.gen_config import GenConfigReport
from mlc_bridge.stages.inspect_artifact import CheckReport
from mlc_bridge.stages.quantize import QuantizeReport
from mlc_bridge.stages.verify import VerifyReport

WORST = 5  # rounded layers on the screen


def config(title: str, found: GenConfigReport) -> None:
    chat = found.config
    proof = found.prompts_proven_equal
    show.rows(
        title,
        [
            ("output", found.output),
            ("model type", chat.model_type),
            ("source format", found.source),
            ("quantization", chat.quantization),
            ("conv template", _template(chat.conv_template.name or "unnamed", proof)),
            ("context window", f"{chat.context_window_size} tokens"),
            ("tokenizer files", found.files),
        ],
    )
    show.notes(found.notes)


def conversion(title: str, found: ConvertReport) -> None:
    show.report(title, found)
    rounding(found)


def rounding(found: ConvertReport) -> None:
    """What --requantize cost: a summary, and the layers it cost most."""
    rounded_layers(found.requantized, f"rounded into {found.quantization}")


def rounded_layers(errors: Sequence[LayerError], title: str = "rounded") -> None:
    if not errors:
        return
    ranked = sorted(errors, key=lambda e: e.relative, reverse=True)
    largest = max(ranked, key=lambda e: e.max)
    mean = math.sqrt(sum(e.relative**2 for e in ranked) / len(ranked))
    show.rows(
        title,
        [
            ("layers", len(ranked)),
            ("RMS error", f"{mean:.3%} of the weights' RMS, {ranked[0].relative:.3%} at most"),
            ("largest error", f"{largest.max:.4g} in {largest.layer}"),
            ("cosine", f"{min(e.cosine for e in ranked):.6f} at least"),
        ],
    )
    show.table(
        ("worst layers", "RMS error", "max", "cosine", "relative %"),
        [(e.layer, e.rms, e.max, f"{e.cosine:.6f}", 100 * e.relative) for e in ranked[:WORST]],
    )
    if len(ranked) > WORST:
        show.notes((f"{len(ranked) - WORST} more layers were rounded; --json lists all",))


def _size(found: ConvertReport | BuildPlan) -> str:
    return f"{show.size(found.nbytes)} (checkpoint {show.size(found.checkpoint_nbytes)})"


def _template(name: str, proof: int) -> str:
    how = f"derived from the checkpoint's own, {proof} prompts proven equal"
    return f"{name} ({how})" if proof else name


def plan(found: BuildPlan) -> None:
    show.rows(
        "plan",
        [
            ("model", f"{found.model} ({found.model_type})"),
            ("source format", found.source_format),
            ("quantization", f"{found.quantization}, {found.bits_per_weight:.2f} bits per weight"),
            ("conv template", _template(found.conv_template, found.prompts_proven_equal)),
            ("weights", f"{found.n_params} parameters, {_size(found)}"),
            ("float layers", found.float_layers),
            ("context window", f"{found.context_window_size} tokens"),
            ("device", found.device),
            ("output", found.output),
        ],
    )
    show.notes(found.notes)


def dry_run(found: BuildPlan) -> None:
    """The plan, every kind of weight, and what it needs."""
    plan(found)
    show.table(
        ("weights", "number", "shape", "scheme", "size"),
        [
            (x.pattern, x.count, " x ".join(map(str, x.shape)), x.scheme, show.size(x.nbytes))
            for x in found.layers
        ],
    )
    free = f", {show.size(found.memory_free)} free" if found.memory_free is not None else ""
    times = [f"{stage} about {seconds:.0f} s" for stage, seconds in found.seconds.items()]
    show.rows(
        "needs",
        [
            ("disk", f"{show.size(found.disk)}, {show.size(found.disk_free)} free"),
            ("memory to run", f"{show.size(found.memory)} with a full context window{free}"),
            ("time", ", ".join(times) or "unknown: no build was measured on this machine yet"),
        ],
    )


def kernels(found: CompileReport) -> None:
    """What computes each layer, then what has no weights; functions that share an answer as one."""
    answers: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for choice in sorted(found.kernels, key=lambda c: not c.layers):
        told = [
            ("layer", ", ".join(choice.layers)),
            ("shape", f"n {choice.n}, k {choice.k}" if choice.n else ""),
            ("rule", choice.rule),
            *((f"rows: {rows}", kernel) for rows, kernel in choice.kernels.items()),
            *(("not taken", reason) for reason in choice.why_not),
        ]
        answers.setdefault(tuple(told), []).append(choice.function)
    for answer, functions in answers.items():
        show.rows(", ".join(functions), answer)


def _target(text: str) -> str:
    """The short form of a target: kind, triple or architecture, number of CPU features."""
    try:
        target = json.loads(text)
    except ValueError:
        return text
    parts = [target.get("kind"), target.get("mtriple") or target.get("arch")]
    features = len(target.get("mattr", ()))
    return " ".join(str(p) for p in parts if p) + (f" ({features} features)" if features else "")


def build(found: BuildReport) -> None:
    times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in found.times.items())
    show.rows(
        "built",
        [
            ("output", found.output),
            ("weights", f"{_size(found.convert)}, "
             f"{found.convert.bits_per_weight:.2f} bits per weight"),
            ("library", f"{show.size(found.compile.size)} for {_target(found.compile.target)}"
             + (", from the cache" if found.compile.cached else "")),
            ("time", f"{times}, in all {sum(found.times.values()):.2f} s"),
            ("try it", f"mlc-bridge chat {found.output}"),
        ],
    )  # fmt: skip
    show.notes((*found.convert.findings, *found.compile.notes))
    rounding(found.convert)


def calibration(title: str, found: CalibrateReport | Path) -> None:
    if isinstance(found, Path):  # MLC LLM's own calibration gives no report
        show.rows(title, [("output", found)])
        return
    show.report(title, found)
    show.table(
        ("layer", "amax", "scale", "saturated %", "looks wrong"),
        [
            (x.layer, x.amax, x.chosen.scale, 100 * x.chosen.saturated, x.wrong or "")
            for x in found.layers
        ],
    )


def verification(found: VerifyReport) -> None:
    weights, said = found.weights, found.behaviour
    behaviour = [] if said is None else [
        ("positions", said.tokens),
        ("KL divergence", f"{said.kl:.3g} nats, {said.kl_max:.3g} at most"),
        ("token by token", f"{said.decode_kl:.3g} nats, {said.decode_kl_max:.3g} at most"
         if said.decoded else None),
        ("top-1 agreement", f"{said.top1:.2%}"),
        ("perplexity", f"{said.perplexity:.3f}, reference {said.reference_perplexity:.3f}"),
        ("logits differ by", f"{said.logit_difference:.3g} at most"),
        ("reference", said.reference),
    ]  # fmt: skip
    show.rows(
        "verified" if found.passed else "NOT verified",
        [
            ("weights", weights.verdict),
            ("scales rounded", weights.scales_rounded or None),
            *behaviour,
            ("not compared", None if said else "what the library computes"),
        ],
    )
    for difference in weights.differences[:WORST]:
        show.notes((str(difference),))
    rounded_layers(weights.rounded)
    show.notes((*weights.notes, *found.notes))
    if found.depths:
        told = [(d.layers, f"{d.cosine:.6f}", f"{d.distance:.2e}", f"{d.largest:.3g}")
                for d in found.depths]  # fmt: skip
        show.table(("layers", "least cosine", "distance", "largest difference"), told)
        show.notes((found.parted or "the hidden states of both sides agree after every layer",))


def speeds(found: BenchReport) -> None:
    show.rows(
        "bench",
        [
            ("device", f"{found.device}, {found.threads} threads"),
            ("weights per step", show.size(found.nbytes)),
        ],
    )
    show.table(
        ("", "min", "median", "max", "weights read"),
        [
            (x.name, f"{x.min:.1f}", f"{x.median:.1f} tokens/s", f"{x.max:.1f}",
             f"{x.read:.1f} GB/s" if x.read else "")
            for x in found.speeds
        ],
    )  # fmt: skip


def checks(found: CheckReport) -> None:
    show.table(
        ("check", "result", "what was found"),
        [(c.name, "ok" if c.passed else "FAILED", c.detail) for c in found.checks],
    )


def diagnosis(found: Diagnosis) -> None:
    show.rows("packages", [(p.name, p.version or "not installed") for p in found.packages])
    show.rows("machine", found.machine.items())
    show.rows("devices", found.devices.items())
    show.table(
        ("ability", "works", "what to do"),
        [(a.name, "yes" if a.works else "no", a.todo or "") for a in found.abilities],
    )
    show.notes(found.conflicts)


def quantization(found: QuantizeReport) -> None:
    """What was written, what it cost, and the layers it cost most."""
    measured = dict(found.measured)
    show.rows(
        "quantize: done",
        [
            ("output", found.output),
            ("recipe", found.recipe["name"]),
            ("format", found.format),
            ("weights", f"{show.size(found.nbytes)} (float {show.size(found.checkpoint_nbytes)})"),
            ("layers", f"{len(found.layers)} quantized, {len(found.float_layers)} left in float"),
            ("calibration", f"{found.samples} samples, {found.tokens} tokens"),
            *((name.replace("_", " "), f"{value:.6g}") for name, value in measured.items()),
            ("seconds", f"{found.seconds:.1f}"),
        ],
    )
    ranked = sorted(found.layers, key=lambda x: x.output or x.weight, reverse=True)[:WORST]
    show.table(
        ("worst layers", "weights %", "output %"),
        [(x.layer, 100 * x.weight, "" if x.output is None else f"{100 * x.output:.3f}")
         for x in ranked],
    )  # fmt: skip
    show.notes(found.notes)
