"""What names a repository of the Hugging Face hub: ``org/name[@revision]``, as MLC LLM writes it
``HF://org/name``, or as a browser shows it."""

from __future__ import annotations

import re

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
WEB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(\.git)?(/tree/(?P<revision>[\w./-]+?))?/?")
SCHEME = "HF://"


def hub_id(model: str) -> tuple[str, str | None] | None:
    """Repository and revision, or None for what names none."""
    text = model.removeprefix(SCHEME)
    found = HUB_ID.fullmatch(text)
    if model.startswith("http"):
        from huggingface_hub.constants import ENDPOINT

        home = ENDPOINT.rstrip("/") + "/"
        found = WEB.fullmatch(model.removeprefix(home)) if model.startswith(home) else None
    return (found["repo"], found["revision"]) if found else None


def is_remote(model: str) -> bool:
    """Whether ``model`` can only mean the hub, not a path here."""
    return model.startswith((SCHEME, "http://", "https://"))
