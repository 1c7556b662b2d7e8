"""States of a clone put aside: copies of it under the same lease's owner, to come back to any
number of times."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import psycopg

from ..databases import ddl
from ..databases.copying import copy
from ..databases.naming import Mark, clone_name
from ..errors import NotOwned, ResetBlocked, ServerError, TemplateError
from ..process.clock import wait_while
from ..server.server import Server

_PATIENCE = 2.0  # seconds for a prune to let go of a name


@dataclass
class Snapshots:
    """The snapshots of one clone. Arguments: `name`, the clone's; `mark`, what copies of it are
    marked with."""

    server: Server
    name: str
    mark: Mark
    _taken: dict[str, str] = field(default_factory=dict)

    def take(self, label: str) -> None:
        """Put the committed state aside as `label`, replacing an earlier snapshot of that name.
        Nobody may be connected.

        Raises ResetBlocked if somebody is.
        """
        wait_for_nobody(self.server, self.name)
        found = clone_name(self.mark.project, self.mark.run, f"{self.mark.worker} snapshot {label}")
        self._drop(label)
        if not self.server.leases.acquire(found, patience=_PATIENCE):
            raise TemplateError(
                f"the name of snapshot {label!r} of {self.name!r} is taken",
                f"Its lease is held by {self.server.leases.holder(found)}.",
                "Give each worker a name of its own.",
            )
        self._taken[label] = found
        try:
            copy(self.server, self.name, found, self.mark)
        except BaseException:
            self._drop(label)
            raise

    def restore(self, label: str) -> None:
        """Make the clone what it was when `label` was taken. Sessions in it are ended."""
        if label not in self._taken:
            raise TemplateError(
                f"{label!r} is not a snapshot of {self.name!r}",
                f"Its snapshots are: {', '.join(map(repr, self._taken)) or 'none'}.",
                f"Call snapshot({label!r}) first.",
            )
        if (database := ddl.find(self.server, self.name)) is not None:
            ddl.drop(self.server, database, force=True)
        copy(self.server, self._taken[label], self.name, self.mark)

    def _drop(self, label: str) -> None:
        name = self._taken.pop(label, None)
        if name is None:
            return
        try:
            if (database := ddl.find(self.server, name)) is not None:
                ddl.drop(self.server, database, force=True)
        finally:
            self.server.leases.release(name)

    def drop(self) -> None:
        """Drop all snapshots; what cannot be dropped is left to the next run."""
        for label in list(self._taken):
            with contextlib.suppress(psycopg.Error, NotOwned, ServerError):
                self._drop(label)


def wait_for_nobody(server: Server, name: str, patience: float = 1.0) -> None:
    """Wait until nobody is connected to a database; raise ResetBlocked naming who stays."""
    query = (
        "SELECT pid, coalesce(usename::text, '?'), coalesce(application_name, '')"
        " FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL"
    )
    if rows := wait_while(lambda: server.fetch(query, [name]), patience, 0.005):
        raise ResetBlocked(
            f'could not copy "{name}": {len(rows)}'
            f" session{'s are' if len(rows) > 1 else ' is'} connected to it",
            "\n".join(
                f"Session {pid} of user {user} calls itself {application!r}."
                for pid, user, application in rows
            ),
            "Close the connections of the test and the application before taking a snapshot.",
        )
