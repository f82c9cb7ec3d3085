"""What an answer may be asked to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Structure:
    """``text`` is a JSON schema, a regular expression, an EBNF grammar or xgrammar's structural
    tag (JSON)."""

    kind: Literal["json", "regex", "ebnf", "tag"]
    text: str
