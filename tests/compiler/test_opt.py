"""``--opt``: what it switches, what it says, what it refuses."""

from __future__ import annotations

import re

import pytest

from mlc_bridge.compiler.opt import read_options
from mlc_bridge.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "graph"),
    [(None, True), ("O0", False), ("O1", False), ("O2", True), ("O3", True), ("cudagraph=1", True),
     ("cudagraph=0", False), ("cublas_gemm=0;cudagraph=1;", True), ("cublas_gemm=0", False)],
)  # fmt: skip
def test_cuda_graphs_are_chosen_or_not(text: str | None, graph: bool) -> None:
    """MLC's own defaults: a preset's, and off where keys are listed without it."""
    options = read_options(text, "cuda")
    assert options.cuda_graph == graph
    assert not options.notes


def test_what_has_no_effect_is_said() -> None:
    assert "no CUDA graphs on llvm" in read_options("cudagraph=1", "llvm").notes[0]
    assert len(read_options("flashinfer=1;cutlass=1", "cuda").notes) == 2
    assert read_options("flashinfer=0;cutlass=0", "llvm").notes == ()
    assert "one device" in read_options("ipc_allreduce_strategy=AUTO", "cuda").notes[0]


@pytest.mark.parametrize(
    ("text", "word"), [("O4", "O4"), ("cudagraphs=1", "cudagraphs"), ("cudagraph=yes", "0 or 1")]
)
def test_unknown_keys_and_values_are_refused(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        read_options(text, "cuda")
