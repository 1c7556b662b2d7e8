"""What `pg_dump` says of a database: an oracle that knows nothing of this project."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dbclone.server.server import Server


def program(server: Server) -> Path | None:
    """Return the pg_dump beside a private server's own programs, or None if there is none."""
    if server.embedded is None:
        return None
    found = server.embedded.cluster.binaries.folder / "pg_dump"
    return found if found.is_file() else None


def dump(pg_dump: Path, url: str) -> list[str]:
    """Return the lines of a dump that two equal databases have in common: rows of a table in
    canonical order, without comments, and without the random word that guards a dump since the
    minor versions of August 2025."""
    done = subprocess.run(
        [pg_dump, "--no-password", "--lock-wait-timeout=5000", "--dbname", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"pg_dump: {done.stderr}"
    lines: list[str] = []
    rows: list[str] | None = None
    for line in done.stdout.splitlines():
        if rows is not None and line != "\\.":
            rows.append(line)
        elif rows is not None:
            lines += [*sorted(rows), line]
            rows = None
        elif line and not line.startswith(("--", "\\restrict ", "\\unrestrict ")):
            lines.append(line)
            rows = [] if line.startswith("COPY ") and line.endswith(" FROM stdin;") else None
    return lines
