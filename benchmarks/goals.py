"""What a benchmark is meant to reach, decided by what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .pings import Figures


class Goal(Protocol):
    """`text` says what is to be reached; `reached` what was, in words, and whether that is enough,
    given the figures of the case and those of all cases by name."""

    @property
    def text(self) -> str: ...

    def reached(self, figures: Figures, others: Mapping[str, Figures]) -> tuple[str, bool]: ...


@dataclass(frozen=True)
class Pings:
    """At most so many times the median ping of the same case, median for median."""

    limit: float

    @property
    def text(self) -> str:
        return f"at most {self.limit:g} pings"

    def reached(self, figures: Figures, others: Mapping[str, Figures]) -> tuple[str, bool]:
        return f"{figures.pings:.1f}", figures.pings <= self.limit


@dataclass(frozen=True)
class Milliseconds:
    """At most so many milliseconds, as a median."""

    limit: float

    @property
    def text(self) -> str:
        return f"at most {self.limit:g} ms"

    def reached(self, figures: Figures, others: Mapping[str, Figures]) -> tuple[str, bool]:
        return f"{figures.median:.3g}", figures.median <= self.limit


@dataclass(frozen=True)
class Cheaper:
    """Cheaper than another case of the same run by this factor, median for median."""

    times: float
    than: str

    @property
    def text(self) -> str:
        return (
            f"{self.times:g} x cheaper than {self.than}"
            if self.times != 1
            else f"cheaper than {self.than}"
        )

    def reached(self, figures: Figures, others: Mapping[str, Figures]) -> tuple[str, bool]:
        factor = others[self.than].median / figures.median
        return f"{factor:.3g} x", factor > self.times if self.times == 1 else factor >= self.times


def judged(
    goals: tuple[Goal, ...], figures: Figures, others: Mapping[str, Figures]
) -> list[dict[str, Any]]:
    """Return each goal with what was reached and whether it was met, as plain data."""
    found = []
    for goal in goals:
        text, met = goal.reached(figures, others)
        found.append({"goal": goal.text, "reached": text, "met": met})
    return found
