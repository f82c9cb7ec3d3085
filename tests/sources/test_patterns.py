"""Patterns of a config: those of real tools match, hostile ones are refused untried."""

from __future__ import annotations

import time

import pytest

from mlc_bridge.errors import SourceError
from mlc_bridge.sources.patterns import matches

NAME = "model.layers.10.self_attn.q_proj"
# As llm-compressor, GPTQModel and AutoRound write them.
REAL = {
    ".*": True,
    ".*lm_head": False,
    r"model\.layers\.\d+\.self_attn\..*": True,
    r".*layers\.(0|1|2|10)\..*\.(q_proj|k_proj).*": True,
    r".*\.(q|k|v)_proj$": True,
    r"^(?!.*(mlp|gate)).*proj$": True,
    r"(?:model\.layers\.10\.self_attn\.q_proj)$": True,
}
HOSTILE = [
    "(a+)+$", "^([a-z._0-9]+)+$x", ".*.*.*.*.*.*$x", "(a|aa){1,50}$", "(?:.*a?){20}",
    "((((.*)*)*)*)*x", "a?" * 40 + "x", "(", "x{2,1}", "(?P<a>.)(?P<a>.)", "(" * 20000,
]  # fmt: skip


@pytest.mark.parametrize("pattern", REAL)
def test_patterns_of_tools(pattern: str) -> None:
    assert matches(pattern, NAME) is REAL[pattern]


@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda p: p[:20])
def test_hostile_patterns_end_at_once(pattern: str) -> None:
    begun = time.process_time()
    with pytest.raises(SourceError, match="no regular expression that can be tried"):
        matches(pattern, NAME * 4)
    assert time.process_time() - begun < 2
