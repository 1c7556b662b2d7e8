"""peewee over psycopg2: the same program under rollback and under truncate, where it commits for
real."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import peewee
import pytest
from playhouse.pool import PooledPostgresqlDatabase
from playhouse.postgres_ext import ArrayField, BinaryJSONField, PostgresqlExtDatabase, ServerSide

from dbclone.adapters.handles import bound_to
from dbclone.clone.clone import Clone
from dbclone.errors import SandboxLimit

from ...conftest import Project


class Item(peewee.Model):  # type: ignore[misc]
    name = peewee.CharField(unique=True)
    data = BinaryJSONField(null=True)
    tags = ArrayField(peewee.TextField, null=True)
    blob = peewee.BlobField(null=True)
    price = peewee.DecimalField(null=True)


class Part(peewee.Model):  # type: ignore[misc]
    item = peewee.ForeignKeyField(Item, backref="parts", on_delete="CASCADE")


MODELS = (Part, Item)

pytestmark = pytest.mark.clone_of(schema=MODELS)
Tell = Callable[..., None]


def names() -> list[str]:
    return [item.name for item in Item.select().order_by(Item.id)]


def transactions(db: Any, tell: Tell) -> None:
    """Every way to hold one."""
    with db.atomic() as outer:
        Item.create(name="a")
        outer.commit()
        Item.create(name="undone")
        outer.rollback()
    for number, kind in enumerate((db.atomic, db.savepoint)):
        with contextlib.suppress(ZeroDivisionError), db.atomic():
            with contextlib.suppress(peewee.IntegrityError), kind():
                Item.create(name=f"lost {number}")
                Item.create(name="a")
            with kind():
                Item.create(name=f"kept {number}")
            tell(names(), db.transaction_depth(), db.in_transaction())
            if number == 1:
                raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError), db.transaction():
        with contextlib.suppress(peewee.IntegrityError), db.transaction():
            Item.create(name="a")
        with pytest.raises(peewee.InternalError):
            names()
        raise ZeroDivisionError
    db.session_start()
    Item.create(name="session")
    db.session_rollback()
    db.session_start()
    Item.create(name="session again")
    db.session_commit()
    with db.manual_commit():
        db.begin()
        Item.create(name="manual")
        db.rollback()
        db.begin()
        Item.create(name="manual again")
        db.commit()
    done = [
        name
        for name in db.batch_commit([f"batch {n}" for n in range(5)], 2)
        if Item.create(name=name)
    ]
    tell(names(), done, db.is_connection_usable())
    db.begin()
    with pytest.raises(peewee.IntegrityError):
        Item.create(name="a")
    tell(db.is_connection_usable())
    with pytest.raises(peewee.InternalError) as raised:
        names()
    tell(str(raised.value).splitlines()[0])
    db.rollback()
    tell(names(), db.is_connection_usable())


def levels(db: Any, tell: Tell) -> None:
    """Isolation levels, and errors with what psycopg2 says of them."""
    with db.atomic("SERIALIZABLE"):
        Item.create(name="a")
    with pytest.raises(peewee.IntegrityError) as raised:
        Item.create(name="a")
    origin: Any = raised.value.__cause__ or raised.value.__context__
    tell(type(origin).__name__, origin.pgcode, origin.diag.table_name, origin.diag.constraint_name)
    with pytest.raises(peewee.ProgrammingError) as raised:
        db.execute_sql("SELECT nothing")
    tell(str(raised.value))
    tell(
        [tuple(row) for row in db.execute_sql("SELECT 1, %s, NULL", ("x",)).fetchall()],
        db.server_version,
    )


def values(db: Any, tell: Tell) -> None:
    """Types of Postgres, bulk inserts, RETURNING, cursors on the server's side, introspection."""
    Item.create(
        name="a", data={"a": [1, {"b": None}]}, tags=["x", "y"], blob=b"\x00\xff", price="1.25"
    )
    Item.insert_many([{"name": f"n{n}", "data": {"n": n}} for n in range(300)]).execute()
    found = Item.get(Item.name == "a")
    tell(found.data, found.tags, bytes(found.blob), str(found.price))
    tell(
        [
            row.name
            for row in Item.update(price=2).where(Item.name == "a").returning(Item.name).execute()
        ]
    )
    tell(Item.delete().where(Item.name.startswith("n1")).execute(), Item.select().count())
    with db.atomic():
        tell(len([item.name for item in ServerSide(Item.select())]))
    tell(len([item.name for item in Item.select().iterator()]))
    Part.create(item=found)
    found.delete_instance(recursive=True)
    tell(
        Part.select().count(),
        sorted(db.get_tables()),
        [c.name for c in db.get_columns("item")],
        [i.unique for i in db.get_indexes("item")],
    )


def opening(db: Any, tell: Tell) -> None:
    """D9: closing and opening in the middle, with something left open."""
    db.connect(reuse_if_open=True)
    Item.create(name="a")
    db.close()
    with db.connection_context():
        Item.create(name="b")
        tell(names())
    connection = db.connection()
    tell(connection.autocommit, connection.get_transaction_status(), connection.encoding)
    connection.cursor().execute("BEGIN")
    connection.cursor().execute("INSERT INTO item (name) VALUES ('lost')")
    db.close()
    if hasattr(db, "close_all"):
        db.close_all()
    tell(names())


@pytest.mark.parametrize(
    "program", [transactions, levels, values, opening], ids=lambda program: str(program.__name__)
)
@pytest.mark.parametrize("kind", [PostgresqlExtDatabase, PooledPostgresqlDatabase])
def test_a_program_sees_the_same_under_rollback_and_for_real(
    clone: Clone, kind: Any, program: Callable[[Any, Tell], None]
) -> None:
    if program is values and kind is not PostgresqlExtDatabase:
        pytest.skip("the types are those of PostgresqlExtDatabase")
    seen: dict[str, list[Any]] = {"truncate": [], "rollback": []}
    db = kind(None)
    with bound_to(db, clone.url), db.bind_ctx(MODELS):
        clone.handle = db
        for reset, told in seen.items():
            with clone.isolated(reset, "test") as isolation:
                assert isolation.reset == reset
                program(db, lambda *what, told=told: told.append(what))
                if not db.is_closed():
                    db.close()
            with clone.connect() as outside:
                assert outside.execute("SELECT count(*) FROM item").fetchone() == (0,)
        clone.handle = None
    assert seen["truncate"]
    for there, here in zip(seen["truncate"], seen["rollback"], strict=True):
        assert here == there


def test_psycopg2_is_isolated_by_rollback_where_it_can_be(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Unix sockets it is refused with a remedy, and works under auto."""
    db = peewee.PostgresqlDatabase(None)
    with bound_to(db, clone.url), db.bind_ctx(MODELS):
        clone.handle = db
        for expected in ("rollback", "truncate"):
            with clone.isolated("auto", "test") as isolation:
                assert isolation.reset == expected
                Item.create(name="a")
                assert isolation.execute("SELECT count(*) FROM item").fetchone() == (1,)
            assert names() == []
            db.close()
            monkeypatch.delattr(socket, "AF_UNIX", raising=False)
        with (
            pytest.raises(SandboxLimit, match="prefer_psycopg3=True"),
            clone.isolated("rollback", "test"),
        ):
            pass
        clone.handle = None


def test_a_project_over_psycopg2_under_pytest(project: Project) -> None:
    """With a layer of the class, another thread, and two workers; auto isolates it by rollback."""
    models = (project.folder / "models.py").read_text().replace(", prefer_psycopg3=True", "")
    assert "psycopg3" not in models
    project.write(
        models=models,
        test_a="""
        import threading
        import psycopg2
        import pytest
        from models import User, db
        @pytest.fixture(scope="class")
        def ann(dbclone_class):
            return User.create(id=1000, name="ann")
        @pytest.mark.parametrize("i", range(4))
        class TestLayer:
            def test_it(self, dbclone, ann, i):
                assert dbclone.reset == "rollback"
                assert isinstance(db.connection(), psycopg2.extensions.connection)
                thread = threading.Thread(target=lambda: User.create(name="bob"))
                thread.start()
                thread.join()
                assert dbclone.execute('SELECT count(*) FROM "user"').fetchone() == (2,)
                db.begin()
                User.create(name="left in an open block")
        def test_alone(dbclone):
            assert User.select().count() == 0
        """,
    )
    done = project.pytest("-q", "-n", "2")
    assert "5 passed" in done.stdout, done.stdout + done.stderr
