"""Advisory locks between real processes: exclusive, shared, counted, and gone with whoever held
them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from dbclone.server.locks import Leases, lock_key
from dbclone.server.server import Server
from dbclone.settings import Settings

from ...faults.stops import ended, until
from ...private import Other

PROGRAM = """
import json, sys, psycopg
from dbclone.server.locks import Leases
leases = Leases(psycopg.connect(sys.argv[1], autocommit=True, application_name=sys.argv[2]))
context = None
for line in sys.stdin:
    word, *rest = json.loads(line)
    if word == "pid":
        said = leases.connection.info.backend_pid
    elif word in ("lock", "slot"):
        context = getattr(leases, word)(*rest)
        try:
            context.__enter__()
            said = True
        except TimeoutError:
            said = False
    elif word == "leave":
        said = context.__exit__(None, None, None)
    else:
        said = getattr(leases, word)(*rest)
    print(json.dumps(said), flush=True)
"""

Start = Callable[..., Other]


@pytest.fixture
def start(server: Server) -> Iterator[Start]:
    """A function that starts a process with Leases of its own, which does what it is told."""
    started: list[Other] = []

    def starter(name: str = "a test") -> Other:
        command = [sys.executable, "-c", PROGRAM, server.dsn.url, name]
        started.append(
            Other(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        )
        return started[-1]

    yield starter
    for other in started:
        other.kill()


@pytest.fixture
def leases(server: Server, settings: Settings) -> Iterator[Leases]:
    with Server.open(settings) as own:
        yield own.leases


def ask(other: Other, *words: Any) -> Any:
    return other.ask(json.dumps(words))


def test_a_lease_is_one_processs_until_it_gives_it_up(leases: Leases, start: Start) -> None:
    other = start()
    assert ask(other, "acquire", "house") is True
    assert not leases.acquire("house")
    assert leases.acquire("garden")
    assert lock_key("house") in leases.held()
    ask(other, "release", "house")
    assert lock_key("house") not in leases.held()
    assert leases.acquire("house")
    assert ask(other, "acquire", "house") is False


def test_a_lease_ends_with_a_process_that_was_killed(
    server: Server, leases: Leases, start: Start
) -> None:
    """E6: life is proved by the server alone."""
    other = start()
    assert ask(other, "acquire", "house") is True
    pid = ask(other, "pid")
    other.kill()
    ended(server, pid)
    assert lock_key("house") not in leases.held()
    assert leases.acquire("house")


def test_shared_leases_go_together_and_exclude_an_exclusive_one(
    leases: Leases, start: Start
) -> None:
    other, third = start(), start()
    assert ask(other, "acquire", "house", True) is True
    assert leases.acquire("house", shared=True)
    assert ask(third, "acquire", "house") is False
    ask(other, "release", "house", True)
    assert ask(third, "acquire", "house") is False
    leases.release("house", shared=True)
    assert ask(third, "acquire", "house") is True
    assert not leases.acquire("house", shared=True)


def test_a_lease_is_taken_once_however_often_it_is_asked_for(leases: Leases, start: Start) -> None:
    """The server counts locks; a lease that was taken twice would outlive its giving up."""
    assert leases.acquire("house")
    assert leases.acquire("house")
    leases.release("house")
    assert lock_key("house") not in leases.held()


def test_giving_up_what_was_not_taken_leaves_it_to_its_owner(leases: Leases, start: Start) -> None:
    other = start()
    assert ask(other, "acquire", "house") is True
    leases.release("house")
    assert lock_key("house") in leases.held()


def test_who_waits_for_a_lock_gets_it_when_it_is_free(leases: Leases, start: Start) -> None:
    first, second = start(), start()
    assert ask(first, "lock", "door", 60) is True
    second.tell(json.dumps(["lock", "door", 60]))
    with pytest.raises(TimeoutError, match="door"), leases.lock("door", 0.05):
        pass
    ask(first, "leave")
    assert second.answer() is True


def test_who_waits_for_a_lock_gets_it_when_its_holder_was_killed(
    leases: Leases, start: Start
) -> None:
    first, second = start(), start()
    assert ask(first, "lock", "door", 60) is True
    second.tell(json.dumps(["lock", "door", 60]))
    first.kill()
    assert second.answer() is True


def test_a_lock_without_patience_is_tried_once(leases: Leases, start: Start) -> None:
    other = start()
    with leases.lock("door", 0):
        assert ask(other, "lock", "door", 0) is False
    assert ask(other, "lock", "door", 0) is True


def test_an_error_inside_a_block_frees_its_lock_and_its_place(leases: Leases, start: Start) -> None:
    with pytest.raises(ZeroDivisionError), leases.lock("door", 1), leases.slot("copy", 1, 1):
        raise ZeroDivisionError
    assert not {lock_key("door"), lock_key("copy slot 0")} & leases.held()


def test_a_block_whose_connection_broke_ends_without_another_error(
    server: Server, leases: Leases
) -> None:
    with leases.lock("door", 1), leases.slot("copy", 1, 1):
        server.fetch("SELECT pg_terminate_backend(%s, 10000)", [leases.connection.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            leases.held()
    assert lock_key("door") not in server.leases.held()


def test_the_holder_of_a_lock_is_told_in_words(leases: Leases, start: Start) -> None:
    """A9, promise 6: a time-out names the holder."""
    other = start("dbclone build far:77")
    ask(other, "acquire", "house")
    pid = ask(other, "pid")
    assert leases.holder("house").startswith(f"dbclone build far:77 (server process {pid}, for ")
    assert leases.holder("garden") == "nobody now"


def test_places_are_never_more_than_their_number(settings: Settings, server: Server) -> None:
    """S26, with two detectors: who is inside now, and what the server says."""
    inside, most, passed, guard = 0, 0, 0, threading.Lock()
    keys = {lock_key(f"copy slot {number}") for number in range(3)}
    query = "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'"
    ((others,),) = server.fetch(query)  # leases that other tests of this process keep

    def work() -> None:
        nonlocal inside, most, passed
        with Server.open(settings) as own:
            for _ in range(6):
                with own.leases.slot("copy", 3, 60):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    ((held,),) = own.fetch(query)
                    assert 1 <= held - others <= 3
                    assert keys & own.leases.held()
                    with guard:
                        inside -= 1
                        passed += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == 48
    assert 1 < most <= 3


def test_a_place_is_shared_between_processes_and_freed_by_a_kill(
    leases: Leases, start: Start
) -> None:
    holders = [start() for _ in range(3)]
    assert [ask(holder, "slot", "copy", 3, 60) for holder in holders] == [True] * 3
    waiting = start()
    waiting.tell(json.dumps(["slot", "copy", 3, 60]))
    keys = {lock_key(f"copy slot {number}") for number in range(3)}
    assert keys <= leases.held()
    holders[1].kill()
    assert waiting.answer() is True
    assert keys <= leases.held()


def test_who_waits_too_long_for_a_place_goes_on_without_one(leases: Leases, start: Start) -> None:
    """The cap spares the server, nothing depends on it: a process that was stopped must not stop
    all others."""
    with ExitStack() as stack:
        other = start()
        assert ask(other, "slot", "copy", 1, 60) is True
        stack.enter_context(leases.slot("copy", 1, 0.05))
    assert lock_key("copy slot 0") in leases.held()
    ask(other, "leave")
    until(lambda: lock_key("copy slot 0") not in leases.held())
