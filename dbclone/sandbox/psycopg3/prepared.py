"""What psycopg prepares by itself, where connections of the application share one session."""

from __future__ import annotations

from typing import Any

from psycopg._preparing import Prepare, PrepareManager


class Prepared(PrepareManager):
    """What psycopg remembers of the statements it prepared, per connection of the application:
    their names differ from those of the others in the same session, and only its own are discarded.
    A later connection may go on with what an earlier one left, as it would had the application kept
    its connection.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._inherited: set[Any] = set()  # what earlier connections have prepared
        self.piped = False  # the connection has had a pipeline
        # What may never have been prepared, because its pipeline had failed before
        self.unproven: set[Any] = set()

    def inherit(self) -> Prepared:
        """Forget what the application had set for the connection that is closed,
        but not what was prepared."""
        self.prepare_threshold, self.prepared_max = (
            PrepareManager.prepare_threshold,
            PrepareManager.prepared_max,
        )
        for key in self.unproven:
            self._names.pop(key, None)
        self.unproven.clear()
        self._inherited, self.piped = set(self._names), False
        return self

    def maybe_add_to_cache(self, query: Any, prep: Prepare, name: bytes) -> Any:
        key = super().maybe_add_to_cache(query, prep, name)
        if self.piped and prep is Prepare.SHOULD:
            key = self.key(query)
            self.unproven.add(key)
        return key

    def validate(self, key: Any, prep: Prepare, name: bytes, results: Any) -> None:
        self.unproven.discard(key)
        super().validate(key, prep, name, results)

    def forget_inherited(self) -> int:
        """Forget what this connection did not prepare itself, because the objects that it uses may
        have been changed; return how many statements the server still has. Discarding each would be
        a statement that production does not run, and which fails in a block that has failed."""
        dropped = [self._names.pop(key) for key in self._inherited & self._names.keys()]
        self._inherited.clear()
        return len(dropped)

    def forget(self) -> int:
        """Forget everything; return how many statements the server may still have."""
        known = len(self._names) + len(self._to_flush)
        self._counts.clear()
        self._names.clear()
        self._inherited.clear()
        self.unproven.clear()
        self._to_flush.clear()
        return known

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        found, name = super().get(query, prepare)
        return found, name.replace(
            b"_pg3_", b"_pg3_%d_" % self._number
        ) if found is Prepare.SHOULD else name

    def clear(self) -> bool:
        self._counts.clear()
        self._to_flush.extend(self._names.values())
        self._names.clear()
        return bool(self._to_flush)
