"""What clones and resets cost: added up in each worker, merged over workers, shown as text or JSON.
Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import printable


@dataclass
class Report:
    """Counts and seconds of one worker, or of several merged.

    `clones` made in `clone_seconds`; `resets` and `reset_seconds` by kind of reset; `worst`, the
    test with the dearest reset, and its `worst_seconds`; `notes`, what a person should know;
    `escaped`, tests that committed outside a sandbox; `kept`, databases that were kept, with what
    for.
    """

    clones: int = 0
    clone_seconds: float = 0.0
    resets: Counter[str] = field(default_factory=Counter)
    reset_seconds: dict[str, float] = field(default_factory=dict)
    worst: str = ""
    worst_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def clone(self, seconds: float) -> None:
        """Add one clone made."""
        self.clones += 1
        self.clone_seconds += seconds

    def reset(self, kind: str, seconds: float, test: str) -> None:
        """Add one reset."""
        self.resets[kind] += 1
        self.reset_seconds[kind] = self.reset_seconds.get(kind, 0.0) + seconds
        if seconds > self.worst_seconds:
            self.worst, self.worst_seconds = test, seconds

    def note(self, text: str) -> None:
        """Add a line for people, once."""
        if text not in self.notes:
            self.notes.append(text)

    def merge(self, other: Report) -> None:
        """Add the figures of another worker."""
        self.clones += other.clones
        self.clone_seconds += other.clone_seconds
        self.resets.update(other.resets)
        for kind, seconds in other.reset_seconds.items():
            self.reset_seconds[kind] = self.reset_seconds.get(kind, 0.0) + seconds
        if other.worst_seconds > self.worst_seconds:
            self.worst, self.worst_seconds = other.worst, other.worst_seconds
        for text in other.notes:
            self.note(text)
        self.kept |= other.kept
        self.escaped += [test for test in other.escaped if test not in self.escaped]

    def data(self) -> dict[str, Any]:
        """Return the figures as plain data: what workers send to the
        controller and `--json` prints."""
        return {**asdict(self), "resets": dict(self.resets)}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Report:
        """Return the Report whose `data` this is."""
        return cls(
            **{
                **data,
                "resets": Counter(data["resets"]),
                "reset_seconds": dict(data["reset_seconds"]),
                "notes": list(data["notes"]),
                "escaped": list(data["escaped"]),
                "kept": dict(data["kept"]),
            }
        )

    def lines(self) -> list[str]:
        """Return the summary for people."""
        lines = []
        if self.clones:
            lines.append(
                f"{self.clones} clone{'s' if self.clones != 1 else ''} in"
                f" {shown(self.clone_seconds)}"
            )
        for kind, count in sorted(self.resets.items()):
            seconds = self.reset_seconds.get(kind, 0.0)
            lines.append(f"{count} x {kind} in {shown(seconds)} ({shown(seconds / count)} each)")
        if self.worst:
            lines.append(f"dearest reset: {shown(self.worst_seconds)} after {self.worst}")
        lines += [f"kept {what}: python -m dbclone psql {name}" for name, what in self.kept.items()]
        return [printable(line) for line in lines + self.notes]


def shown(seconds: float) -> str:
    """Return a duration for people."""
    return f"{seconds:.2f} s" if seconds >= 0.9995 else f"{seconds * 1000:.3g} ms"


def template_line(name: str, built: bool, seconds: float, why: tuple[str, ...]) -> str:
    """Return what became of a template, and why."""
    reasons = "; ".join(why[:5]) + (f"; and {len(why) - 5} more" if len(why) > 5 else "")
    line = f"template {name} {'built' if built else 'reused'} in {shown(seconds)}"
    return printable(line + (f" because {reasons}" if reasons else ""))
