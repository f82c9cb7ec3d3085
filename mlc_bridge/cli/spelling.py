"""What was typed, in our words: underscores as hyphens, MLC's flags by the table ``mlc_llm.py``.

Works on the words of the command line before they are parsed, so that every command takes MLC's
spelling by the same door.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from typer.core import TyperCommand, TyperGroup

from mlc_bridge.cli.mlc_llm import AUTO, COMMANDS, FLAGS, NOT_HERE, OVERRIDES, Theirs
from mlc_bridge.errors import ConfigError

LISTS = ("--disable-names",)  # of msModelSlim: names with blanks between
EVERYTHING = {
    "--requantize": "all",
    "--mindie-format": "true",
}  # what a flag means that stands alone
UNBROKEN = "\u2011"
Told = Callable[[str], None]


class JobCommand(TyperCommand):
    """A command that takes MLC's flags too, and flags of ``EVERYTHING`` without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for parameter in self.params for name in (*parameter.opts,
               *parameter.secondary_opts)}  # fmt: skip
        words = translated(str(self.name), list(_joined(args)), own, _note)
        return super().parse_args(ctx, list(_spelled_out(words)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Lines do not break inside ``q4f16-x`` or ``--a-flag``, so that words can be copied."""
        write = formatter.write_dl

        def whole(rows: Any, *args: Any, **kwargs: Any) -> None:
            write([(name, text.replace("-", UNBROKEN)) for name, text in rows], *args, **kwargs)

        formatter.write_dl = whole
        super().format_options(ctx, formatter)

    def get_help(self, ctx: Any) -> str:
        return super().get_help(ctx).replace(UNBROKEN, "-")


class Commands(TyperGroup):
    """Commands by MLC's names too; those of MLC's that are not here say what to do instead."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = cmd_name.replace("_", "-")
        if name in NOT_HERE:
            about, instead = NOT_HERE[name]
            raise ConfigError(f"{about}: it is not here", where=cmd_name, todo=instead)
        return super().get_command(ctx, COMMANDS.get(name, name))


def translated(command: str, args: Sequence[str], own: set[str], told: Told) -> list[str]:
    """``args`` in the words of ``command``, whose flags are ``own``; ``told`` gets the notes.

    Raises ConfigError for what MLC does and we do not.
    """
    theirs = {row.flag: row for row in FLAGS if command in row.commands.split()}
    words, out = list(args), list[str]()
    while words:
        word = words.pop(0)
        if word == "--":
            return [*out, word, *words]
        if not word.startswith("--"):
            out.append(word)
            continue
        flag, given, value = word.partition("=")
        flag = flag.replace("_", "-")
        row = theirs.get(flag) if flag not in own else None
        if flag == "--overrides" and command in OVERRIDES:
            words[:0] = _keys(command, value if given else _next(flag, words))
        elif row is not None:
            out += _said(row, value if given or row.switch else _next(flag, words), told)
        elif flag in AUTO and (value if given else next(iter(words), "")) == "auto":
            del words[: 0 if given else 1]
        else:
            out.append(flag + given + value)
    return out


def _said(row: Theirs, value: str, told: Told) -> list[str]:
    """Our words for one flag of MLC's, of which there may be none."""
    if row.becomes is not None:
        return row.becomes(value)
    if value in row.fine and not row.switch:
        return []
    if row.refused:
        raise ConfigError(
            row.says,
            where=f"mlc-bridge has no {row.flag}",
            found=value,
            expected=row.fine[0] if row.fine else None,
            todo=None if row.fine else f"Leave out {row.flag}",
        )
    told(f"{row.flag} has no effect: {row.says}")
    return []


def _keys(command: str, text: str) -> list[str]:
    """``key=value;key=value`` as flags; a key without value is none of MLC's."""
    out = []
    for item in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if key not in OVERRIDES[command] or not equals:
            raise ConfigError(
                "unknown key" if equals else "a key without value",
                where="--overrides",
                found=item,
                expected="KEY=VALUE;... with " + ", ".join(sorted(OVERRIDES[command])),
            )
        out.append(f"--{key}={value.strip()}")
    return out


def _next(flag: str, words: list[str]) -> str:
    if not words:
        raise ConfigError("needs a value", where=flag)
    return words.pop(0)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _joined(args: Sequence[str]) -> Iterator[str]:
    """Flags of ``LISTS`` with all words up to the next flag as one value."""
    words = list(args)
    while words:
        word = words.pop(0)
        yield word
        if word.replace("_", "-") in LISTS:
            end = next((i for i, w in enumerate(words) if w.startswith("-")), len(words))
            yield " ".join(words[:end])
            del words[:end]


def _spelled_out(args: Sequence[str]) -> Iterator[str]:
    """A flag that stands alone with its value; the word after it may be the model instead."""
    for word, after in zip_longest(args, args[1:], fillvalue="-"):
        alone = after.startswith("-") or "/" in after or os.path.exists(after)
        yield f"{word}={EVERYTHING[word]}" if word in EVERYTHING and alone else word
