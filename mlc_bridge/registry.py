"""``table(*items)``: a literal, read-only name -> item mapping that answers an unknown name with the list.

Third packages come in by the same door: items published under the entry-point group
``mlc_bridge.<room>`` are appended when the table is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from mlc_bridge.errors import ConfigError


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Table(Mapping[str, T]):
    """Read-only mapping from ``item.name`` to item, in the order given."""

    def __init__(self, room: str, items: tuple[T, ...]) -> None:
        self.room = room
        self._items: dict[str, T] = {}
        plugins = (entry.load() for entry in entry_points(group=f"mlc_bridge.{room}"))
        for item in (*items, *plugins):
            if item.name in self._items:
                raise ConfigError(f"{room}: the name {item.name!r} is registered twice")
            self._items[item.name] = item

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            raise ConfigError(
                f"unknown name in {self.room}", found=repr(name), expected=", ".join(self._items)
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def table(room: str, *items: T) -> Table[T]:
    """Build the table of a room (``sources``, ``schemes``, ``models``, ``schedules``)."""
    return Table(room, items)
