"""Where a model may be written, and whose files stay: nothing of the user is lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlc_bridge import (
    BuildJob,
    BuildReport,
    CompileJob,
    ConvertJob,
    GenConfigJob,
    build,
    compile_model,
    convert_weight,
    gen_config,
)
from mlc_bridge.artifact.chat_template import TEMPLATE
from mlc_bridge.artifact.inventory import INVENTORY, Inventory
from mlc_bridge.artifact.workspace import WORK
from mlc_bridge.errors import ArtifactError, BridgeError, CompileError

Doors = dict[str, Callable[[Path, Path], object]]
DOORS: Doors = {
    "build": lambda model, out: build(BuildJob(model, out)),
    "gen-config": lambda model, out: gen_config(GenConfigJob(model, out)),
    "convert": lambda model, out: convert_weight(ConvertJob(model, out)),
}


@pytest.fixture(scope="module")
def built(example_awq: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """Also puts the library into the cache, so that the other builds here are quick."""
    return build(BuildJob(example_awq, tmp_path_factory.mktemp("outputs") / "model"))


@pytest.fixture
def model(example_awq: Path, tmp_path: Path) -> Path:
    return shutil.copytree(example_awq, tmp_path / "checkpoint")


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below ``folder`` with its bytes; a link with where it points. The certificate
    without the place of the checkpoint."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    if INVENTORY in found:
        listed = json.loads(found[INVENTORY])
        for key in ("checkpoint", "job"):
            listed.get("made_from", {}).pop(key, None)
        found[INVENTORY] = json.dumps(listed)
    return found


def test_everything_written_is_listed(built: BuildReport) -> None:
    listed = Inventory.read(built.output)
    assert listed is not None
    assert {p.name for p in built.output.iterdir()} == {*listed.files, INVENTORY}
    assert all(listed.check(built.output, name) for name in listed.files)
    assert not listed.unfinished


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("older", [False, True])
def test_what_is_not_ours_stays(
    built: BuildReport, model: Path, tmp_path: Path, door: str, older: bool
) -> None:
    """Foreign files, folders, links and a checkpoint inside, with and without our list."""
    out = shutil.copytree(built.output, tmp_path / "out")
    (tmp_path / "elsewhere").write_text("kept")
    (out / "README.md").write_text("mine")
    (out / "logs").mkdir()
    (out / "logs/params_shard_0.bin").write_text("mine too")
    (out / "params_shard_x.txt").write_text("mine")
    (out / "link").symlink_to(tmp_path / "elsewhere")
    (out / "lost").symlink_to("nowhere")
    nested = shutil.copytree(model, out / "hf")
    if older:  # without our list, and without what came after it
        (out / INVENTORY).unlink()
        (out / TEMPLATE).unlink()
    before = contents(out)
    DOORS[door](nested, out)
    after = contents(out)
    assert after.pop(INVENTORY)
    after.pop(TEMPLATE, None)
    before.pop(TEMPLATE, None)
    before.pop(INVENTORY, None)
    assert after == before


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["mlc-chat-config.json", "config only"])
def test_the_checkpoints_directory_is_no_output(
    built: BuildReport, model: Path, tmp_path: Path, door: str, name: str
) -> None:
    """Nor by another name for it, nor where it looks like a model."""
    if name == "mlc-chat-config.json":
        shutil.copy(built.output / name, model)
    (tmp_path / "link").symlink_to(model)
    before = contents(model)
    for output in (model, tmp_path / "link", model / ".." / model.name):
        with pytest.raises(BridgeError, match="checkpoint itself"):
            DOORS[door](model, output)
    assert contents(model) == before


def test_another_checkpoints_directory_is_no_output(
    built: BuildReport, model: Path, example_awq: Path
) -> None:
    """It names a tokenizer that an MLC config there would make ours."""
    shutil.copy(built.output / "mlc-chat-config.json", model)
    before = contents(model)
    with pytest.raises(ArtifactError, match="not overwritten"):
        build(BuildJob(example_awq, model))
    assert contents(model) == before


def test_a_checkpoint_of_links_into_the_output(
    built: BuildReport, model: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(built.output, tmp_path / "out")
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to(out / "tokenizer.json")
    with pytest.raises(ArtifactError, match="checkpoint itself"):
        build(BuildJob(model, out))


def test_an_edited_config_is_kept_beside(built: BuildReport, model: Path, tmp_path: Path) -> None:
    out = shutil.copytree(built.output, tmp_path / "out")
    edits = []
    for temperature in ("0.5", "0.25"):
        path = out / "mlc-chat-config.json"
        edits.append(
            path.read_text().replace('"temperature": 1.0', f'"temperature": {temperature}')
        )
        path.write_text(edits[-1])
        gen_config(GenConfigJob(model, out))
    assert edits == [(out / f"mlc-chat-config.json.edited-{n}").read_text() for n in (1, 2)]
    for number in (1, 2):
        (out / f"mlc-chat-config.json.edited-{number}").unlink()
    assert contents(out) == contents(built.output)


@pytest.mark.parametrize("name", ["tokenizer.json", "params_shard_7.bin", "lib.so"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_file_of_the_user_in_the_way(
    built: BuildReport, model: Path, tmp_path: Path, name: str, folder: bool
) -> None:
    """Said before the work, whether it never was ours or took the place of what was."""
    out = shutil.copytree(built.output, tmp_path / "out")
    listed = json.loads((out / INVENTORY).read_text())
    (out / name).unlink(missing_ok=True)
    if folder:
        (out / name).mkdir()
        (out / name / "mine").write_text("mine")
    else:
        (out / name).write_text("mine")
        listed["files"].pop(name, None)
        (out / INVENTORY).write_text(json.dumps(listed))
    before = contents(out)
    with pytest.raises(ArtifactError, match=f"{name}: this file was not written"):
        build(BuildJob(model, out))
    assert contents(out) == before


def test_a_list_that_names_other_places(built: BuildReport, model: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    out = shutil.copytree(built.output, tmp_path / "out")
    listed = json.loads((out / INVENTORY).read_text())
    for name in ("../victim", str(tmp_path / "victim"), "..", ""):
        listed["files"][name] = {"nbytes": 4}
    (out / INVENTORY).write_text(json.dumps(listed))
    build(BuildJob(model, out))
    assert (tmp_path / "victim").read_text() == "mine"
    (out / INVENTORY).write_text('{"files": 3}')
    with pytest.raises(ArtifactError, match="list of written files"):
        build(BuildJob(model, out))


def test_the_current_directory(
    built: BuildReport, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    build(BuildJob(model, "."))
    assert contents(here) == contents(built.output)


def test_links_are_followed_and_stay(built: BuildReport, model: Path, tmp_path: Path) -> None:
    (tmp_path / "vol/real").mkdir(parents=True)
    for name, target in (("link", "vol/real"), ("dangling", "vol/new")):
        link = tmp_path / name
        link.symlink_to(target)
        for _ in range(2):
            build(BuildJob(model, link))
        assert link.is_symlink()
        assert contents(tmp_path / target) == contents(built.output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "dangling", "link", "vol"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A mount point, as ``docker -v`` gives one: it cannot be renamed."""
    place, disk = tmp_path / "mounted", tmp_path / "disk"
    place.mkdir()
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "--bind", str(disk), str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_mount_point(built: BuildReport, model: Path, mounted: Path) -> None:
    for _ in range(2):
        build(BuildJob(model, mounted))
        assert contents(mounted) == contents(built.output)


def test_a_checkpoint_seen_through_a_mount(model: Path, mounted: Path) -> None:
    """The same directory under two names that no path arithmetic can tell."""
    disk = shutil.copytree(model, mounted.parent / "disk", dirs_exist_ok=True)
    with pytest.raises(ArtifactError, match="checkpoint itself"):
        build(BuildJob(disk, mounted))


def test_no_rename_leaves_the_output(
    built: BuildReport, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes mounts and read-only parents work, where mounting is not permitted."""
    out, replace = tmp_path / "out", os.replace

    def inside(source: Path, target: Path) -> None:
        assert out in Path(source).parents
        assert out in Path(target).parents
        replace(source, target)

    monkeypatch.setattr(os, "replace", inside)
    build(BuildJob(model, out))
    assert contents(out) == contents(built.output)


def test_a_library_elsewhere_overwrites_only_a_library(built: BuildReport, tmp_path: Path) -> None:
    (tmp_path / "thesis.so").write_text("years of work")
    job = CompileJob(built.output, tmp_path / "thesis.so")
    with pytest.raises(CompileError, match="no library and is not overwritten"):
        compile_model(job)
    for _ in range(2):
        compile_model(CompileJob(built.output, tmp_path / "x.so"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.so", "x.so"]


def test_another_run_is_told_at_once(built: BuildReport, model: Path, tmp_path: Path) -> None:
    """Whatever the output is called, and though it holds nothing yet."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    plans: list[object] = []

    def during(plan: object) -> None:
        plans.append(plan)
        for door in DOORS.values():
            for name in (out, tmp_path / "link", out / ".." / "out"):
                with pytest.raises(ArtifactError, match="another run is writing here"):
                    door(model, name)

    build(BuildJob(model, out), announce=during)
    assert len(plans) == 1
    assert contents(out) == contents(built.output)


def test_the_lock_of_a_directory_that_went_away(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before took its empty output away between our opening and our locking it."""
    out, flock, went = tmp_path / "out", fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not went:
            went.append(out)
            out.rmdir()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    gen_config(GenConfigJob(model, out))
    assert (out / INVENTORY).is_file()
    assert not (out / WORK).exists()
