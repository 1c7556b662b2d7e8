"""What a connection of a sandbox may ask of the session that it shares with others."""

from __future__ import annotations

from typing import Any, Protocol

import psycopg
from psycopg import pq

from .prepared import Prepared
from .savepoints import Savepoints
from .turns import Turns


class Shared(Protocol):
    """What connections share: `stack`, of savepoints; `turns`, on the wire; `pgconn`, the real one; `gone`, a finished one."""

    stack: Savepoints
    turns: Turns
    limited: str
    real: psycopg.Connection[Any]
    pgconn: pq.abc.PGconn
    gone: pq.abc.PGconn
    speaker: int

    @property
    def failed(self) -> bool: ...

    def number(self) -> int: ...

    def join(self, number: int, connection: Any) -> None: ...

    def noticed(self, text: str) -> None: ...

    def prepared(self) -> Prepared: ...

    def left(self, prepared: Prepared) -> None: ...
