"""Django's databases in the process of `manage.py migrate`: `default` leads to the database being
built, no other is reached."""

from __future__ import annotations

import functools
from typing import Any

import django
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from ...server.dsn import Dsn
from .guard import Guard, libpq_words, texts

#: Options of libpq that an application counts on, and that lead nowhere.
_KEPT = ("options", "application_name", "client_encoding", "connect_timeout")


def lead(guard: Guard) -> None:
    """Lead the database `default` to the one being built, and refuse every other alias by its name.

    Before applications are loaded, so that what they read in the settings is right too; and again
    where a connection is opened (`BaseDatabaseWrapper.connect`, django/db/backends/base/base.py),
    whatever the settings have become.
    """
    setup, connect = django.setup, BaseDatabaseWrapper.connect

    @functools.wraps(setup)
    def led_setup(*arguments: Any, **options: Any) -> Any:
        if "default" in settings.DATABASES:
            _lead(settings.DATABASES["default"], guard.dsn)
        return setup(*arguments, **options)

    @functools.wraps(connect)
    def led_connect(wrapper: Any) -> Any:
        alias, values = wrapper.alias, wrapper.settings_dict
        if alias != "default" or wrapper.vendor != "postgresql":
            wanted = {
                "dbname": str(values.get("NAME") or ""),
                **texts({k.lower(): v for k, v in values.items()}, "host", "port"),
            }
            kind = "" if wrapper.vendor == "postgresql" else f" of {wrapper.vendor}"
            raise guard.refusal(
                f"the alias {alias!r}{kind} of Django's DATABASES",
                wanted,
                "dbclone migrates the alias 'default', which has to be PostgreSQL's; let no"
                " migration of it use others.",
            )
        _lead(values, guard.dsn)
        return connect(wrapper)

    django.setup, BaseDatabaseWrapper.connect = led_setup, led_connect


def _lead(values: dict[str, Any], dsn: Dsn) -> None:
    """Change the settings of one alias in place."""
    given = dict(dsn.params)
    for key, name in (
        ("dbname", "NAME"),
        ("user", "USER"),
        ("password", "PASSWORD"),
        ("host", "HOST"),
        ("port", "PORT"),
    ):
        values[name] = given.pop(key, "")
    kept = {
        k: v
        for k, v in (values.get("OPTIONS") or {}).items()
        if k not in libpq_words() or k in _KEPT
    }
    values["OPTIONS"] = {**kept, **given}
