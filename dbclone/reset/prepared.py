"""What psycopg prepares by itself, where several connections of the application share one session."""

from __future__ import annotations

from typing import Any

from psycopg._preparing import Prepare, PrepareManager


class Prepared(PrepareManager):
    """What psycopg remembers of the statements it prepared, per connection of the application: their names differ from those of
    the others in the same session, and only its own are discarded."""

    def __init__(self, owner: int) -> None:
        super().__init__()
        self._owner = owner

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._names)

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        found, name = super().get(query, prepare)
        return found, name.replace(b"_pg3_", f"_pg3_{self._owner}_".encode()) if found is Prepare.SHOULD else name

    def clear(self) -> bool:
        self._counts.clear()
        self._to_flush.extend(self._names.values())
        self._names.clear()
        return bool(self._to_flush)
