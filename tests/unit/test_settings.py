"""Settings: three places, the later wins, and every error says which one spoke."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dbclone.errors import SettingsError
from dbclone.pytest_plugin.plugin import OPTIONS
from dbclone.settings import Settings, describe, load


def write(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_options_beat_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        '[project]\nname = "shop"\n[tool.dbclone]\nreset = "truncate"\nbind = "a:b"\nseed ='
        ' "a:c"\n',
    )
    found = load(
        tmp_path,
        {"reset": "none", "seed": None},
        {"DBCLONE_RESET": "rollback", "DBCLONE_BIND": "x:y"},
    )
    assert (found.reset, found.bind, found.seed, found.name, found.autouse) == (
        "none",
        "x:y",
        "a:c",
        "shop",
        False,
    )
    assert found.source("reset") == "the option --reset"
    assert found.source("bind") == "the environment variable DBCLONE_BIND"
    assert found.source("seed") == f"{tmp_path / 'pyproject.toml'} [tool.dbclone]"
    assert found.source("autouse") == "default"


def test_the_table_is_found_from_below_and_paths_start_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, "[tool.dbclone]\nautouse = true\n")
    (tmp_path / ".git").mkdir()
    below = tmp_path / "tests" / "deep"
    below.mkdir(parents=True)
    write(below, '[project]\nname = "other"\n')
    found = load(below, {}, {})
    assert (found.autouse, found.root, found.project) == (True, tmp_path, tmp_path.name)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("autouse", "yes", True), ("autouse", "0", False),
        ("clone_limit", "7", 7), ("clone_limit", 0, 1), ("lock_timeout", "0.5", 0.5),
        ("env", "A, B", ("A", "B")), ("env", [], ()),
        ("schema", "alembic upgrade head", ("alembic upgrade head",)), ("inputs", [], ()),
        ("schema", ["a.sql", "b.sql"], ("a.sql", "b.sql")),
    ],
)  # fmt: skip
def test_values_become_the_type_of_their_setting(key: str, value: Any, expected: Any) -> None:
    assert getattr(load(Path("/"), {key: value}, {}), key) == expected


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("autouse", "perhaps", "true or false"), ("autouse", 1, "true or false"), ("clone_limit", "many", "a whole number"),
        ("clone_limit", 1.5, "a whole number"), ("clone_limit", True, "a whole number"),
        ("lock_timeout", -1, "a number"), ("lock_timeout", "nan", "a number"),
        ("reset", "trunkate", "one of"), ("reset", 3, "a string"),
        ("schema", 3, "a string or a list"), ("env", [1], "a string or a list"),
    ],
)  # fmt: skip
def test_a_wrong_type_quotes_key_value_and_source(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(Path("/"), {key: value}, {})
    assert caught.value.message.startswith(f"{key} = {value!r} is not {wanted}")
    assert f"the option --{key.replace('_', '-')}" in caught.value.detail
    assert caught.value.hint


def test_the_nearest_choice_and_the_nearest_key_are_suggested(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Did you mean 'truncate'\?"):
        load(tmp_path, {"reset": "trunkate"}, {})
    with pytest.raises(
        SettingsError, match=r"(?s)unknown setting 'DBCLONE_SCHEMAS'.*Did you mean 'schema'\?"
    ):
        load(tmp_path, {}, {"DBCLONE_SCHEMAS": "x"})
    with pytest.raises(
        SettingsError, match=r"(?s)unknown setting 'zzz'.*The settings are: schema, "
    ):
        load(write(tmp_path, "[tool.dbclone]\nzzz = 1\n"), {}, {})


@pytest.mark.parametrize(
    "text", ["[tool.dbclone\n", "[tool]\ndbclone = 3 # tool.dbclone\n", "# tool.dbclone\n\xff\x00"]
)
def test_a_broken_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"pyproject\.toml"):
        load(tmp_path, {}, {})


def test_a_url_is_never_quoted() -> None:
    with pytest.raises(SettingsError) as caught:
        load(Path("/"), {"url": ["postgresql://u:s3cr3t@h"]}, {})
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in str(
        load(Path("/"), {"url": "postgresql://u:s3cr3t@h"}, {}).error("url", "x", "y")
    )


@pytest.mark.parametrize(
    ("spec", "texts"),
    [
        ("nowhere_at_all.models:X", ["there is no module 'nowhere_at_all'"]),
        ("sample_settings.nothing:X", ["there is no module 'sample_settings.nothing'"]),
        (
            "sample_settings:MODLES",
            ["'sample_settings' has no 'MODLES'", "Did you mean sample_settings:MODELS?"],
        ),
        ("sample_settings:Holder.lod", ["has no 'lod'", "load"]),
        ("sample_broken:X", ["raised ZeroDivisionError"]),
        ("sample_missing:X", ["No module named 'not_installed_here'"]),
    ],
)
def test_a_name_that_cannot_be_imported_says_why(
    tmp_path: Path, spec: str, texts: list[str]
) -> None:
    (tmp_path / "sample_settings.py").write_text("MODELS = []\nclass Holder:\n    load = 1\n")
    (tmp_path / "sample_broken.py").write_text("1 / 0\n")
    (tmp_path / "sample_missing.py").write_text("import not_installed_here\n")
    settings = load(tmp_path, {"schema": spec}, {})
    with pytest.raises(SettingsError) as caught:
        settings.load_object("schema", spec)
    for text in [*texts, spec, "the option --schema"]:
        assert text in str(caught.value)


def test_a_src_layout_is_importable(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "sample_in_src.py").write_text("X = 41\n")
    assert load(tmp_path, {}, {}).load_object("schema", "sample_in_src:X") == 41


def test_every_setting_is_an_option_of_the_plugin_and_has_help() -> None:
    assert tuple(name for name, *_ in describe()) == tuple(
        sorted(OPTIONS, key=[name for name, *_ in describe()].index)
    )
    assert {name for name, *_ in describe()} == set(OPTIONS)
    assert all(text and not text.endswith(".") for _, _, text, _ in describe())


def test_the_cache_follows_the_platforms_convention(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert Settings().cache == tmp_path / "dbclone"
    assert load(tmp_path, {"cache_dir": "mine"}, {}).cache == tmp_path / "mine"


def test_places_are_named_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = load(tmp_path, {"data_dir": "$HOME/data", "cache_dir": "~/cache"}, {})
    assert found.path("data_dir") == tmp_path / "home" / "data"
    assert found.path("cache_dir") == tmp_path / "home" / "cache"


@pytest.mark.skipif(sys.platform != "linux", reason="a convention of Linux desktops")
def test_a_relative_folder_for_caches_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert load(tmp_path, {}, {}).cache == tmp_path / ".cache" / "dbclone"
