"""Checks of what runs have left: databases, what outlives sessions, files; and of the folder in which runs lock each other out."""

from __future__ import annotations

import sys
from pathlib import Path

from .checks import NOT_CHECKED, OK, WARNING, Check, Patient
from .clock import wall
from .embedded.account import cache_folder
from .mounts import SHARED, file_system
from .prune import prune


def leftovers(patient: Patient) -> Check:
    found = prune(patient.server, dry_run=True, sizes=True)
    if not found:
        return Check("leftovers", OK, "no dead run has left anything")
    size = sum(database.bytes for database, _ in found)
    shown = "; ".join(f"{database.name}: {why}" for database, why in found[:5]) + ("; …" if len(found) > 5 else "")
    return Check("leftovers", WARNING, f"{len(found)} databases, {size / 2**20:.1f} MB: {shown}", "Run: python -m dbclone prune")


def strangers(patient: Patient) -> Check:
    system = patient.server.facts.system
    # One with a good mark that belongs to another role is that role's own business, on a server that several use.
    others = [d for d in patient.known if not d.own and d.mark is not None and d.mark.system == system]
    found = [f"{d.name}: {problem}" for d in patient.known if d not in others and (problem := d.problem(system))]
    if not found:
        text = f"; {len(others)} belong to other roles that use dbclone" if others else ""
        return Check("strangers", OK, f"every database with a name like ours has a mark of dbclone{text}")
    return Check("strangers", WARNING, "; ".join(found), "They are never touched: whoever made them knows what they are.")


def interrupted_drops(patient: Patient) -> Check:
    found = [name for (name,) in patient.server.fetch("SELECT datname::text FROM pg_database WHERE datconnlimit = -2 ORDER BY 1")]
    if not found:
        return Check("interrupted drops", OK, "there is none")
    ours = {d.name for d in patient.ours}
    hint = "Run: python -m dbclone prune" if set(found) <= ours else "Those that are not ours are for their owners to drop."
    return Check("interrupted drops", WARNING, ", ".join(found), hint)


def replication(patient: Patient) -> Check:
    rows = patient.server.fetch(
        "SELECT 'slot', database::text, slot_name::text FROM pg_replication_slots WHERE database ~ '^dbclone_'"
        " UNION ALL SELECT 'subscription', datname::text, subname::text FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
        " WHERE datname ~ '^dbclone_'"
        " UNION ALL SELECT 'prepared transaction', database::text, gid FROM pg_prepared_xacts WHERE database ~ '^dbclone_'"
    )
    if not rows:
        return Check("what outlives sessions", OK, "no slot, subscription or prepared transaction is in a database of ours")
    shown = "; ".join(f"{kind} {name!r} in {database}" for kind, database, name in rows)
    return Check("what outlives sessions", WARNING, shown, "It is ended when its database is dropped: python -m dbclone prune")


def lock_folder(patient: Patient) -> Check:
    name, folder = "lock folder", cache_folder(patient.settings).resolve() / "locks"
    if sys.platform != "linux":
        return Check(name, NOT_CHECKED, "only Linux tells which file system a folder is on")
    return on_file_system(str(folder), Path("/proc/self/mountinfo").read_text(errors="replace"))


def on_file_system(folder: str, mountinfo: str) -> Check:
    """Return the check of the lock folder on a system with these mounts."""
    found = file_system(folder, mountinfo)
    if found in SHARED:
        why = f"{folder} is on {found}, where a lock of one machine need not exclude another; the server's own locks still do"
        return Check("lock folder", WARNING, why, "Set cache_dir to a folder on a local disk.")
    return (
        Check("lock folder", OK, f"{folder} is on {found}")
        if found
        else Check("lock folder", NOT_CHECKED, f"no mount has {folder}")
    )


def orphans(patient: Patient) -> Check:
    name = "orphaned files"
    if patient.server.embedded is None:
        return Check(name, NOT_CHECKED, "the server's data folder is not ours to look into")
    base = patient.server.embedded.cluster.data / "base"
    try:
        # Newer ones may be of a database that is being made.
        folders = [p for p in base.iterdir() if p.name.isdigit() and p.stat().st_mtime < wall() - 60]
        known = {str(oid) for (oid,) in patient.server.fetch("SELECT oid::int8 FROM pg_database")}
        lost = [p for p in folders if p.name not in known]
        size = sum(f.stat().st_size for p in lost for f in p.rglob("*") if f.is_file())
    except OSError as error:
        return Check(name, NOT_CHECKED, f"{base} cannot be read: {error.strerror}")
    if not lost:
        return Check(name, OK, "every folder of the private server belongs to a database")
    why = f"{len(lost)} folders of no database in {base}, {size / 2**20:.1f} MB: the server crashed while it copied"
    return Check(name, WARNING, why, f"python -m dbclone server stop, then remove {base.parent.parent}; it is made anew.")
