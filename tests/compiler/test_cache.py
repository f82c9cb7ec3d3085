"""The cache of libraries: whole entries only, the newest kept, never a reason to fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlc_bridge.compiler import cache


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "lib.so"
    path.write_bytes(b"code")
    return path


def test_entry_comes_back_with_its_notes(tmp_path: Path, library: Path) -> None:
    store, out = tmp_path / "cache", tmp_path / "out" / "lib.so"
    cache.store(store, "k", library, {"memory_usage": {"decode": 3}})
    assert cache.fetch(store, "k", out) == {"memory_usage": {"decode": 3}}
    assert out.read_bytes() == b"code"
    assert out.stat().st_mode & 0o777 == 0o755
    assert cache.fetch(store, "other", out) is None


@pytest.mark.parametrize("damage", [b"", b"c0de", None])
def test_damaged_library_is_absent(tmp_path: Path, library: Path, damage: bytes | None) -> None:
    store, out = tmp_path / "cache", tmp_path / "out.so"
    cache.store(store, "k", library, {})
    if damage is None:
        (store / "k.so").unlink()
    else:
        (store / "k.so").write_bytes(damage)
    assert cache.fetch(store, "k", out) is None
    assert not out.exists()


def test_damaged_notes_are_absent(tmp_path: Path, library: Path) -> None:
    cache.store(tmp_path, "k", library, {})
    (tmp_path / "k.json").write_text("{")
    assert cache.fetch(tmp_path, "k", tmp_path / "out.so") is None


def test_oldest_entries_go(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEEP", 2)
    store = tmp_path / "cache"
    for age, key in enumerate("abc"):
        cache.store(store, key, library, {})
        os.utime(store / f"{key}.json", (age, age))
    cache.store(store, "d", library, {})
    assert sorted(p.name for p in store.iterdir()) == ["c.json", "c.so", "d.json", "d.so"]


def test_cache_that_cannot_be_written(tmp_path: Path, library: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    cache.store(blocked / "cache", "k", library, {})
    assert cache.fetch(blocked / "cache", "k", tmp_path / "out.so") is None


@pytest.mark.parametrize("name", ["kernel.py", "choices.json"])
def test_source_is_part_of_the_key(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_text("a = 1")
    before = cache.build_key({"x": 1}, [tmp_path])
    assert cache.build_key({"x": 1}, [tmp_path]) == before
    assert cache.build_key({"x": 2}, [tmp_path]) != before
    source.write_text("a = 2")
    assert cache.build_key({"x": 1}, [tmp_path]) != before


def test_versions_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.build_key({}, [])
    monkeypatch.setattr(cache, "version", lambda name: "0.0")
    assert cache.build_key({}, []) != before
