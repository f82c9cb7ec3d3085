"""Orthogonal matrices to rotate by: Hadamard where there is one, random ones else.

A Hadamard matrix of order 2^k m is the Kronecker product of Sylvester's of order 2^k and one of
order m; those here are Paley's: m = q + 1 for a prime q = 3 mod 4, and m = 2 (q + 1) for a prime
q = 1 mod 4, from the quadratic residues of q. Signs of the columns are drawn, so that no
direction of the model is preferred.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlc_bridge.errors import ConfigError
from mlc_bridge.packing import Array

LARGEST_ODD_PART = 200


def rotation_matrix(n: int, kind: str, seed: int) -> Array:
    """Orthogonal float64 ``[n, n]``. Raises ConfigError without a Hadamard matrix of this order."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        q, r = np.linalg.qr(rng.standard_normal((n, n)))
        return np.asarray(q * np.sign(np.diag(r)))
    return np.asarray(hadamard(n) * rng.choice((-1.0, 1.0), n) / np.sqrt(n))


def hadamard(n: int) -> Array:
    """Entries 1 and -1, ``H H^T = n``."""
    found: Any = None
    power = 1
    while n % power == 0 and found is None:
        m = n // power
        found = np.ones((1, 1)) if m == 1 else _paley(m) if m <= LARGEST_ODD_PART else None
        power *= 2
    if found is None:
        raise ConfigError("no Hadamard matrix of this order is known here", where="rotate",
                          found=n, todo="Choose the kind random")  # fmt: skip
    while len(found) < n:
        found = np.kron(np.array([[1, 1], [1, -1]]), found)
    return np.asarray(found, np.float64)


def _paley(m: int) -> Any:
    """Order m by Paley's first or second construction; None where neither has one."""
    if m > 3 and _prime(m - 1) and (m - 1) % 4 == 3:
        jacobsthal = _jacobsthal(m - 1)
        s = np.block([[np.zeros((1, 1)), np.ones((1, m - 1))],
                      [-np.ones((m - 1, 1)), jacobsthal]])  # fmt: skip
        return s + np.eye(m)
    q = m // 2 - 1
    if m % 2 == 0 and _prime(q) and q % 4 == 1:
        c = np.block([[np.zeros((1, 1)), np.ones((1, q))], [np.ones((q, 1)), _jacobsthal(q)]])
        return np.kron(c, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]])
    return None


def _jacobsthal(q: int) -> Array:
    """Entry (i, j): 1 where i - j is a square modulo q, -1 where not, 0 on the diagonal."""
    squares = {i * i % q for i in range(1, q)}
    character = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
    return np.asarray(character[(np.arange(q)[:, None] - np.arange(q)) % q], np.float64)


def _prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))
