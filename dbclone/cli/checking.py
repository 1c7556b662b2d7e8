"""The commands that look whether all is well, `verify` and `doctor`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..adapters import handles
from ..diagnostics.checks import FAILS, NOT_CHECKED, Check, Patient
from ..diagnostics.doctor import advice, examine, measure_speed
from ..diagnostics.verify import verify as verify_template
from ..errors import Error
from ..server.server import Server
from ..settings import Settings
from ..template.template import Template
from .progress import on_terminal, say


def verify(arguments: argparse.Namespace, settings: Settings) -> int:
    """Rebuild the schema beside the cached template and show any difference."""
    schema, handle = handles.load(settings)
    with Server.open(settings) as server:
        with on_terminal() as progress:
            template = Template.ensure(server, schema, handle, progress=progress)
            found = verify_template(server, template, progress)
        facts = {
            "template": template.name,
            "built": template.built,
            "server": server.where,
            "version": server.version,
        }
    built = ", built just now" if template.built else ""
    say(arguments, {**facts, **found.facts()}, [f"template {template.name}{built}", *found.lines()])
    return 1 if any(not (d.unsteady and arguments.allow_unsteady) for d in found.differences) else 0


def doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    """Say what will fail or is slow on this server, measured; exit 1 if something will fail."""
    workers = arguments.workers or os.cpu_count() or 1
    facts: dict[str, Any] = {"workers": workers}
    lines: list[str] = []
    try:
        server = Server.open(settings)
    except Error as error:
        checks = [
            Check.of("server", error),
            Check("everything else", NOT_CHECKED, "there is no server to look at"),
        ]
    else:
        with server:
            where = server.dsn.replace(password="", passfile="", sslpassword="")
            facts |= {key: where.get(key) for key in ("host", "port", "user", "dbname")}
            facts |= {
                "server": server.where,
                "version": server.version,
                "maintenance": server.connection.info.dbname,
            }
            patient = Patient(server, workers)
            database = server.connection.info.dbname
            reached = f"{server.where}, as {server.facts.role}, in database {database}"
            checks = [Check("server", "ok", reached), *examine(patient)]
            if arguments.no_measures:
                checks.append(Check("speed", NOT_CHECKED, "--no-measures was given"))
            else:
                with on_terminal() as progress:
                    more, found = measure_speed(patient, progress)
                checks += more
                if found is not None:
                    facts["measures"] = found.facts()
                    facts["advice"] = advice(patient, found)
                    lines += ["", *found.lines(), *facts["advice"]]
    facts["checks"] = [vars(check) for check in checks]
    shown = [
        f"{c.verdict:11} {c.name}: {c.why}" + (f"\n            {c.to_do}" if c.to_do else "")
        for c in checks
    ]
    say(arguments, facts, shown + lines)
    return 1 if any(check.verdict == FAILS for check in checks) else 0
