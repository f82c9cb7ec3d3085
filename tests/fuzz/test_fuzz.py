"""A seeded thousand of damaged files: each is read, or told as an error of the tree, and soon.

``hunt.py`` does the same with any number, in processes of their own.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.doors import DOORS, Door, good, keep_children
from tests.fuzz.hunt import MEMORY, hunt

MUTANTS = 1000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with keep_children():
        yield good(tmp_path_factory.mktemp("fuzz") / "good")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_no_damage_is_a_defect_of_ours(directory: Path, door: Door) -> None:
    door.use(directory)  # undamaged
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = MUTANTS * door.weight // sum(d.weight for d in DOORS)
    found = hunt(door, directory, range(count), seed=1, seconds=30.0)
    assert not found["findings"]
    assert found["told"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
