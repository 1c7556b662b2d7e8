"""What psycopg prepares by itself, where several connections of the application share one session."""

from __future__ import annotations

from typing import Any

from psycopg._preparing import Prepare, PrepareManager

# How statements begin that leave objects as they are: what was prepared before them means the same after they are rolled back.
_HARMLESS = (
    *("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "(", "COPY", "FETCH", "MOVE", "CLOSE", "DECLARE"),
    *("SET", "SHOW", "RESET", "EXPLAIN", "LOCK", "TRUNCATE", "NOTIFY", "LISTEN", "BEGIN", "START", "COMMIT", "END", "ROLLBACK"),
    *("ABORT", "SAVEPOINT", "RELEASE"),
)


def alters(text: str) -> bool:
    """Whether a statement may change objects that prepared statements use. PostgreSQL plans these anew after a change, but fails if
    their results have other types then, or if a type of theirs was made anew (PostgreSQL documentation, sql-prepare)."""
    return not text.lstrip()[:9].upper().startswith(_HARMLESS) or ";" in text


class Prepared(PrepareManager):
    """What psycopg remembers of the statements it prepared, per connection of the application: their names differ from those of
    the others in the same session, and only its own are discarded. A later connection may go on with what an earlier one left, as
    it would had the application kept its connection.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._inherited: set[Any] = set()  # what earlier connections have prepared

    def handed_on(self) -> Prepared:
        """Forget what the application had set for the connection that is closed, but not what was prepared."""
        self.prepare_threshold, self.prepared_max = PrepareManager.prepare_threshold, PrepareManager.prepared_max
        self._inherited = set(self._names)
        return self

    def changed(self) -> None:
        """Discard what this connection did not prepare itself, because the objects that it uses may have been changed."""
        self._to_flush.extend(self._names.pop(key) for key in self._inherited & self._names.keys())
        self._inherited.clear()

    def forget(self) -> None:
        """Forget everything, because the server has been told to."""
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        found, name = super().get(query, prepare)
        return found, name.replace(b"_pg3_", b"_pg3_%d_" % self._number) if found is Prepare.SHOULD else name

    def clear(self) -> bool:
        self._counts.clear()
        self._to_flush.extend(self._names.values())
        self._names.clear()
        return bool(self._to_flush)
