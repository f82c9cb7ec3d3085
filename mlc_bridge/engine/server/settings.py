"""What the server allows; the defaults are for one machine and its own user."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Settings:
    """``hosts``: names under which requests may come (None: any), against DNS rebinding;
    ``origins``: web pages of other servers that may call. Times in seconds, sizes in bytes."""

    name: str | None = None
    strict: bool = False
    api_key: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK
    origins: tuple[str, ...] = ()
    max_body: int = 8 * 2**20
    max_prompt_tokens: int | None = None
    max_answer_tokens: int | None = None
    max_requests: int = 256
    request_seconds: float = 3600
    body_seconds: float = 60
    drain_seconds: int = 30
