"""MLC LLM's command line word for word: every flag of its parsers, and its documents' commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from mlc_bridge.cli.app import app
from mlc_bridge.cli.mlc_llm import COMMANDS, FLAGS
from mlc_bridge.errors import BridgeError, ConfigError

TENSOR = "tensor_parallel_shards"
NEEDED = {
    "gen_config": ["-o", "out", "DIR"],
    "convert_weight": ["-o", "out", "DIR"],
    "compile": ["DIR"],
    "calibrate": ["-o", "out", "--dataset", "FILE", "DIR"],
    "chat": ["DIR"],
    "serve": ["DIR"],
}


class Row(NamedTuple):
    """One line of the table: what MLC's ``command`` takes, and what it is ``here``."""

    command: str
    flag: str
    value: str
    here: str


TABLE = [
    Row(*line.split("\t"))
    for line in (Path(__file__).parent / "mlc_llm_flags.tsv").read_text("utf-8").splitlines()
    if not line.startswith("#")
]


def parsed(command: str, *args: str) -> dict[str, Any]:
    """What our parser makes of the words, without running the command."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("mlc-bridge", [command, *args])
    found = group.get_command(context, command)
    name = COMMANDS.get(command.replace("_", "-"), command.replace("_", "-"))
    return dict(found.make_context(name, list(args), parent=context).params)


@pytest.mark.parametrize("row", TABLE, ids=lambda r: f"{r.command} {r.flag} {r.value}"[:60])
@pytest.mark.parametrize("spelling", ["-", "_"])
def test_every_flag_of_theirs(row: Row, spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = row.flag if row.flag == "MODEL" else "--" + row.flag[2:].replace("-", spelling)
    words = [] if flag == "MODEL" else [flag, row.value] if row.value else [flag]
    before = [*NEEDED.get(row.command, []), *words]
    if row.here == "refused":
        with pytest.raises(ConfigError) as refusal:
            parsed(row.command, *before)
        assert len(str(refusal.value)) > 40
        return
    found = parsed(row.command, *before)
    told = capsys.readouterr().err
    assert (row.here == "no effect") == told.startswith("note: ")
    plain = parsed(row.command, *NEEDED[row.command])
    if row.here == "no effect":
        assert found == plain
    elif row.here == "alias" or row.flag == "--overrides":
        asked_for_nothing = row.value in (
            "radix",
            "tensor_parallel_shards=1",
            "pipeline_parallel_stages=1",
            "prefill_mode=hybrid",
        )
        assert (found == plain) == asked_for_nothing
    elif row.flag[2:].replace("-", "_") in found and row.value != "auto":
        assert str(found[row.flag[2:].replace("-", "_")]) == row.value


def test_no_row_of_ours_shadows_a_flag_of_the_command() -> None:
    """A row for a flag that the command has itself would never be read."""
    group: Any = typer.main.get_command(app)
    for row in FLAGS:
        for name in row.commands.split():
            own = {o for p in group.commands[name].params for o in p.opts}
            assert row.flag not in own, (name, row.flag)


def test_overrides_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    text = "context_window_size=512;prefill_chunk_size=64;"
    found = parsed("compile", "DIR", "--overrides", text)
    assert (found["context_window_size"], found["prefill_chunk_size"]) == (512, 64)
    assert parsed("compile", "DIR", f"--overrides={text}") == found
    for wrong in ("context_window=512", "output=lib.so", "context_window_size"):
        with pytest.raises(ConfigError, match="--overrides"):
            parsed("compile", "DIR", "--overrides", wrong)
    assert capsys.readouterr().err == ""


def test_origins_are_a_json_list() -> None:
    found = parsed("serve", "DIR", "--allow-origins", '["http://a", "http://b"]')
    assert found["allow_origin"] == ["http://a", "http://b"]
    with pytest.raises(ConfigError, match="--allow-origins"):
        parsed("serve", "DIR", "--allow-origins", "http://a")


@pytest.mark.parametrize(
    "command", ["gen_config", "convert_weight", "compile", "calibrate", "chat", "serve"]
)
def test_several_devices_are_refused_alike(command: str) -> None:
    """Where it is a field of the Job the stage says it, in the same words."""
    from mlc_bridge import GenConfigJob, gen_config
    from mlc_bridge.stages.wishes import ONE_DEVICE

    words = ("--tensor-parallel-shards", "2", *NEEDED[command])
    with pytest.raises(BridgeError, match=ONE_DEVICE):
        gen_config(GenConfigJob("DIR", "out", **{TENSOR: parsed(command, *words)[TENSOR]}))
    assert parsed(command, "--tensor_parallel_shards=1", *NEEDED[command])
