"""What ``inspect`` found, as text."""

from __future__ import annotations

import json

from mlc_bridge.cli import show
from mlc_bridge.stages.inspect_artifact import ArtifactReport
from mlc_bridge.stages.inspect_checkpoint import CheckpointReport


def checkpoint(found: CheckpointReport, *, verbose: bool = False) -> None:
    evidence = found.evidence if verbose else {}
    show.rows(
        "checkpoint",
        [
            ("path", found.path),
            ("model type", found.model_type + ("" if found.supported else " (not supported)")),
            ("source format", found.source_format or "unknown"),
            *((f"for {name}", "; ".join(e.supports) or None) for name, e in evidence.items()),
            *(
                (f"against {name}", "; ".join(e.contradicts) or None)
                for name, e in evidence.items()
            ),
            ("settings", json.dumps(found.settings) if found.settings else None),
            ("size", show.size(found.nbytes)),
            ("left in float", found.float_layers),
        ],
    )
    show.table(
        ("part", "tensors", "dtype", "shape", "size"),
        [
            (p.pattern, p.tensors, p.dtype, " x ".join(map(str, p.shape)), show.size(p.nbytes))
            for p in found.parts
        ],
    )
    if found.kinds:
        show.table(
            ("layers", "bits", "codes", "scale per", "zeros", "scales", "act order", "static in"),
            [
                (k.layers, k.bits, k.codes, k.block, k.zeros, k.scale_dtype,
                 k.activation_order, k.input_scales)
                for k in found.kinds
            ],
        )  # fmt: skip
    _layers(found)
    _codes(found)
    _schemes(found)
    if found.schemes and not found.layers and not any(s.exact for s in found.schemes):
        show.notes(("no scheme holds it exactly: --requantize allows rounding",))
    show.notes(found.findings)
    show.rows("verdict", [("", found.verdict)])


def _layers(found: CheckpointReport) -> None:
    """What each layer holds and becomes; the sums are the file's and the artifact's."""
    if not found.layers:
        return
    rows: list[tuple[object, ...]] = [
        (x.pattern, x.count, x.holds, f"{x.checkpoint_bits:.2f}", x.scheme, f"{x.bits:.2f}",
         show.size(x.checkpoint_nbytes), show.size(x.nbytes))
        for x in found.layers
    ]  # fmt: skip
    sums = (sum(x.checkpoint_nbytes for x in found.layers), sum(x.nbytes for x in found.layers))
    rows.append(("all", sum(x.count for x in found.layers), "", "", "", "", *map(show.size, sums)))
    show.table(("layer", "number", "holds", "bits", "becomes", "bits", "size", "as"), rows)


def _schemes(found: CheckpointReport) -> None:
    """Those that hold the weights exactly, and the others by their reason."""
    reasons: dict[str, list[str]] = {}
    for scheme in found.schemes:
        reasons.setdefault("" if scheme.exact else str(scheme.reason), []).append(scheme.scheme)
    exact = ", ".join(reasons.pop("", [])) or "none"
    if found.schemes:
        refused = (("not exact", f"{', '.join(names)}: {why}") for why, names in reasons.items())
        show.rows("schemes", [("exact", exact), *refused])


def _codes(found: CheckpointReport) -> None:
    if not found.codes:
        return
    ends = [c.at_ends for c in found.codes]
    show.rows(
        "codes",
        [
            ("layers read", len(found.codes)),
            ("values used", f"{min(c.used for c in found.codes)} of {found.codes[0].of} at least"),
            ("at the ends", f"{min(ends):.2%} to {max(ends):.2%} of the codes"),
        ],
    )
    outliers = [c for c in found.codes if c.outlier]
    if outliers:
        show.table(
            ("outlier", "values used", "of", "at the ends"),
            [(c.layer, c.used, c.of, f"{c.at_ends:.2%}") for c in outliers],
        )


def artifact(found: ArtifactReport) -> None:
    show.rows(
        "MLC directory",
        [
            ("path", found.path),
            ("model type", found.model_type),
            ("quantization", found.quantization),
            ("conv template", found.conv_template),
            ("context window", found.context_window_size),
            ("weights", f"{found.n_params} parameters, {show.size(found.nbytes)}"),
            ("bits per weight", found.bits_per_param),
            *((f"{dtype}", f"{n} parameters, {show.size(b)}") for dtype, (n, b) in
              found.dtypes.items()),
        ],
    )  # fmt: skip
    show.rows("fingerprints", [(k, v or "none") for k, v in found.fingerprints.items()])
    show.rows("library", [(k, _short(v)) for k, v in found.lib.items()])
    show.notes(found.findings)


def _short(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else show.text(value)
