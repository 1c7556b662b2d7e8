"""Does the template hold what the schema builds today? The schema is built again, in private, and
compared with a copy.

A template is found by its fingerprint. What the fingerprint does not see, such as an environment
variable that a migration reads, leaves a template that is out of date and looks right; only
building again can tell. The template itself is never touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from ..databases import ddl
from ..databases.copying import copy
from ..databases.naming import Mark, build_name
from ..schema.sources import Progress
from ..server.dsn import mask_any
from ..server.server import Server
from ..template.builder import Builder, full_manifest
from ..template.template import Template
from .inventory import OPTIONS, Inventory, rows_apart

_THERE = {True: "there", False: "missing"}
_CUT = 160  # letters of a value that are shown
Show = Callable[[Any], str]


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same: `kind` ("column", "rows of", …), `name`, `part` (a property
    or column, if it is known), how it is in the `template` and how `rebuilt`; `unsteady`, it
    differs between two builds as well, as what chance decides."""

    kind: str
    name: str
    part: str
    template: str
    rebuilt: str
    unsteady: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.name, self.part

    def __str__(self) -> str:
        what = f"{self.kind} {self.name}" + (f", {self.part}" if self.part else "")
        note = " (differs with every build)" if self.unsteady else ""
        return f"{what}: {self.template} in the template, {self.rebuilt} when rebuilt{note}"


@dataclass(frozen=True)
class Comparison:
    """What `verify` found: `differences`, and `blind`, what it could not compare,
    each with the reason."""

    differences: list[Difference]
    blind: dict[str, str]
    objects: int
    rows: int

    def lines(self) -> list[str]:
        """Return it for people."""
        steady = sum(not difference.unsteady for difference in self.differences)
        lines = [str(difference) for difference in self.differences]
        lines += [f"not compared: {name}: {why}" for name, why in self.blind.items()]
        if not lines or not self.differences:
            far = ", as far as it was compared" if self.blind else ""
            return [
                *lines,
                f"equal to what the schema builds now{far}: {self.objects} objects,"
                f" {self.rows} rows",
            ]
        if steady:
            lines += [
                "Something that the fingerprint does not see decides what is built."
                " Name it in inputs, or rebuild now:",
                "python -m dbclone prepare --rebuild",
            ]
        else:
            lines += [
                "All of it differs with every build: a clock or chance decides it. See"
                " --allow-unsteady."
            ]
        return lines

    def facts(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {
            "equal": not self.differences, "differences": [asdict(d) for d in self.differences],
            "not_compared": self.blind, "objects": self.objects, "rows": self.rows,
        }  # fmt: skip


def verify(server: Server, template: Template, progress: Progress) -> Comparison:
    """Build the schema of a template again and return what differs.

    Raises what a build raises. Everything made for it is dropped again.
    """
    dsn = server.database("postgres")
    mask = dsn.mask

    def show(value: Any) -> str:
        text = " ".join(mask_any(mask(str(value))).split())
        return text if len(text) <= _CUT else f"{text[:_CUT]}…"

    with contextlib.ExitStack() as stack:
        progress("copying the template")
        old = stack.enter_context(_copied(server, template))
        new = stack.enter_context(_rebuilt(server, template, progress))
        progress("comparing")
        found, was, now = _compared(old, new, show)
        if found:
            # Once more: what differs between two builds of the same inputs
            # tells nothing of the inputs.
            again = stack.enter_context(_rebuilt(server, template, progress))
            chance = {difference.key for difference in _compared(new, again, show)[0]}
            found = [Difference(**{**asdict(d), "unsteady": d.key in chance}) for d in found]
        counted = sum(digest[0] for digest in was.rows.values())
        return Comparison(found, {**was.blind, **now.blind}, len(was.objects), counted)


@contextlib.contextmanager
def _copied(server: Server, template: Template) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a copy of the template, which admits nobody itself."""
    name = build_name(server.settings.project)
    with ddl.temporary_database(server, name):
        copy(
            server,
            template.name,
            name,
            Mark.make("build", server.settings.project, server.facts.system),
        )
        with contextlib.closing(server.connect(name, "verify", OPTIONS)) as connection:
            yield connection


@contextlib.contextmanager
def _rebuilt(
    server: Server, template: Template, progress: Progress
) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database that was built just now."""
    manifest = full_manifest(server, template.schema)
    builder = Builder(server, template.schema, template.handle, manifest, template.name, progress)
    name = build_name(server.settings.project)
    with ddl.temporary_database(server, name):
        builder.aside(name)
        with contextlib.closing(server.connect(name, "verify", OPTIONS)) as connection:
            yield connection


def _compared(
    old: psycopg.Connection[Any], new: psycopg.Connection[Any], show: Show
) -> tuple[list[Difference], Inventory, Inventory]:
    was, now = Inventory.read(old), Inventory.read(new)
    found: list[Difference] = []
    for kind, name in sorted(was.objects.keys() | now.objects.keys()):
        before, after = was.objects.get((kind, name)), now.objects.get((kind, name))
        if before is None or after is None:
            found.append(
                Difference(kind, name, "", _THERE[before is not None], _THERE[after is not None])
            )
            continue
        for part in before:
            if before[part] != after[part]:
                found.append(
                    Difference(
                        kind, name, part.replace("_", " "), show(before[part]), show(after[part])
                    )
                )
    for name in sorted(was.positions.keys() & now.positions.keys()):
        if was.positions[name] != now.positions[name]:
            found.append(
                Difference(
                    "position of sequence", name, "", was.positions[name], now.positions[name]
                )
            )
    for name in sorted(was.rows.keys() & now.rows.keys()):
        if was.rows[name] != now.rows[name]:
            found += _rows(name, was, now, old, new, show)
    return found, was, now


def _rows(
    name: str,
    was: Inventory,
    now: Inventory,
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    show: Show,
) -> Iterator[Difference]:
    """Yield what differs in the rows of one table: their number, the columns, and rows that are
    only in one."""
    if was.rows[name][0] != now.rows[name][0] or name not in was.tables:
        yield Difference("rows of", name, "count", str(was.rows[name][0]), str(now.rows[name][0]))
    if name not in was.tables:
        return
    if was.rows[name][0] == now.rows[name][0]:
        before, after = was.columns(old, name), now.columns(new, name)
        columns = [
            column for column in before if column in after and before[column] != after[column]
        ]
        mine, theirs = was.examples(old, name), now.examples(new, name)
        ours, others = rows_apart(mine, theirs), rows_apart(theirs, mine)
        had, has = (
            " ".join(show(row) for row in rows) or "other values" for rows in (ours, others)
        )
        for column in columns or ["order of values"]:
            yield Difference("rows of", name, column, had, has)
        return
    mine, theirs = was.examples(old, name), now.examples(new, name)
    for row in rows_apart(mine, theirs):
        yield Difference("rows of", name, show(row), "there", "missing")
    for row in rows_apart(theirs, mine):
        yield Difference("rows of", name, show(row), "missing", "there")
