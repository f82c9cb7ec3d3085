"""``table(*items)``: a literal name -> item mapping that answers an unknown name with the list.

Third packages come in by the same door. What they publish under the entry-point group
``mlc_bridge.<room>`` is appended at the table's first use (not at import, so that a plugin may
import the room); ``register`` appends one item in a running program. No name is taken twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from mlc_bridge.errors import ConfigError


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Table(Mapping[str, T]):
    """Mapping from ``item.name`` to item, in the order given; it only ever grows."""

    def __init__(
        self, room: str, items: tuple[T, ...], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.room, self.aliases = room, dict(aliases or {})
        self._own: dict[str, T] = {}
        self._plugins_loaded = False
        for item in items:
            self._add(item)

    def register(self, item: T) -> T:
        """Append one item. Raises ConfigError when its name is taken."""
        self._items  # noqa: B018  plugins first: they were installed earlier
        return self._add(item)

    @property
    def _items(self) -> dict[str, T]:
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for entry in entry_points(group=f"mlc_bridge.{self.room}"):
                try:
                    self._add(entry.load())
                except (ImportError, AttributeError) as problem:
                    raise ConfigError(
                        f"the plugin {entry.name} = {entry.value} cannot be loaded",
                        where=f"mlc_bridge.{self.room}",
                        found=str(problem),
                        todo="Repair or uninstall the package that brings it",
                    ) from problem
        return self._own

    def _add(self, item: T) -> T:
        if item.name in self._own:
            raise ConfigError(f"{self.room}: the name {item.name!r} is registered twice")
        self._own[item.name] = item
        return item

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[self.aliases.get(name, name)]
        except (KeyError, TypeError):  # a stranger's config may hold a list here
            raise ConfigError(
                f"unknown name in {self.room}",
                found=repr(name),
                expected=", ".join(self._items),
                todo=did_you_mean(name, (*self._items, *self.aliases)),
            ) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.aliases.get(name, name) in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """A hint at the nearest name, if one is near."""
    near = get_close_matches(str(name), list(known), n=1)
    return f"Perhaps {near[0]} was meant" if near else None


def table(room: str, *items: T, aliases: Mapping[str, str] | None = None) -> Table[T]:
    """The table of a room (``sources``, ``schemes``, ``models``); ``aliases``: word -> name."""
    return Table(room, items, aliases)
