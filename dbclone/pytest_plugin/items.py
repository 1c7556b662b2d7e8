"""Which tests are isolated, and that their isolation begins before their other fixtures write
anything."""

from __future__ import annotations

from typing import Any

import pytest

from ..errors import SettingsError

_LEVELS = ("session", "package", "module", "class", "function")
_OURS = {
    "dbclone_worker": "session",
    "dbclone_module": "module",
    "dbclone_class": "class",
    "dbclone": "function",
}
# Fixtures inside which what a test writes is undone
ISOLATING = ("dbclone", "dbclone_class", "dbclone_module")
BINDING = ("dbclone_worker",)  # which lead the handle to the clone, and undo nothing


def marker_arguments(marker: pytest.Mark | None, nodeid: str) -> dict[str, Any]:
    """Return the marker's arguments, checked by calling a function of the marker's signature."""

    def dbclone(*, reset: str | None = None, reset_sequences: bool | None = None) -> dict[str, Any]:
        from ..settings import RESETS

        if reset is not None and reset not in RESETS:
            raise TypeError(f"reset is {reset!r}, and can be {', '.join(RESETS)}")
        return {"reset": reset, "reset_sequences": reset_sequences}

    try:
        return dbclone(*(marker.args if marker else ()), **(marker.kwargs if marker else {}))
    except TypeError as error:
        raise SettingsError(
            f"@pytest.mark.dbclone on {nodeid} has wrong arguments",
            f"{error}.".replace("marker_arguments.<locals>.", ""),
            'Write @pytest.mark.dbclone(reset="truncate").',
        ) from None


def arrange(item: pytest.Item, autouse: bool) -> None:
    """Add our fixtures to a test that wants isolation, and put each first in its scope, so that
    what other fixtures of that scope write is inside the isolation. Raises SettingsError for a
    wrong marker."""
    names: list[str] | None = getattr(item, "fixturenames", None)
    if names is None:
        return
    marker = item.get_closest_marker("dbclone")
    out = (
        not autouse
        if marker is None
        else marker_arguments(marker, item.nodeid)["reset"] == "none" and "dbclone" not in names
    )
    present = [name for name in _OURS if name in names]
    wanted = [*present, *([] if out or "dbclone" in names else ["dbclone"])]
    for name in dict.fromkeys(["dbclone_worker", *wanted]) if wanted else ():
        if name in names:
            names.remove(name)
        names.insert(_place(item, names, _OURS[name]), name)


def _place(item: Any, names: list[str], scope: str) -> int:
    """Return the index of the first fixture of `scope`, or of a narrower one."""
    definitions = item._fixtureinfo.name2fixturedefs
    wanted = _LEVELS.index(scope)
    for index, name in enumerate(names):
        found = definitions.get(name)
        its = _OURS.get(name) or (str(found[-1].scope) if found else "function")
        if name != "request" and _LEVELS.index(its) >= wanted:
            return index
    return len(names)
