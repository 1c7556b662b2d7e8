"""The one table of strategies: a new way to undo tests is one file in this package, and one row
here."""

from __future__ import annotations

from .base import Strategy
from .rebuild import Rebuild
from .recreate import Recreate
from .rollback import Rollback
from .truncate.strategy import Truncate
from .untouched import Untouched

STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Rollback, Truncate, Recreate, Rebuild, Untouched)
}
