"""Reading request bodies, and the one exception that turns into an error response."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from flask import request


class Problem(Exception):
    """Something the client has to hear about: a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def body() -> dict[str, Any]:
    """Return the JSON object that was sent. Raises Problem if it is none."""
    data = request.get_json(silent=True)
    if not isinstance(data, dict):
        raise Problem(400, "the body must be a JSON object")
    return data


def text(data: dict[str, Any], key: str) -> str:
    """Return a string that is not blank."""
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Problem(400, f"{key} must be a text that is not blank")
    return value.strip()


def whole(data: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer of any sign: the limits are the tables' CHECK constraints."""
    value = data.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Problem(400, f"{key} must be an integer")
    return value


def money(data: dict[str, Any], key: str) -> Decimal:
    """Return an amount with at most two decimals; strings are taken,
    floats would have been rounded already."""
    value = data.get(key)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise Problem(400, f"{key} must be an amount such as '9.90'")
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise Problem(400, f"{key} must be an amount such as '9.90'") from None
    if not amount.is_finite() or amount != round(amount, 2):
        raise Problem(400, f"{key} must have at most two decimals")
    return amount


def mapping(data: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object inside the body."""
    value = data.get(key)
    if not isinstance(value, dict):
        raise Problem(400, f"{key} must be an object")
    return value


def rows(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects that is not empty."""
    value = data.get(key)
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, dict) for item in value)
    ):
        raise Problem(400, f"{key} must be a list of objects that is not empty")
    return value
