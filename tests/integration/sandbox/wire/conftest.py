"""psycopg2 connections into a sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dbclone.sandbox.session import Session

from .psycopg2_programs import SCHEMA, Connect, connecting


@pytest.fixture(scope="module")
def url_schema() -> str:
    return SCHEMA


@pytest.fixture
def connect(session: Session, url: str) -> Iterator[Connect]:
    with connecting(session, url) as found:
        yield found
