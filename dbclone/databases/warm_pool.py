"""A warm pool: fresh clones of a template, made ahead in a background thread, so that having one
costs a test next to nothing.

The thread has a connection of its own, through which it holds the leases of everything in the pool.
All of it has a clone's mark, never a spare's: so nobody else can claim it, and it counts as dead as
soon as this process is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque

import psycopg

from ..errors import NotOwned, ServerError, TemplateError
from ..process.clock import monotonic
from ..server.server import Server
from ..server.sessions import Identity
from . import ddl
from .copying import HandOver, copy
from .naming import Database, Mark, spare_name

log = logging.getLogger("dbclone")
IDLE = 10.0  # seconds without a swap after which half as many are kept ready
_GOODBYE = 30.0  # seconds that `close` waits for the thread


class Pool:
    """Warm clones of one template for one clone, made for the swap after this one.

    One is kept ready after the first swap; one more each time a swap had to wait, up to `limit`;
    fewer when nothing is asked for. With those put aside, which are dropped in the background, the
    pool never has more than twice `limit`.
    """

    def __init__(self, server: Server, template: Database, limit: int) -> None:
        """Arguments: `server`, of the calling thread, which outlives the pool. Nothing is made
        before the first swap."""
        self._server, self._template, self._limit = server, template, max(1, limit)
        # The one database in which all locks meet
        self._maintenance = server.connection.info.dbname
        self._pid = os.getpid()
        self._last: HandOver | None = None
        self._changed = threading.Condition()  # guards all that follows
        self._thread: threading.Thread | None = None
        self._ready: deque[HandOver] = deque()
        # Whatever still has one of their two names is to be dropped
        self._used: deque[HandOver] = deque()
        self._wish: tuple[str, Mark] | None = None  # what the next warm clone will be
        self._target = 0
        self._wanted = False  # whether a swap waits
        self._failure: Exception | None = None
        self._copying: Identity | None = None  # the session that makes a copy right now
        self._closing = False

    def swap(self, name: str, mark: Mark) -> float:
        """Let a warm clone with `mark` take the place of the database `name`, which is put aside
        and dropped; return the seconds.

        The caller holds the lease of `name` and has closed its own sessions there; others are
        ended. Raises what went wrong in the background if that left no warm clone, NotOwned,
        TemplateError, psycopg.errors.ObjectInUse if a session may not be ended, psycopg.Error. Then
        the database `name` is as it was.
        """
        started = monotonic()
        for _ in range(3):
            warm = self._take(name, mark)
            used = False
            try:
                if (warm.name, warm.mark) != (name, mark):
                    warm = HandOver.compose(
                        self._server, warm.spare, warm.oid, name, mark, warm.aside
                    )
                warm.run(
                    self._server,
                    self._last if self._last is not None and self._last.name == name else None,
                )
                used, self._last = True, warm
                return monotonic() - started
            except psycopg.errors.InvalidCatalogName:
                used = True
                log.info("warm clone %s is gone", warm.spare)
            finally:
                with self._changed:
                    (self._used if used or self._thread is None else self._ready).append(warm)
                    self._changed.notify_all()
        raise TemplateError(
            f'warm clones of template "{self._template.name}" disappear',
            "Three in a row were gone when they were to be used.",
            "Find out who drops databases whose names begin with dbclone_.",
        )

    def close(self) -> None:
        """Drop what the pool has, and end its thread and its session. Never raises; what cannot be
        dropped is left to prune."""
        if os.getpid() != self._pid:
            return  # the pool is our parent's
        try:
            if not self._end():
                log.warning("what is left of the warm pool is left to the next run")
        except Exception as error:
            log.warning("what is left of the warm pool is left to the next run: %s", error)

    def _end(self) -> bool:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        deadline, again = monotonic() + _GOODBYE, True
        while monotonic() < deadline:
            with self._changed:
                thread = self._thread
                if thread is None:
                    if not (self._used and again):
                        return not self._used
                    thread, again = self._start(), False  # the last one ended with its session
                elif self._copying:
                    self._interrupt(self._copying)
            thread.join(0.05)
        return False

    def _interrupt(self, session: Identity) -> None:
        """End the thread's session, whatever it is copying or waiting for; it cannot go on to
        anything else meanwhile."""
        with contextlib.suppress(psycopg.Error):
            session.end(self._server.connection)

    def _take(self, name: str, mark: Mark) -> HandOver:
        """Return a warm clone, waiting for it if there is none."""
        with self._changed:
            if self._closing:
                raise TemplateError(
                    "the warm pool is closed", "", "This is a bug in dbclone: please report it."
                )
            self._wish = name, mark
            if not self._ready:
                self._target = min(self._target + 1, self._limit)
                self._wait()
            return self._ready.popleft()

    def _wait(self) -> None:
        patience = self._server.settings.build_timeout
        deadline = monotonic() + patience
        self._wanted, self._failure = True, None  # what failed before anybody waited may work now
        again = True
        try:
            while not self._ready:
                if self._failure is not None:
                    if self._thread is not None or not again:
                        raise self._failure
                    # The thread ended with its session, perhaps of long ago
                    self._failure, again = None, False
                if monotonic() > deadline:
                    raise TemplateError(
                        f'no copy of template "{self._template.name}" was ready within'
                        f" {patience:g} s",
                        "It is made in the background, by the session that is called dbclone pool.",
                        "Look what that session waits for on the server; raise build_timeout"
                        " if the template is that large.",
                    )
                self._start()
                self._changed.notify_all()
                self._changed.wait(1.0)
        finally:
            self._wanted = False

    def _start(self) -> threading.Thread:
        """Return the thread, started if it does not run."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="dbclone pool", daemon=True)
            self._thread.start()
        return self._thread

    # What follows runs in the thread.

    def _work(self) -> None:
        failure: Exception | None = None
        try:
            with contextlib.closing(self._server.connect(self._maintenance, "pool")) as connection:
                # Told of the private server for messages alone: the caller's connection is what
                # keeps it running.
                server = Server(
                    self._server.settings, self._server.dsn, connection, self._server.embedded
                )
                session = Identity.of(connection)
                while self._step(server, session):
                    pass
        except Exception as error:
            failure = error
            log.info("the warm pool has ended: %s", error)
        with self._changed:
            self._failure = failure
            # The leases went with the session: whoever finds these may drop them, so nobody is
            # given one.
            self._used.extend(self._ready)
            self._ready.clear()
            self._copying, self._thread = None, None
            self._changed.notify_all()

    def _step(self, server: Server, session: Identity) -> bool:
        """Do one thing, or wait for one to do; return False when all is done."""
        warm = None
        with self._changed:
            if make := self._due():
                self._copying = session
            elif self._used:
                warm = self._used.popleft()
            elif len(self._ready) > (0 if self._closing else self._target):
                warm = self._ready.pop()
            elif self._closing:
                return False
            elif not self._changed.wait(IDLE if self._target else None):
                self._target //= 2
        if make:
            self._make(server)
        elif warm is not None:
            self._drop(server, warm)
        return True

    def _due(self) -> bool:
        """Return whether the next thing to do is to make a warm clone."""
        few = (
            len(self._ready) < max(self._target, self._wanted)
            and len(self._ready) + len(self._used) < 2 * self._limit
        )
        return few and self._wish is not None and self._failure is None and not self._closing

    def _make(self, server: Server) -> None:
        assert self._wish is not None
        project = server.settings.project
        spare, aside = spare_name(project), spare_name(project)
        warm = HandOver.compose(server, spare, 0, *self._wish, aside)
        failure: Exception | None = None
        try:
            server.leases.acquire(spare)
            server.leases.acquire(aside)
            made = copy(server, self._template.name, spare, warm.mark, open_to_all=False)
            warm = HandOver.compose(server, spare, made.oid, warm.name, warm.mark, aside)
        except Exception as error:
            failure = error
        with self._changed:
            (self._used if failure else self._ready).append(warm)
            if server.connection.closed and failure is not None:
                raise failure
            self._copying, self._failure = None, failure
            self._changed.notify_all()

    def _drop(self, server: Server, warm: HandOver) -> None:
        """Drop what has one of the two names of a warm clone, and give up its leases."""
        for name in (warm.spare, warm.aside):
            try:
                # Taken already, unless our last session was lost, which may not quite have ended.
                server.leases.acquire(name, patience=5)
                if (found := ddl.find(server, name)) is not None:
                    ddl.drop(server, found, force=True)
            except (psycopg.Error, NotOwned, ServerError) as error:
                if server.connection.closed:
                    with self._changed:
                        self._used.append(warm)
                    raise
                log.warning(
                    "%s could not be dropped and is left to the next run: %s",
                    name,
                    str(error).strip(),
                )
            server.leases.release(name)
