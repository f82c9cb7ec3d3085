"""From what a run measured to the table that the rules read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tir_schedules.gpu.choices import FILE


def adopt_file(measured: Path, output: Path | None = None) -> None:
    """Write the fastest right variants beside those that other suites have chosen."""
    found = json.loads(measured.read_text())
    table = output or FILE
    before = json.loads(table.read_text()) if table.exists() else {}
    merged = merge(before, choices(found))
    merged |= {"card": found["card"], "date": found["date"]}
    table.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")
    print(f"{table}: {sum(len(v) for v in merged.values() if isinstance(v, dict))} choices")


def choices(found: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Kernel -> shape -> plan. Cases of one key vote with the time that they lose."""
    lost: dict[tuple[str, str], dict[str, list[float]]] = {}
    plans: dict[tuple[str, str, str], dict[str, int]] = {}
    for variants in found["cases"].values():
        right = {v: m["seconds"] for v, m in variants.items() if m["right"]}
        for variant, seconds in right.items():
            if variants[variant]["choice"] is not None:
                kernel, key, plan = variants[variant]["choice"]
                share = seconds / min(right.values())
                lost.setdefault((kernel, key), {}).setdefault(variant, []).append(share)
                plans[kernel, key, variant] = plan
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (kernel, key), shares in lost.items():
        most = max(len(s) for s in shares.values())  # right in every case that others are right in
        best = min((v for v in shares if len(shares[v]) == most), key=lambda v: sum(shares[v]))
        table.setdefault(kernel, {})[key] = plans[kernel, key, best]
    return table


def merge(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """New shapes replace old ones of the same key."""
    kept = {k: v for k, v in before.items() if not isinstance(v, dict)}
    kernels = {k for k, v in before.items() if isinstance(v, dict)} | set(new)
    return {**kept, **{k: {**before.get(k, {}), **new.get(k, {})} for k in sorted(kernels)}}
