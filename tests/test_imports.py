"""What is loaded when: heavy modules only by the step that needs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("tvm", "torch", "transformers")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh process after ``statement``."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(m.partition('.')[0] for m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "mlc_bridge",
        "mlc_bridge.sources",
        "mlc_bridge.schemes",
        "mlc_bridge.models",
        "mlc_bridge.artifact.chat_config",
        "mlc_bridge.stages.gen_config",
        "mlc_bridge.stages.convert_weight",
        "mlc_bridge.stages.compile",
        "mlc_bridge.stages.build",
        "mlc_bridge.cli.app",
    ],
)
def test_import_loads_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)


def test_bare_import_loads_not_even_numpy() -> None:
    assert "numpy" not in loaded_by("import mlc_bridge")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['mlc-bridge', '--help']\n"
        "from mlc_bridge.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code in (0, None)\n"
        f"assert not {{m.partition('.')[0] for m in sys.modules}} & set({HEAVY!r})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "gen-config" in ran.stdout


def test_every_public_name_exists() -> None:
    import mlc_bridge

    for name in mlc_bridge.__all__:
        assert getattr(mlc_bridge, name) is not None
    assert set(mlc_bridge.__all__) <= set(dir(mlc_bridge))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlc_bridge.nothing  # noqa: B018


def test_version_is_the_distributions() -> None:
    from importlib.metadata import version

    import mlc_bridge

    assert mlc_bridge.__version__ == version("mlc-bridge")
