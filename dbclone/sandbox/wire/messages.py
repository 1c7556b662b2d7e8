"""Messages of PostgreSQL's wire protocol as a server speaks it, made from libpq's results. Pure
bytes, no connection.

The formats are those of the PostgreSQL documentation, protocol-message-formats; only what a client
needs that sends whole query strings (the simple query protocol), copies, and calls the functions of
large objects.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from psycopg import pq, sql

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
VERSION_3 = 3 << 16
AUTHENTICATION_OK = b"R" + struct.pack("!ii", 8, 0)
EMPTY_QUERY = b"I" + struct.pack("!i", 4)
COPY_DONE = b"c" + struct.pack("!i", 4)
# Which function a client means that calls it by its oid.
FIND = (
    b"SELECT nspname, proname FROM pg_catalog.pg_proc p"
    b" JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = %d"
)
# Parameters that a server tells of unasked, whenever they change.
REPORTED = (
    b"server_version server_encoding client_encoding application_name"
    b" default_transaction_read_only in_hot_standby is_superuser "
    b"session_authorization DateStyle IntervalStyle TimeZone integer_datetimes"
    b" standard_conforming_strings scram_iterations "
    b"search_path"
).split()
STATUS = {
    pq.TransactionStatus.IDLE: b"I",
    pq.TransactionStatus.INTRANS: b"T",
    pq.TransactionStatus.INERROR: b"E",
}
_int, _short, _column = struct.Struct("!i"), struct.Struct("!h"), struct.Struct("!ihihih")
_NULL = _int.pack(-1)
_FIELDS = [(chr(code).encode(), code) for code in pq.DiagnosticField]
_POSITION = pq.DiagnosticField.STATEMENT_POSITION


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Return one message."""
    return kind + _int.pack(len(body) + 4) + body


def parameter(name: bytes, value: bytes) -> bytes:
    """Return ParameterStatus."""
    return message(b"S", name + b"\0" + value + b"\0")


def key(pid: int) -> bytes:
    """Return BackendKeyData; its secret opens nothing."""
    return message(b"K", _int.pack(pid) + _int.pack(0))


def version(code: int) -> bytes:
    """Return NegotiateProtocolVersion for a client that asked for a newer minor version than we
    speak; nothing for any other."""
    return message(b"v", _int.pack(VERSION_3) + _int.pack(0)) if code > VERSION_3 else b""


def ready(status: pq.TransactionStatus) -> bytes:
    """Return ReadyForQuery with a transaction status."""
    return message(b"Z", STATUS.get(status, b"I"))


def complete(tag: bytes) -> bytes:
    """Return CommandComplete."""
    return message(b"C", tag + b"\0")


def error_or_notice(kind: bytes, fields: Mapping[bytes, bytes]) -> bytes:
    """Return ErrorResponse (kind E) or NoticeResponse (kind N) from fields
    by their one-letter codes."""
    return message(kind, b"".join(code + value + b"\0" for code, value in fields.items()) + b"\0")


def error(code: str, text: str, detail: str = "", hint: str = "") -> bytes:
    """Return the ErrorResponse for an error with SQLSTATE `code` that no server has told us."""
    fields = {b"S": "ERROR", b"V": "ERROR", b"C": code, b"M": text, b"D": detail, b"H": hint}
    return error_or_notice(b"E", {key: value.encode() for key, value in fields.items() if value})


NO_TRANSACTION = error_or_notice(
    b"N",
    {
        b"S": b"WARNING",
        b"V": b"WARNING",
        b"C": b"25P01",
        b"M": b"there is no transaction in progress",
    },
)


def fields_of(result: pq.abc.PGresult, shift: int = 0) -> dict[bytes, bytes]:
    """Return the fields of an error or notice. `shift`: characters that stood before the statement
    in the client's string."""
    found = {}
    for code, number in _FIELDS:
        value = result.error_field(pq.DiagnosticField(number))
        if value is not None:
            found[code] = (
                str(int(value) + shift).encode() if shift and number == _POSITION else value
            )
    return found


def copy_response(kind: bytes, result: pq.abc.PGresult) -> bytes:
    """Return CopyInResponse (kind G) or CopyOutResponse (kind H)."""
    formats = b"".join(_short.pack(result.fformat(column)) for column in range(result.nfields))
    return message(kind, struct.pack("!bh", int(result.binary_tuples), result.nfields) + formats)


def rows(result: pq.abc.PGresult) -> Iterator[bytes]:
    """Yield RowDescription and DataRows."""
    columns = range(result.nfields)
    described = [_short.pack(len(columns))]
    for c in columns:
        numbers = (
            result.ftable(c),
            result.ftablecol(c),
            result.ftype(c),
            result.fsize(c),
            result.fmod(c),
            result.fformat(c),
        )
        signed = [number - (1 << 32) if number >= 1 << 31 else number for number in numbers]
        described.append((result.fname(c) or b"") + b"\0" + _column.pack(*signed))
    yield message(b"T", b"".join(described))
    value, length, count = result.get_value, _int.pack, _short.pack(len(columns))
    for row in range(result.ntuples):
        parts = [count]
        for column in columns:
            datum = value(row, column)
            if datum is None:
                parts.append(_NULL)
            else:
                parts += (length(len(datum)), datum)
        yield message(b"D", b"".join(parts))


def function_result(value: bytes | None) -> bytes:
    """Return FunctionCallResponse."""
    return message(b"V", _NULL if value is None else _int.pack(len(value)) + value)


@dataclass
class Call:
    """A FunctionCall: the function's oid, its arguments and the formats of arguments and result (0
    text, 1 binary)."""

    oid: int
    arguments: list[bytes | None]
    formats: list[int]
    result_format: int

    @classmethod
    def of(cls, body: bytes) -> Call:
        """Return the call that a message's body means."""
        at = 0

        def take(layout: struct.Struct) -> int:
            nonlocal at
            at += layout.size
            return int(layout.unpack_from(body, at - layout.size)[0])

        oid = take(_int)
        formats = [take(_short) for _ in range(take(_short))]
        arguments: list[bytes | None] = []
        for _ in range(take(_short)):
            size = take(_int)
            arguments.append(None if size < 0 else body[at : at + size])
            at += max(size, 0)
        every = formats * len(arguments) if len(formats) == 1 else formats or [0] * len(arguments)
        return cls(oid, arguments, every, take(_short))

    def query(self, found: pq.abc.PGresult) -> bytes:
        """Return the query that calls the function, whose schema and name `FIND` has found."""
        names = [(found.get_value(0, column) or b"").decode() for column in (0, 1)]
        places = sql.SQL(", ").join(
            sql.SQL(f"${number}") for number in range(1, len(self.arguments) + 1)
        )
        return sql.SQL("SELECT {}({})").format(sql.Identifier(*names), places).as_bytes(None)


@dataclass
class Startup:
    """A client's first message: a code, and for a connection its parameters."""

    code: int
    parameters: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, body: bytes) -> Startup:
        """Return what the body of a first message, without its length, says."""
        (code,) = _int.unpack_from(body)
        if code >> 16 != 3:
            return cls(code)
        words = [word.decode(errors="replace") for word in body[4:].split(b"\0")]
        return cls(code, dict(zip(words[::2], words[1::2], strict=False)))
