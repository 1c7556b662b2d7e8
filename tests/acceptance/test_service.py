"""A service or an address in the environment never leads the application past its clone (S24)."""

from __future__ import annotations

from dbclone.server.server import Server

from ..conftest import Project

TEST = """
    import os, psycopg

    def test_libpq_variables_lead_to_the_clone(dbclone):
        with psycopg.connect("") as connection:
            assert connection.info.dbname == dbclone.name
            assert connection.execute("SELECT count(*) FROM post").fetchone() == (0,)
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            assert connection.info.dbname == dbclone.name
        assert "PGSERVICE" not in os.environ
    """


def test_with_a_service_the_application_is_in_its_clone(project: Project, server: Server) -> None:
    """libpq lets a service's database win over PGDATABASE, so the service is said in variables
    instead."""
    service = project.folder / "services.conf"
    dsn = server.dsn
    project.write(test_a=TEST)
    service.write_text(
        f"[real]\nhost={dsn.get('host')}\nport={dsn.get('port')}\nuser={dsn.get('user')}\ndbname=postgres\n"
    )
    done = project.pytest("-q", PGSERVICE="real", PGSERVICEFILE=str(service))
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    done = project.pytest("-q", "-n", "2", PGSERVICE="real", PGSERVICEFILE=str(service))
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_with_a_url_an_inherited_address_leads_nowhere(project: Project, server: Server) -> None:
    """S3: and the first lines say where, so that a wrong server is seen."""
    project.configure(url=server.dsn.url)
    project.write(
        test_a=TEST.replace('psycopg.connect("")', 'psycopg.connect(os.environ["DATABASE_URL"])')
    )
    done = project.pytest(PGHOSTADDR="203.0.113.1", PGCONNECT_TIMEOUT="3")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert (
        f"server at host {server.dsn.get('host')}, port {server.dsn.get('port')}, user "
        in done.stdout
    )
