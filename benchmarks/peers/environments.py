"""Virtual environments, one for each peer, made once and found again: nobody's dependencies
constrain anybody else's."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parent.parent.parent


class NotInstalled(Exception):
    """A peer's packages could not be installed: the message has the installer's last words."""


def default_cache() -> Path:
    """Return the folder for environments: in the temporary folder, and nobody else's, because what
    is in it is run."""
    folder = Path(tempfile.gettempdir()) / f"dbclone-peers-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or (
        hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022)
    ):
        raise NotInstalled(
            f"{folder} is not ours alone: remove it, or give another folder with --environments"
        )
    return folder


@dataclass(frozen=True)
class Installed:
    """Where an environment's Python is, and the version of every package in it."""

    python: str
    packages: dict[str, str]


@dataclass(frozen=True)
class Environment:
    """Arguments: `requirements`, pinned; `checkout`, install this checkout of dbclone, too."""

    name: str
    requirements: tuple[str, ...]
    checkout: bool = False

    def folder(self, cache: Path) -> Path:
        """Return its folder, another one for other requirements or another Python."""
        inputs = [
            sys.version,
            sys.executable,
            *self.requirements,
            *([str(ROOT)] if self.checkout else []),
        ]
        return cache / f"{self.name}-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]}"

    def install(self, cache: Path, progress: Callable[[str], None]) -> Installed:
        """Make it unless it is there, and return what is in it. Raises NotInstalled."""
        folder = self.folder(cache)
        done, python = (
            folder / "installed.json",
            folder / ("Scripts" if os.name == "nt" else "bin") / "python",
        )
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                progress(f"installing {', '.join(self.requirements)}")
                shutil.rmtree(folder, ignore_errors=True)
                _run(sys.executable, "-m", "venv", str(folder))
                checkout = ["-e", str(ROOT)] if self.checkout else []
                pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
                _run(*pip, "install", "-q", *self.requirements, *checkout)
                listed = json.loads(_run(*pip, "list", "--format=json"))
                written = folder / "installed.new"
                written.write_text(
                    json.dumps({one["name"].lower(): one["version"] for one in listed})
                )
                written.rename(done)  # last: what is there is complete
            return Installed(str(python), json.loads(done.read_text()))


def _run(*command: str) -> str:
    """Run a step of an installation and return its output. Raises NotInstalled."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=tempfile.gettempdir(),
            env=environ,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{type(error).__name__}: {error}") from None
    if done.returncode:
        lines = [
            line
            for line in (done.stderr or done.stdout).splitlines()
            if line.strip() and not line.startswith("WARNING")
        ]
        raise NotInstalled(" / ".join(lines[-3:]) or f"exit status {done.returncode}")
    return done.stdout
