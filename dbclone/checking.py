"""The commands that look whether all is well, `verify` and `doctor`: a door, like the other commands in `cli`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from . import adapters
from .errors import printable
from .progress import Line, Progress
from .server import Server
from .settings import Settings
from .template import Template
from .verify import verify as verify_template


def say(arguments: argparse.Namespace, facts: dict[str, Any], lines: Sequence[str]) -> None:
    """Print facts as JSON or lines of text, as was asked."""
    print(json.dumps(facts, indent=2, sort_keys=True) if arguments.json else "\n".join(map(printable, lines)))


def verify(arguments: argparse.Namespace, settings: Settings) -> int:
    """Rebuild the schema beside the cached template and show any difference."""
    line = Line()
    schema, handle = adapters.load(settings)
    with Server.open(settings) as server:
        try:
            with Progress(line.write, 0.1 if line.in_place else 1.0) as progress:
                template = Template.ensure(server, schema, handle, progress=progress)
                found = verify_template(server, template, progress)
        finally:
            line.clear()
        facts = {"template": template.name, "built": template.built, "server": server.where, "version": server.version}
    built = ", built just now" if template.built else ""
    say(arguments, {**facts, **found.facts()}, [f"template {template.name}{built}", *found.lines()])
    return 1 if any(not (d.unsteady and arguments.allow_unsteady) for d in found.differences) else 0
