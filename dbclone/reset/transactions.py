"""What transaction numbers prove: whether anything has been written since a database was last known
to be equal to its template.

Whatever changes a database in a way that others can see, rows, objects or large objects, does so
under a transaction number, and a number is only ever given out once. If no number has been given
out since, or each one that has was rolled back, then no table has to be looked at, however many
there are. Numbers are shared by all databases of a server, so this errs on the side of looking. The
functions are those of the PostgreSQL documentation, functions-info, "Transaction ID and Snapshot
Information".

Sequences are outside transactions. After a setval, though, the next nextval is logged under a
number (src/backend/commands/ sequence.c), so that a number given out is also the sign of a sequence
that moved; only sequences of unlogged tables give none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

_MANY = 5000  # numbers whose statuses are worth asking for, rather than for the tables
# Numbers that a test seldom exceeds: their statuses cost half as much if each has its own column.
_FEW = 16
_WRAP = 1 << 32  # rows have the lower half of a number

# The next number that will be given out is not in a snapshot, which knows only those that have
# ended; age() counts from it.
NOW = "pg_catalog.pg_current_snapshot()::text, pg_catalog.age('3'::xid)"
_NEXT = "pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8"
# Whether a row was written after a moment: by a transaction that began later, or was running then,
# and is none of our own. $1 is the first number that had not ended, $2 those that were running all
# the same, $3 our own.
NEWER = "((pg_catalog.age(xmin) <= pg_catalog.age($1) OR xmin = ANY($2)) AND xmin <> ALL($3))"
# The same, if none was running.
NEWER_STILL = "(pg_catalog.age(xmin) <= pg_catalog.age($1) AND xmin <> ALL($3))"
TYPES = "(xid, xid[], xid[])"
_FATES = f"""SELECT {NOW}, ARRAY(
    SELECT x::text || CASE s WHEN 'in progress' THEN 'p' ELSE 'c' END
    FROM (SELECT x, pg_catalog.pg_xact_status(x::text::xid8) AS s FROM (
              SELECT pg_catalog.generate_series($1, LEAST($1 + {_MANY},
                  {_NEXT} - 1)) AS x
              UNION ALL SELECT pg_catalog.unnest($2)) AS u) AS v
    WHERE s IS DISTINCT FROM 'aborted')::text"""
# The same for few numbers, with one column each. What has not been given out may not be asked for:
# those columns repeat the last.
_EACH = ", ".join(
    f"pg_catalog.pg_xact_status(LEAST($1 + {number}, u.last)::text::xid8)" for number in range(_FEW)
)
_LAST = f"SELECT {_NEXT} - 1 AS last OFFSET 0"


@dataclass(frozen=True)
class Moment:
    """A moment in a server's life: `snapshot` as text, xmin:xmax:running; `given`, how many numbers
    had been given out."""

    snapshot: str
    given: int

    @classmethod
    def of(cls, row: tuple[bytes | str | int | None, ...]) -> Moment:
        """Return the moment that a row beginning with the columns of NOW tells."""
        snapshot, given = row[0], row[1]
        return cls(
            snapshot.decode() if isinstance(snapshot, bytes) else str(snapshot), int(given or 0)
        )

    @cached_property
    def next(self) -> int:
        """The first transaction number that had not ended, as 64 bits."""
        return int(self.snapshot.split(":")[1])

    @cached_property
    def running(self) -> tuple[int, ...]:
        """Transactions with a number that had not ended though later ones had."""
        return tuple(int(x) for x in self.snapshot.split(":")[2].split(",") if x)

    @cached_property
    def still(self) -> bool:
        """Whether no transaction with a number was running anywhere on the server."""
        return not self.running and (self.given + 3 - self.next) % _WRAP == 0


@dataclass(frozen=True)
class Since:
    """What counts as new: what was written after `moment`, our own transactions `ours` excepted."""

    moment: Moment
    ours: tuple[int, ...] = ()

    @cached_property
    def values(self) -> tuple[str, str, str]:
        """The values of $1, $2 and $3 in NEWER, as text. They are made of digits alone."""
        return (
            str(self.moment.next % _WRAP),
            "{" + ",".join(str(x % _WRAP) for x in self.moment.running) + "}",
            "{" + ",".join(str(x % _WRAP) for x in self.ours) + "}",
        )

    @cached_property
    def arguments(self) -> str:
        """The arguments of an EXECUTE of a statement that was prepared with TYPES."""
        return "('{}', '{}', '{}')".format(*self.values)

    @staticmethod
    def asked(alias: str = "") -> str:
        """Return NEWER for a query that psycopg runs with `values` as its parameters; `alias`, of
        the table, with a dot."""
        text = NEWER.replace("$1", "%s::xid").replace("$2", "%s::xid[]").replace("$3", "%s::xid[]")
        return text.replace("xmin", f"{alias}xmin")

    @property
    def running(self) -> bool:
        """Whether other transactions were running at the moment."""
        return bool(self.moment.running)

    def newer(self, alias: str = "") -> str:
        """Return NEWER for a statement that is not prepared; `alias`, of the table, with a dot."""
        first, running, ours = self.values
        text = (
            NEWER.replace("$1", f"'{first}'::xid")
            .replace("$2", f"'{running}'::xid[]")
            .replace("$3", f"'{ours}'::xid[]")
        )
        return text.replace("xmin", f"{alias}xmin")


def prepare(name: str) -> list[bytes]:
    """Return what prepares the statements name_now, name_few and name_fates in a session. The
    latter two let go of session-level advisory locks too, which a rollback does not and which would
    meet the next test."""
    unlock = "pg_catalog.pg_advisory_unlock_all()"
    return [
        f"PREPARE {name}_now AS SELECT {NOW}".encode(),
        f"PREPARE {name}_few(int8) AS SELECT {NOW}, {_EACH}, {unlock} FROM ({_LAST}) AS u".encode(),
        f"PREPARE {name}_fates(int8, int8[]) AS {_FATES}, {unlock}".encode(),
    ]


class Verdict(Enum):
    """What transactions on a server did while a test ran: NOTHING that lasts, or they committed
    something, which may be in another database, BEFORE it began or DURING it."""

    NOTHING = "nothing"
    BEFORE = "before"
    DURING = "during"


class CommitTracker:
    """Remembers when a database was last known to be equal to its template, and says whether it
    must be looked at again."""

    def __init__(self, moment: Moment) -> None:
        self.settle(Since(moment), moment)

    def settle(self, since: Since, end: Moment) -> None:
        """Start anew: everything visible at `since.moment` was right, or has been put right by
        transactions of our own that had ended at `end`."""
        self.since = since
        self.still = since.moment.still and end.still  # nobody was writing anywhere
        self._quiet = (
            end if self.still and end.next - since.moment.next == len(since.ours) else None
        )
        self._next, self._pending = since.moment.next, since.moment.running

    def unchanged(self, moment: Moment) -> bool:
        """Return whether no transaction number at all has been given out since then."""
        return moment == self._quiet

    def question(self, name: str) -> bytes:
        """Return the call of the prepared statement that asks what became of the numbers since;
        `prepare` gives it its name."""
        if not self._pending:
            return f"EXECUTE {name}_few({self._next})".encode()
        pending = ",".join(map(str, self._pending))
        return f"EXECUTE {name}_fates({self._next}, '{{{pending}}}')".encode()

    @property
    def text(self) -> bytes:
        """The same question as a statement that is not prepared."""
        pending = ",".join(map(str, self._pending))
        return (
            _FATES.replace("$1", f"{self._next}::int8")
            .replace("$2", f"'{{{pending}}}'::int8[]")
            .encode()
        )

    def statuses(self, result: Any) -> tuple[Moment, bytes | None]:
        """Return the moment, and the numbers with their statuses, that a result of libpq to
        `question` or `text` tells. None for these if they were too many: then `text` has to be
        asked."""
        moment = Moment.of((result.get_value(0, 0), result.get_value(0, 1)))
        if result.nfields <= _FEW:
            return moment, result.get_value(0, 2)
        if moment.next - self._next > _FEW:
            return moment, None
        found = []
        for number in range(moment.next - self._next):
            fate = result.get_value(0, 2 + number)
            if fate != b"aborted":
                found.append(
                    b"%d%s" % (self._next + number, b"p" if fate == b"in progress" else b"c")
                )
        return moment, b"{%s}" % b",".join(found)

    def classify(
        self, moment: Moment, statuses: bytes | str | None, begun: Moment | None = None
    ) -> Verdict:
        """Return what happened on this server since then, and go on from there if it was nothing
        that lasts.

        Arguments: `moment` and `statuses`, the answer to `question`; `begun`, when the test began.
        """
        text = statuses.decode() if isinstance(statuses, bytes) else statuses or "{}"
        found = [part for part in text.strip("{}").split(",") if part]
        committed = [
            x
            for x in (int(part[:-1]) for part in found if part.endswith("c"))
            if x not in self.since.ours
        ]
        if moment.next - self._next > _MANY:
            return Verdict.DURING
        if committed:
            late = begun is None or any(x >= begun.next or x in begun.running for x in committed)
            return Verdict.DURING if late else Verdict.BEFORE
        self._pending = tuple(int(part[:-1]) for part in found if part.endswith("p"))
        self._next = moment.next
        if self._pending == () and moment.still:
            self.settle(Since(moment), moment)
        return Verdict.NOTHING
