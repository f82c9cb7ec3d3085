"""Seeded damage to files: other values in JSON, other bytes in anything."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP: Any = 0
for _ in range(60):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("inf"),
    float("nan"), "", "x", "0", "../../etc/passwd", "a\0b", "n" * 5000, "\ud800", "日本" * 9,
    [], [None], [1, 2], ["x"], [[]], {}, {"x": 1}, {"content": 3}, {"": None}, DEEP,
]  # fmt: skip


def damaged_json(text: str, rng: random.Random) -> bytes:
    """One to three values replaced, removed, moved or doubled."""
    found = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = _place(found, rng)
        if holder is None:
            found = copy.deepcopy(rng.choice(ODD))
            continue
        _damage(found, holder, key, rng)
    return json.dumps(found).encode()


def _damage(found: Any, holder: Any, key: Any, rng: random.Random) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, name = _place(found, rng)
        if other is not None:
            holder[key] = copy.deepcopy(other[name])
    elif kind == 2 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 3 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2))
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = damaged_bytes(holder[key].encode("utf-8", "surrogatepass"), rng).decode(
            "latin-1"
        )
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))


def _place(found: Any, rng: random.Random) -> tuple[Any, Any]:
    """A holder and a key in it; every depth is as likely as the others."""
    holder: Any = None
    key: Any = None
    here = found
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 5))):
        keys = (
            list(here)
            if isinstance(here, dict)
            else range(len(here) if isinstance(here, list) else 0)
        )
        if not keys:
            break
        holder, key = here, rng.choice(keys)
        here = here[key]
    return holder, key


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, a cut, a piece removed, repeated or overwritten."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, n = rng.randrange(len(out) + 1), rng.choice((1, 2, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + n]
        elif kind == 2:
            out[at:at] = out[at : at + n] * rng.choice((1, 3, 50))
        elif kind == 3:
            out[at : at + n] = rng.randbytes(n)
        elif kind == 4:
            out[at : at + 8] = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)
