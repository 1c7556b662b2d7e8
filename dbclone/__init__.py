"""Every test its own Postgres state, at next to no cost.

This module only names things; what stands behind a name is imported when the name is used, so that
a pytest session which does not ask for dbclone pays nothing for its being installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BuildFailed,
    BuildTimeout,
    Error,
    KeptTableReferenced,
    NotIsolated,
    NotOwned,
    OutOfConnections,
    PermissionMissing,
    ResetBlocked,
    ResetError,
    SandboxLimit,
    ServerError,
    ServerNotFound,
    SettingsError,
    TemplateError,
    WriteEscaped,
)

if TYPE_CHECKING:
    from .clone.clone import Clone
    from .clone.isolation import Isolation
    from .runner import prepare
    from .settings import Settings
    from .template.template import Template

__all__ = [
    "BuildFailed", "BuildTimeout", "Clone", "Error", "Isolation", "KeptTableReferenced",
    "NotIsolated", "NotOwned", "OutOfConnections", "PermissionMissing", "ResetBlocked",
    "ResetError", "SandboxLimit", "ServerError", "ServerNotFound", "Settings", "SettingsError",
    "Template", "TemplateError", "WriteEscaped", "prepare",
]  # fmt: skip

_LAZY = {
    "Clone": "clone.clone",
    "Isolation": "clone.isolation",
    "Settings": "settings",
    "Template": "template.template",
    "prepare": "runner",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
