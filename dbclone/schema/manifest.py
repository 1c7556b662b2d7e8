"""What decides how a template is built: its inputs by name and digest, and one digest of all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def digest(content: bytes) -> str:
    """Return 16 hexadecimal digits of SHA-256: a name for content, not a secret."""
    return hashlib.sha256(content).hexdigest()[:16]


class Manifest(dict[str, str]):
    """Every input of a template by name and digest."""

    @property
    def fingerprint(self) -> str:
        """Digest of all inputs: 16 hexadecimal digits, whatever order they were found in."""
        lines = "".join(f"{name}\0{digest_}\0" for name, digest_ in sorted(self.items()))
        return digest(lines.encode())

    def explain(self, previous: Mapping[str, str]) -> list[str]:
        """Return in words what differs from `previous`, at most one line an input."""
        changes = []
        for name in sorted({*self, *previous}):
            old, new = previous.get(name), self.get(name)
            if old is None:
                changes.append(f"{name} is new")
            elif new is None:
                changes.append(f"{name} is gone")
            elif old != new:
                short = len(old) < 16 and len(new) < 16
                changes.append(f"{name} was {old}, is {new}" if short else f"{name} changed")
        return changes
