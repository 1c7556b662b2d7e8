"""Checks of a server and of a project's template: what will fail there, or is slow; one function
each, which gives a value.

A check never decides for itself what an error already says: it runs what would raise and shows it.
What could not be looked at is "not checked", with the reason, never "ok".
"""

from __future__ import annotations

import datetime
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import psycopg

from ..adapters import handles
from ..clone import roles
from ..databases import boundary
from ..databases.naming import Database, free_template_name
from ..databases.prune import prune
from ..errors import Error
from ..process.clock import wall
from ..server.connect import quoted
from ..server.private.account import cache_folder
from ..server.server import Server
from ..settings import Settings
from ..template import requirements
from ..template.builder import adoptable, collation_flaw, flaws, full_manifest

OK, SLOW, WARNING, FAILS, NOT_CHECKED = "ok", "slow", "warning", "fails", "not checked"
KNOWN = (14, 18)  # major versions
# When the community stops to correct a version: https://www.postgresql.org/support/versioning/
_END_OF_LIFE = {
    14: "2026-11-12",
    15: "2027-11-11",
    16: "2028-11-09",
    17: "2029-11-08",
    18: "2030-11-14",
}
_PER_WORKER = (
    5  # administration, sandbox, control of the reset, copies made ahead, and one more for the test
)
_WORKERS_OF_THEIR_OWN = ("timescaledb", "pg_cron")


@dataclass(frozen=True)
class Check:
    """The result of one check: `verdict` is one of ok, slow, warning, fails and "not checked";
    `why`, and what `to_do` about it."""

    name: str
    verdict: str
    why: str
    to_do: str = ""

    @classmethod
    def of(cls, name: str, error: Error) -> Check:
        """Return an error as a check that fails, in the error's own words."""
        return cls(
            name, FAILS, " ".join(filter(None, [error.message + ".", error.detail])), error.hint
        )


@dataclass
class Patient:
    """What the checks look at: a server that we are connected to, and the databases on it whose
    names begin as ours do."""

    server: Server
    workers: int
    known: list[Database] = field(default_factory=list)
    template: Database | None = None
    handle: Any = None

    @property
    def settings(self) -> Settings:
        return self.server.settings

    @property
    def ours(self) -> list[Database]:
        return [d for d in self.known if not d.problem(self.server.facts.system)]


#: File systems that other machines may have mounted too: there a file lock of this machine need
#: not exclude the others.
SHARED = frozenset(
    [
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "glusterfs", "lustre",
        "gpfs", "beegfs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs",
    ]
)  # fmt: skip


def file_system(path: str, mountinfo: str) -> str:
    """Return the type of the file system that holds an absolute `path` without links, such as
    "ext4"; empty if no mount does."""
    folder, best, found = PurePosixPath(path), -1, ""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = PurePosixPath(
            re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        )
        # The longest mount point that leads there; of several at one place
        # the last covers the others.
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), after.split(" ")[0]
    return found


def leftovers(patient: Patient) -> Check:
    found = prune(patient.server, dry_run=True, sizes=True)
    if not found:
        return Check("leftovers", OK, "no dead run has left anything")
    size = sum(database.bytes for database, _ in found)
    shown = "; ".join(f"{database.name}: {why}" for database, why in found[:5]) + (
        "; …" if len(found) > 5 else ""
    )
    return Check(
        "leftovers",
        WARNING,
        f"{len(found)} databases, {size / 2**20:.1f} MB: {shown}",
        "Run: python -m dbclone prune",
    )


def strangers(patient: Patient) -> Check:
    system = patient.server.facts.system
    # One with a good mark that belongs to another role is that role's own business, on a server
    # that several use.
    others = [
        d for d in patient.known if not d.own and d.mark is not None and d.mark.system == system
    ]
    found = [
        f"{d.name}: {problem}"
        for d in patient.known
        if d not in others and (problem := d.problem(system))
    ]
    if not found:
        text = f"; {len(others)} belong to other roles that use dbclone" if others else ""
        return Check(
            "strangers", OK, f"every database with a name like ours has a mark of dbclone{text}"
        )
    return Check(
        "strangers",
        WARNING,
        "; ".join(found),
        "They are never touched: whoever made them knows what they are.",
    )


def interrupted_drops(patient: Patient) -> Check:
    found = [
        name
        for (name,) in patient.server.fetch(
            "SELECT datname::text FROM pg_database WHERE datconnlimit = -2 ORDER BY 1"
        )
    ]
    if not found:
        return Check("interrupted drops", OK, "there is none")
    ours = {d.name for d in patient.ours}
    hint = (
        "Run: python -m dbclone prune"
        if set(found) <= ours
        else "Those that are not ours are for their owners to drop."
    )
    return Check("interrupted drops", WARNING, ", ".join(found), hint)


def replication(patient: Patient) -> Check:
    rows = patient.server.fetch(
        "SELECT 'slot', database::text, slot_name::text FROM pg_replication_slots WHERE"
        " database ~ '^dbclone_'"
        " UNION ALL SELECT 'subscription', datname::text, subname::text FROM pg_subscription"
        " JOIN pg_database d ON d.oid = subdbid"
        " WHERE datname ~ '^dbclone_'"
        " UNION ALL SELECT 'prepared transaction', database::text, gid FROM"
        " pg_prepared_xacts WHERE database ~ '^dbclone_'"
    )
    if not rows:
        return Check(
            "what outlives sessions",
            OK,
            "no slot, subscription or prepared transaction is in a database of ours",
        )
    shown = "; ".join(f"{kind} {name!r} in {database}" for kind, database, name in rows)
    return Check(
        "what outlives sessions",
        WARNING,
        shown,
        "It is ended when its database is dropped: python -m dbclone prune",
    )


def lock_folder(patient: Patient) -> Check:
    name, folder = "lock folder", cache_folder(patient.settings).resolve() / "locks"
    if sys.platform != "linux":
        return Check(name, NOT_CHECKED, "only Linux tells which file system a folder is on")
    return on_file_system(str(folder), Path("/proc/self/mountinfo").read_text(errors="replace"))


def on_file_system(folder: str, mountinfo: str) -> Check:
    """Return the check of the lock folder on a system with these mounts."""
    found = file_system(folder, mountinfo)
    if found in SHARED:
        why = (
            f"{folder} is on {found}, where a lock of one machine need not exclude another;"
            " the server's own locks still do"
        )
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
        folders = [
            p for p in base.iterdir() if p.name.isdigit() and p.stat().st_mtime < wall() - 60
        ]
        known = {str(oid) for (oid,) in patient.server.fetch("SELECT oid::int8 FROM pg_database")}
        lost = [p for p in folders if p.name not in known]
        size = sum(f.stat().st_size for p in lost for f in p.rglob("*") if f.is_file())
    except OSError as error:
        return Check(name, NOT_CHECKED, f"{base} cannot be read: {error.strerror}")
    if not lost:
        return Check(name, OK, "every folder of the private server belongs to a database")
    why = (
        f"{len(lost)} folders of no database in {base}, {size / 2**20:.1f} MB:"
        " the server crashed while it copied"
    )
    return Check(
        name,
        WARNING,
        why,
        f"python -m dbclone server stop, then remove {base.parent.parent}; it is made anew.",
    )


def version(patient: Patient) -> Check:
    major, shown = patient.server.facts.major, patient.server.version
    (seconds,) = patient.server.fetch(
        "SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8"
    )[0]
    text = f"PostgreSQL {shown}, running for {seconds / 3600:.1f} hours"
    if major > KNOWN[1]:
        return Check(
            "version",
            WARNING,
            f"{text}; dbclone knows {KNOWN[0]} to {KNOWN[1]}",
            "Run verify after an upgrade of dbclone.",
        )
    end = datetime.date.fromisoformat(_END_OF_LIFE[major])
    if end < datetime.date.today():
        return Check(
            "version",
            WARNING,
            f"{text}; the community stopped to correct it on {end}",
            "Use a newer version.",
        )
    return Check("version", OK, f"{text}; corrected by the community until {end}")


def rights(patient: Patient) -> Check:
    facts = patient.server.facts
    if facts.superuser:
        return Check("rights", OK, f"role {facts.role} is a superuser")
    (sees,) = patient.server.fetch("SELECT pg_has_role('pg_read_all_stats', 'USAGE')")[0]
    text = f"role {facts.role} may create databases"
    if not sees:
        text += "; what sessions of other roles do is hidden from it"
        grant = f'GRANT pg_read_all_stats TO "{facts.role}";'
        return Check("rights", OK, text, f"To be told what they do, run as a superuser: {grant}")
    return Check("rights", OK, text)


def connections(patient: Patient) -> Check:
    server = patient.server
    used, allowed, limit, own = server.fetch(
        "SELECT count(*), current_setting('max_connections')::int -"
        " current_setting('superuser_reserved_connections')::int"
        " - coalesce(current_setting('reserved_connections', true)::int, 0),"
        " (SELECT CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END FROM pg_roles WHERE"
        " rolname = current_user),"
        " count(*) FILTER (WHERE usename = current_user)"
        " FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL"
    )[0]
    # Ours will be free again
    needed, free = 1 + patient.workers * _PER_WORKER, int(allowed) - int(used) + 1
    if limit >= 0:
        free = min(free, int(limit) - int(own) + 1)
    text = (
        f"{patient.workers} workers need about {needed} connections, besides the application's own;"
        f" {free} of {server.facts.max_connections} are free"
    )
    if needed > free:
        fit = max(1, (free - 1) // _PER_WORKER)
        limited = f"ALTER ROLE … CONNECTION LIMIT {needed}, " if limit >= 0 else ""
        return Check(
            "connections",
            FAILS,
            text,
            f"Use -n {fit}, end other sessions, or raise the limit: {limited}max_connections.",
        )
    return Check("connections", OK, text)


def durability(patient: Patient) -> Check:
    settings = patient.server.fetch(
        "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes',"
        " 'synchronous_commit') ORDER BY name"
    )
    text = ", ".join(f"{name} = {value}" for name, value in settings)
    if not patient.server.facts.durable:
        return Check("durability", OK, f"{text}: commits do not wait for the disk")
    return Check(
        "durability",
        SLOW,
        f"{text}: tests pay for surviving a power failure",
        "See what that costs, below.",
    )


def template(patient: Patient) -> Check:
    if not patient.settings.schema:
        return Check(
            "template",
            NOT_CHECKED,
            "no setting says what goes into it; a hook in conftest may",
            "Set schema, or run there.",
        )
    schema, patient.handle = handles.load(patient.settings)
    fingerprint = full_manifest(patient.server, schema).fingerprint
    name = free_template_name(patient.settings.project, fingerprint, patient.known)
    patient.template = adoptable(patient.server, patient.known, name)
    if patient.template is not None:
        return Check("template", OK, f"{name} is there, {patient.template.bytes / 2**20:.1f} MB")
    requirements.check(patient.server, schema)
    boundary.check(patient.server, schema)
    stale = next((d for d in patient.known if d.name == name), None)
    if stale is not None:
        return Check(
            "template",
            SLOW,
            f"{name} is stale: {', '.join(flaws(patient.server, stale))}",
            "The next run builds it anew.",
        )
    return Check(
        "template",
        OK,
        f"{name} is not there yet; the next run builds it",
        "To have it built now: python -m dbclone prepare",
    )


def role(patient: Patient) -> Check:
    """Look at as whom the application will connect, and whether row-level security binds it."""
    server, name = patient.server, patient.settings.role
    if name and server.embedded is None:
        roles.require(server)
    who = (
        roles.role_for(server, patient.template, patient.handle)
        if patient.template is not None
        else None
    )
    if name and name != server.facts.role:
        ((able, mine),) = server.fetch(
            "SELECT rolcanlogin, pg_has_role(oid, 'USAGE') FROM pg_roles WHERE rolname = %s", [name]
        ) or [(True, True)]  # the next run makes it
        if not (able or server.embedded is not None):
            return Check(
                "role",
                FAILS,
                f"the application's role {name} may not log in",
                f"Run as a superuser: ALTER ROLE {quoted(name)} LOGIN;",
            )
        if not mine:
            to_do = f"Run as a superuser: GRANT {quoted(name)} TO {quoted(server.facts.role)};"
            return Check(
                "role",
                WARNING,
                f"role {server.facts.role} may not end sessions of the application's role {name}",
                to_do,
            )
    if who is not None or name:
        how = (
            f"from {patient.settings.source('role')}"
            if name
            else "as its handle does and the schema expects"
        )
        return Check("role", OK, f"the application connects as {name or (who and who.name)}, {how}")
    if patient.template is None:
        return Check(
            "role",
            NOT_CHECKED,
            "there is no template that could tell whether it has row-level security",
        )
    if text := roles.unbound(server, patient.template, server.facts.role, patient.handle):
        why, _, to_do = text.partition(": ")
        return Check("role", WARNING, why, f"S{to_do[1:]}.")
    return Check("role", OK, f"the application connects as {server.facts.role}, which builds, too")


def collations(patient: Patient) -> Check:
    server = patient.server
    if server.facts.major < 15:
        return Check(
            "collations",
            NOT_CHECKED,
            "before PostgreSQL 15 a database does not record the version of its collation",
        )
    stale = {d.name: flaw for d in patient.ours if d.sealed and (flaw := collation_flaw(server, d))}
    rows = server.fetch(
        "SELECT datname::text FROM pg_database"
        " WHERE datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)"
        " AND datcollversion IS NOT NULL"
        " AND NOT datname ~ '^dbclone_' ORDER BY 1"
    )
    if stale:
        return Check(
            "collations",
            SLOW,
            "; ".join(f"{n}: {flaw}" for n, flaw in stale.items()),
            "The next run builds it anew.",
        )
    if rows:
        names = ", ".join(name for (name,) in rows)
        why = (
            f"the collation of {names} has another version than its indexes were built with;"
            " dbclone does not copy them"
        )
        return Check(
            "collations",
            WARNING,
            why,
            "Ask their owners to reindex them (PostgreSQL documentation, sql-altercollation).",
        )
    return Check(
        "collations", OK, "every collation has the version that its database was made with"
    )


def background_workers(patient: Patient) -> Check:
    name = "background workers"
    try:
        (text,) = patient.server.fetch("SELECT current_setting('shared_preload_libraries')")[0]
    except psycopg.errors.InsufficientPrivilege:
        hint = f'Run as a superuser: GRANT pg_read_all_settings TO "{patient.server.facts.role}";'
        return Check(name, NOT_CHECKED, "the role may not read shared_preload_libraries", hint)
    loaded = {Path(word.strip().strip('"')).name.removesuffix(".so") for word in text.split(",")}
    found = [extension for extension in _WORKERS_OF_THEIR_OWN if extension in loaded]
    if not found:
        return Check(name, OK, "no preloaded library is known to connect to databases by itself")
    superuser = patient.server.facts.superuser
    why = (
        f"{' and '.join(found)} is preloaded and connects to databases by itself, also to one that"
        " is to be copied; "
        + (
            "its sessions in a template are ended"
            if superuser
            else "this role may not end its sessions"
        )
    )
    return Check(name, WARNING, why, "Leave it out of shared_preload_libraries for tests.")
