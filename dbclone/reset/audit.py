"""What a test left behind that its reset does not reach, in words."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import WriteEscaped


def escaped(name: str, test: str, rows: Mapping[str, int], other: str) -> WriteEscaped:
    """Return the error that names a test which committed outside its sandbox.

    Arguments: `name`, of the database; `rows`, by table, how many were new, changed or gone; `other`, what else had changed.
    """
    shown = [f"{count or 'some'} row{'s' if count != 1 else ''} in {table}" for table, count in rows.items()]
    found = ", ".join([*shown, *([other] if other else [])])
    return WriteEscaped(
        f'{test or "a block"} committed to "{name}" outside its sandbox: {found}',
        "Rollback undoes what passes through the application's own handle. Another connection, thread or process wrote this; it has"
        " been removed.",
        'Isolate the test with @pytest.mark.dbclone(reset="truncate"), or let that code use the handle that dbclone binds.',
    )
