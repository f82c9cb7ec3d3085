"""Mutants of real checkpoints: everything in sources/ that parses, fed with what no tool wrote.

    python tests/sources/fuzz.py 100000 [SEED]

A mutant is a golden whose config, index, header or zip was changed: a value of another type, a key
gone, bytes flipped, cut or put in, one kind at a time. It must be refused with a ``BridgeError`` or
give the weights of the golden, within five seconds. The one exception: a header that is changed and
still whole may name other bytes (float16 as bfloat16, two tensors exchanged), which nothing but a
checksum could tell, so there only errors of other kinds count.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mutants import CASES, case_id, opened_outcome, shapes_of, weights

from mlc_bridge.sources import Checkpoint

DEEP: Any = 0
for _ in range(900):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7, 1 << 70, -(1 << 70), 1.5, float("inf"), float("nan"), "",
    "x", "a" * 5000, "\ud800", "\0", "../../etc/passwd", "re:(", "re:.*", [], {}, [[]], [None],
    {"": {}}, [1 << 62, 1 << 62], [float("inf")], ["Linear", 3], [0] * 70, DEEP,
)  # fmt: skip
FILES = ("config.json", "quantize_config.json", "model.safetensors.index.json")


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything below ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*above, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*above, key))


def twisted(rng: random.Random, value: Any) -> Any:
    """A copy with one place changed, removed, renamed or set to what lies at another place."""
    new = json.loads(json.dumps(value))
    *path, last = rng.choice(list(places(new)))
    home = new
    for key in path:
        home = home[key]
    how = rng.randrange(4)
    if how == 0:
        del home[last]
    elif how == 1 and isinstance(home, dict):
        home[rng.choice(["", "x", "a" * 5000, f"{last}.", "\ud800"])] = home.pop(last)
    elif how == 2:
        *other, end = rng.choice(list(places(value)))
        for key in other:
            value = value[key]
        home[last] = value[end]
    else:
        home[last] = rng.choice(ODD)
    return new


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def scratched(rng: random.Random, raw: bytes, within: int) -> bytes:
    """A few bytes below ``within`` flipped, removed, repeated or put in, or the end cut off."""
    new = bytearray(raw)
    at, length = rng.randrange(within), rng.choice([1, 1, 2, 8, 100])
    how = rng.randrange(5)
    if how == 0:
        for i in range(at, min(at + length, within)):
            new[i] ^= 1 << rng.randrange(8)
    elif how == 1:
        del new[at : at + length]
    elif how == 2:
        new[at:at] = new[at : at + length]
    elif how == 3:
        new[at:at] = rng.randbytes(length)
    else:
        del new[at:]
    return bytes(new)


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def change_header(rng: random.Random, home: Path) -> str:
    file = home / "model.safetensors"
    raw = file.read_bytes()
    header, data = header_of(raw)
    if rng.random() < 0.3:
        file.write_bytes(scratched(rng, raw, len(raw) - len(data)))
        return "header"
    text = dumped(twisted(rng, header))
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return "header"


def change_json(rng: random.Random, home: Path) -> str:
    file = rng.choice([home / name for name in FILES if (home / name).is_file()])
    raw = file.read_bytes()
    if rng.random() < 0.3:
        file.write_bytes(scratched(rng, raw, len(raw)))
    else:
        file.write_bytes(dumped(twisted(rng, json.loads(raw))))
    return file.name


def change_zip(rng: random.Random, home: Path) -> str:
    """Bytes of the headers before members and of the directory at the end, or of the pickle."""
    (file,) = home.glob("*.pt")
    raw = file.read_bytes()
    marks = [i for i in range(len(raw) - 4) if raw[i : i + 2] == b"PK"]
    at = rng.choice(marks) + rng.randrange(60) if rng.random() < 0.8 else rng.randrange(700)
    head, tail = raw[:at], raw[at:]
    file.write_bytes(head + (scratched(rng, tail, min(len(tail), 40)) if tail else b""))
    return "zip"


def prepared(case: Path, home: Path) -> Callable[[random.Random, Path], str]:
    """The case at ``home``, with an index where it has none, and what can be changed in it."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(case, home, ignore=shutil.ignore_patterns("expected*"))
    if list(home.glob("*.pt")):
        return change_zip
    header, _ = header_of((home / "model.safetensors").read_bytes())
    names = {name: "model.safetensors" for name in header if name != "__metadata__"}
    (home / FILES[2]).write_bytes(dumped({"metadata": {}, "weight_map": names}))
    return lambda rng, home: rng.choice((change_header, change_json))(rng, home)


def run(count: int, seed: int, home: Path) -> tuple[Counter[str], list[str]]:
    """Outcomes of ``count`` mutants, and what must not be: case, mutant number, what happened."""
    rng, tally, wrong = random.Random(seed), Counter[str](), []
    known = {case: (shapes_of(case), weights(Checkpoint.open(case), shapes_of(case)))
             for case in CASES}  # fmt: skip
    for number in range(count):
        case = rng.choice(CASES)
        where = prepared(case, home)(rng, home)
        path = home / FILES[2] if where == FILES[2] else home
        began = time.monotonic()
        try:
            got = opened_outcome(path, *known[case])
        except Exception as error:  # an error of another kind is what this looks for
            got = f"{type(error).__name__}: {error}"[:200]
        if time.monotonic() - began > 5:
            got = "too slow"
        tally[got if got in ("same", "refused", "silent") else "wrong"] += 1
        if got not in ("same", "refused") and not (got == "silent" and where == "header"):
            wrong.append(f"{case_id(case)}, mutant {number}, {where}: {got}")
            shutil.copytree(home, home.parent / f"wrong-{number}", dirs_exist_ok=True)
    return tally, wrong


if __name__ == "__main__":
    many, first = (int(x) for x in [*sys.argv[1:], "1000", "0"][:2])
    folder = Path(tempfile.mkdtemp())
    outcomes, faults = run(many, first, folder / "mutant")
    print(dict(outcomes), *faults[:50], f"mutants kept in {folder}" if faults else "", sep="\n")
    sys.exit(bool(faults))
