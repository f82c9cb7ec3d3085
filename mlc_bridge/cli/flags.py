"""Commands made from Jobs: each field of a stage's frozen Job becomes one flag.

A flag that is not given is left out, so defaults live in the Job alone, and so does the help: the
text in a field's annotation (see ``stages/wishes.py``). The first field is the command's argument,
``output`` is ``-o/--output``, and a ``bool`` is a switch. What is ``bool | str`` may stand alone
(``--requantize``) or with a value (``--requantize lm_head``).
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

import mlc_bridge

# What a help text lists; the long list of templates stands in the error for a wrong one.
CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "quantization": lambda: ("auto", *mlc_bridge.SCHEMES),
    "source_format": lambda: ("auto", *mlc_bridge.SOURCES, "or MLC's words"),
}


# Fields that the command itself fills, from flags of its own.
ALREADY_FLAGS = ("options",)


def job_command(
    job: type,
    run: Callable[[dict[str, Any], bool], None],
    doc: str,
    more: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A typer command whose flags are the fields of ``job``; ``run`` gets those that were given.

    Its second argument is ``--json``, which every such command has. ``more``: further text flags
    and their help, ``switches`` those without a value. With ``config`` (a recipe) or ``model_path``
    (another tool's word for the model) among them nothing else must be given.
    """
    more = more or {}
    recipe = bool({"config", "model_path"} & set(more))
    hints = get_type_hints(job, include_extras=True)
    fields = [f for f in dataclasses.fields(job) if f.name not in ALREADY_FLAGS]

    def command(**values: Any) -> None:
        as_json = values.pop("json")
        run({name: value for name, value in values.items() if value is not None}, as_json)

    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if _needed(field) and not recipe else None,
            annotation=_annotation(field, hints[field.name], first=field is fields[0]),
        )
        for field in fields
    ]
    for name, text in more.items():
        hint = Annotated[str | None, typer.Option(_flag(name), help=text, show_default=False)]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=None, annotation=hint))
    for name, text in {**(switches or {}), "json": "The whole report, for other programs."}.items():
        switch = Annotated[bool, typer.Option(_flag(name), help=text)]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=False, annotation=switch))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = doc
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _annotation(field: dataclasses.Field[Any], hint: Any, *, first: bool) -> Any:
    hint, text = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
    if field.name in CHOICES:
        text = f"{text} One of: {', '.join(CHOICES[field.name]())}."
    wanted = _plain(hint) | None
    if first:
        return Annotated[wanted, typer.Argument(help=text, show_default=False)]
    if not _needed(field) and field.default not in (None, False, True):
        text = f"{text} [default: {field.default}]".strip()
    flag = _flag(field.name)
    if hint == bool | None or field.default is True:  # where "no" must be sayable
        flag = f"{flag}/--no-{flag[2:]}"
    names = ("-o", flag) if field.name == "output" else (flag,)
    words = _completion(field.name)
    return Annotated[
        wanted, typer.Option(*names, help=text, show_default=False, autocompletion=words)
    ]


def _completion(name: str) -> Callable[[str], list[str]] | None:
    """For the shell: what a value of this flag may begin with."""
    choices = CHOICES.get(name)
    if choices is None:
        return None
    return lambda incomplete: [c for c in choices() if c.startswith(incomplete) and " " not in c]


def _plain(hint: Any) -> Any:
    """The type typer shall parse: of a union the simplest member, paths and literals as text."""
    if get_origin(hint) in (types.UnionType,) or "Union" in str(get_origin(hint)):
        members = [a for a in get_args(hint) if a is not type(None)]
        return str if str in members else _plain(members[0])
    return hint if hint in (bool, int, float, str, Path) else str
