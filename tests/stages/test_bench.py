"""What a decoded step reads: the architecture's own table says which weight is the embedding."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc_bridge import ConvertJob, convert_weight
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.stages.bench import _read_per_step
from mlc_bridge.stages.gen_config import GenConfigJob, gen_config
from tests.models import tiny


@pytest.mark.parametrize(("name", "rows"), [("phi3", 320), ("mistral", 320), ("qwen2", 0)])
def test_a_row_of_a_separate_embedding_is_read_and_not_the_table(
    name: str, rows: int, tmp_path: Path
) -> None:
    """phi3 calls it transformer.embd; qwen2's here is the head as well."""
    model, out = tiny.save(name, tmp_path / "model"), tmp_path / "out"
    gen_config(GenConfigJob(model, out, "q0f32", "chatml"))
    convert_weight(ConvertJob(model, out, "q0f32"))
    everything = sum(record.nbytes for record in read_index(out).records.values())
    assert _read_per_step(out) == everything - rows * 256 * 4
