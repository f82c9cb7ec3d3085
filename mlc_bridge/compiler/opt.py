"""``--opt``: MLC LLM's switches of its compiler, of which one has a meaning here.

A preset ``O0`` to ``O3``, or ``key=value;...``. ``cudagraph`` decides whether the launches of one
decode step are recorded as one CUDA graph; the other keys choose libraries (cuBLAS, CUTLASS,
FlashInfer, FasterTransformer, all-reduce) that MLC's wheels bring and this compiler does without.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.errors import ConfigError

PRESETS = {"O0": False, "O1": False, "O2": True, "O3": True}
LIBRARIES = ("flashinfer", "cublas_gemm", "faster_transformer", "cutlass")
STRATEGIES = ("NONE", "ONESHOT", "TWOSHOT", "AUTO")


@dataclass(frozen=True)
class Options:
    """What of ``--opt`` is done, and what the user should know of the rest."""

    cuda_graph: bool = True
    notes: tuple[str, ...] = ()


def read_options(text: str | None, kind: str) -> Options:
    """``text`` for a target of ``kind``. Raises ConfigError for an unknown key or value."""
    if text is None:
        return Options()
    if text in PRESETS:
        return Options(PRESETS[text])
    given = dict(_pair(item) for item in text.split(";") if item.strip())
    notes = [f"--opt {key}: no such library is used here" for key in LIBRARIES
             if given.get(key) == "1"]  # fmt: skip
    if given.get("ipc_allreduce_strategy", "NONE") != "NONE":
        notes.append("--opt ipc_allreduce_strategy: a model runs on one device here")
    if "cudagraph" in given and kind != "cuda":
        notes.append(f"--opt cudagraph: there are no CUDA graphs on {kind}")
    return Options(given.get("cudagraph", "0") == "1", tuple(notes))


def _pair(item: str) -> tuple[str, str]:
    key, _, value = (part.strip() for part in item.partition("="))
    key = key.replace("-", "_")
    if key == "ipc_allreduce_strategy":
        known: tuple[str, ...] = STRATEGIES
    elif key in (*LIBRARIES, "cudagraph"):
        known = ("0", "1")
    else:
        raise ConfigError(
            "unknown key",
            where="--opt",
            found=item.strip(),
            expected=", ".join((*PRESETS, *LIBRARIES, "cudagraph", "ipc_allreduce_strategy")),
        )
    if value not in known:
        raise ConfigError("unknown value", where="--opt", found=item, expected=" or ".join(known))
    return key, value
