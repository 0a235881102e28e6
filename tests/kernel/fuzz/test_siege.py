"""Hostile messages and requests at a daemon: some here, 100,000 by `python -m tests.fuzz`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import calls, messages, siege

if TYPE_CHECKING:
    from collections.abc import Callable

N_MESSAGES, N_REQUESTS = 1500, 500


def test_a_daemon_lives_and_answers(record_property: Callable[[str, object], None]) -> None:
    """What keeps another client waiting does so each time; a machine that is busy does not."""
    found = []
    for _ in range(2):
        with siege.siege() as besieged:
            besieged.run(N_MESSAGES, N_REQUESTS, seed=1, tell=lambda _: None)
            record_property("seen", besieged.lines)
            assert len(besieged.lines) == 4
            found = besieged.found
            if not found:
                break
    assert found == []


def test_the_messages_call_every_method() -> None:
    sent = [messages.message_of(1, number) for number in range(N_MESSAGES)]
    content = b"".join(piece for message in sent for piece, _ in message.pieces)
    for method in calls.METHODS:
        assert content.count(f"io.gmemd.{method}".encode()) > 20, method
    assert {message.end for message in sent} == {*calls.ENDS}


def test_what_a_daemon_must_not_do_is_found() -> None:
    with siege.siege() as besieged:
        log = besieged.target.log
        with log.open("a") as file:
            file.write("Traceback (most recent call last):\n")
        besieged.run(1, 1, seed=1, tell=lambda _: None)
        assert [what for _, _, what in besieged.found if "Traceback" in what]
